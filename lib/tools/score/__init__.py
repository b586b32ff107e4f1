"""Scores of single images with captions."""
