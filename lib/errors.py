"""The one exception for bad input."""

from __future__ import annotations


class InputError(ValueError):
    """Something the user gave is wrong. The message is one line: what, where, what was expected, what to do."""
