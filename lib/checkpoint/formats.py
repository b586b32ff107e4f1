"""The file formats of checkpoints. A new family of released files is a module with these functions, and a row here.

`recognises(content)`, `read(content, path, paths) -> Checkpoint`, `write(path, checkpoint)`, and what the format calls
one of our weights, `name_of(key, config)`. The first row that recognises a file reads it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from lib.core.config import lazy


class Format(NamedTuple):
    """The functions of a format's module."""

    recognises: Callable
    read: Callable
    write: Callable
    name_of: Callable


def _of(module: str) -> Format:
    return Format(*(lazy(f"{module}:{function}") for function in Format._fields))


FORMATS = {
    "ours": _of("lib.checkpoint.native"),
    "released_bigru": _of("lib.checkpoint.released.bigru"),
    "released_clip": _of("lib.checkpoint.released.clip"),
    "released": _of("lib.checkpoint.released.esl"),
    "safetensors": _of("lib.checkpoint.exported"),
}
