"""Crisscrossed Captions: its annotation files and its scores."""
