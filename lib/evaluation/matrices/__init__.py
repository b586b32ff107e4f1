"""Saved similarity matrices: read, written, and what several agree on."""
