"""Text, JSON and id files, read so that a bad one is named with its line."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from lib.core.errors import InputError, shown
from lib.files.kinds import LONGEST, stand_in

_HALF = re.compile(r"\\u[dD][89a-fA-F]")  # of a pair of JSON escapes, or a lone one


def read_json(path: str | Path) -> Any:
    """Read a JSON file; raises InputError that names the file when it is missing, no regular file, or broken.

    Numbers are finite and of at most 4,300 digits, nesting is bounded, and texts are text: no halves of pairs but those
    with which Python names a file that is no UTF-8.
    """
    try:
        text = _bytes(path, "a JSON file").decode("utf-8")
        content = json.loads(text, parse_float=_finite, parse_constant=_finite)
        if _HALF.search(text):
            json.dumps(content, ensure_ascii=False).encode("utf-8", "surrogateescape")
        return content
    except (ValueError, RecursionError) as error:  # UnicodeError and JSONDecodeError among them
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: not valid JSON ({shown(error, 160)}); download or write the file again") from None


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is no finite number")
    return value


def read_ids(path: str | Path) -> np.ndarray:
    """Read one integer id per line (N,) int64. Raises InputError that names the line that is no integer."""
    ids = []
    for number, line in enumerate(read_lines(path), start=1):
        try:
            ids.append(np.int64(int(line)))
        except (ValueError, OverflowError):
            raise InputError(f"{path}, line {number}: expected one integer id, found '{shown(line, 40)}'") from None
    return np.array(ids, dtype=np.int64)


def read_lines(path: str | Path) -> list[str]:
    """The lines of a UTF-8 text file (only `\\n` ends one); InputError for none, and for bytes that are no UTF-8."""
    data = _bytes(path, "a text file")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        number = data.count(b"\n", 0, error.start) + 1
        raise InputError(f"{path}, line {number}: not UTF-8; save the file as UTF-8") from None
    lines = text.removesuffix("\n").split("\n")
    if not text.strip():
        raise InputError(f"{path}: the file is empty")
    return lines


@contextlib.contextmanager
def readable(path: str | Path) -> Iterator[None]:
    """Raises InputError that names `path` if the system fails to read it within the block."""
    try:
        yield
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None


def opened(path: str | Path, expected: str) -> BinaryIO:
    """A regular file, open for reading. Refuses pipes and devices, since reading one could block for ever,
    and files that stand for another: pointers, archives, pickles, web pages."""
    with readable(path):
        try:
            mode = os.stat(path).st_mode
        except FileNotFoundError:
            raise InputError(f"{path}: no such file, expected {expected}") from None
        if not stat.S_ISREG(mode):
            kind = "a folder" if stat.S_ISDIR(mode) else "no regular file"
            raise InputError(f"{path}: is {kind}, expected {expected}")
        file = open(path, "rb")
        if kind := stand_in(file.peek(LONGEST)[:LONGEST]):
            file.close()
            raise InputError(f"{path}: expected {expected}, but it is {kind}")
        return file


def _bytes(path: str | Path, expected: str) -> bytes:
    with readable(path), opened(path, expected) as file:
        return file.read()
