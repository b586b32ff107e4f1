"""The file formats of checkpoints. A new family of released files is a module with these functions, and a row here.

`recognises(content)`, `read(content, path, paths) -> Checkpoint`, `write(path, checkpoint)`, and what the format calls
one of our weights, `name_of(key, config)`. The first row that recognises a file reads it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from lib.config import lazy


class Format(NamedTuple):
    """The functions of a format's module."""

    recognises: Callable
    read: Callable
    write: Callable
    name_of: Callable


def _of(module: str) -> Format:
    return Format(*(lazy(f"{module}:{function}") for function in Format._fields))


FORMATS = {
    "ours": _of("lib.checkpoint.ours"),
    "released_bigru": _of("lib.checkpoint.released_bigru"),
    "released_clip": _of("lib.checkpoint.released_clip"),
    "released": _of("lib.checkpoint.released"),
    "safetensors": _of("lib.checkpoint.exported"),
}
