"""The one exception for bad input, and how values from files look in its message."""

from __future__ import annotations


class InputError(ValueError):
    """Something the user gave is wrong. The message is one line: what, where, what was expected, what to do."""


def shown(value: object, most: int = 80) -> str:
    """A value from a file for a message: its beginning, on one line."""
    text = "".join(character if character.isprintable() else "?" for character in str(value)[: most + 1])
    return text if len(text) <= most else text[:most] + "…"


def listed(names: list, most: int = 4) -> str:
    """The first few of many names from a file: "a, b, c, d, …"."""
    return ", ".join(map(shown, names[:most])) + (", …" if len(names) > most else "")
