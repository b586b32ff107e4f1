"""Pickles of unknown origin: what they ask for, looked up before they are read, and how much they made, after it."""

from __future__ import annotations

import io
import pickletools
from typing import Any

MOST_BYTES = 8 << 20  # of a pickle; that of 2,000 tensors with their optimizer has 0.4 million
MOST_VALUES, DEEPEST, MOST_BITS = 1_000_000, 50, 1024


def names_in(data: bytes, count: int = 1) -> set[str]:
    """The names that `count` pickles in a row ask for; ValueError unless they are pickles that end within `data`."""
    file, names = io.BytesIO(data), set()
    for _ in range(count):
        for opcode, argument, _ in pickletools.genops(file):
            if opcode.name in ("GLOBAL", "INST"):
                names.add(argument.replace(" ", ".").replace("__builtin__.", "builtins."))
    return names


def values_in(content: Any, objects: tuple[type, ...] = ()) -> list[Any]:
    """Every value in a nest of dicts, lists, tuples, sets and `objects`, however often it is repeated there.

    Raises ValueError for a nest that is too deep or too large, one that contains itself above all, and for an integer
    of hundreds of digits.
    """
    waiting, values, count = [(content, 1)], [], 1
    while waiting:
        value, depth = waiting.pop()
        if isinstance(value, dict):
            inside = [*value.keys(), *value.values()]
        elif isinstance(value, list | tuple | set | frozenset):
            inside = list(value)
        else:
            inside = list(vars(value).values()) if isinstance(value, objects) else []
            values.append(value)
        count += len(inside)
        if depth > DEEPEST or count > MOST_VALUES:
            raise ValueError("values that contain themselves, or are too many or too deep")
        if isinstance(value, int) and value.bit_length() > MOST_BITS:
            raise ValueError("an integer of hundreds of digits")
        waiting += [(item, depth + 1) for item in inside]
    return values
