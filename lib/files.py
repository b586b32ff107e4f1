"""Files: written so that a crash never leaves half of one, read so that a bad one is named with its line."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import re
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from lib.errors import InputError, shown

_HALF = re.compile(r"\\u[dD][89a-fA-F]")  # of a pair of JSON escapes, or a lone one


@contextlib.contextmanager
def atomic_write(path: str | Path):
    """Yield the path of a temporary file beside `path`; it replaces `path` when the block ends without an exception.

    A machine that crashes leaves the old file or the new one. Raises InputError when the folder can't be written, the
    disk is full, or `path` is a folder.
    """
    path = Path(path)
    with _writing(path, "choose a folder you may write to"):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:100]}.", suffix=".tmp")
        os.close(handle)
    temporary = Path(name)
    try:
        with _writing(path, "make room on that disk, or choose another folder", temporary):
            yield temporary
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
            os.chmod(temporary, 0o666 & ~_umask())
            os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def _writing(path: Path, advice: str, temporary: Path | None = None):
    """InputError for an OSError of the block, unless it is of a file other than `path` and its `temporary` one."""
    try:
        yield
    except OSError as error:
        of_another = temporary and str(error.filename) not in map(str, (None, path, temporary))
        if of_another or isinstance(error, BrokenPipeError):  # stdout's, whose reader has gone
            raise
        raise InputError(f"{path}: cannot be written ({error.strerror or error}); {advice}") from None


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files of `atomic_write` and `check_writable` whose process was killed, in this folder."""
    for pattern in (".*.tmp", ".writable.*"):
        for path in folder.glob(pattern):
            path.unlink(missing_ok=True)


def check_writable(folder: str | Path, flag: str) -> Path:
    """Find out now whether files can be written to a folder, which the first one makes; InputError naming `flag`."""
    folder = Path(folder)
    try:
        there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
        handle, probe = tempfile.mkstemp(dir=there, prefix=".writable.")
        os.close(handle)
        os.unlink(probe)
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({error.strerror}); name another folder with {flag}") from None
    return folder


def check_target(path: str | Path, flag: str) -> Path:
    """Find out now whether a file can be written, which makes its folder; InputError naming `flag`."""
    path = Path(path)
    check_writable(path.parent, flag)
    if path.is_dir():
        raise InputError(f"{path}: cannot be written (is a folder); name another file or folder with {flag}")
    return path


def plain(value: Any, other: Callable[[Any], Any] = str) -> Any:
    """`value` in dicts, lists, tuples, numbers, text and None alone, as JSON and PyTorch's restricted reader take it.

    numpy's numbers and arrays become Python's, an object with `as_dict` that dict; `other` converts what is left.
    """
    if hasattr(value, "as_dict"):
        value = value.as_dict()
    if isinstance(value, dict):
        return {plain(key, other): plain(item, other) for key, item in value.items()}
    if isinstance(value, list | tuple):
        items = [plain(item, other) for item in value]
        return tuple(items) if type(value) is tuple else items
    if isinstance(value, np.ndarray | np.generic) and value.dtype != np.longdouble:
        return plain(value.tolist(), other)
    return value if type(value) in (str, int, float, bool, type(None)) else other(value)


def write_json(path: str | Path, content) -> None:
    """Write `content` as indented JSON, atomically."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(plain(content), indent=1) + "\n", encoding="utf-8")


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


def opened(path: str | Path, expected: str) -> BinaryIO:
    """A regular file, open for reading: a pipe would be waited for, a device never ends. InputError for others."""
    try:
        mode = os.stat(path).st_mode
        if stat.S_ISREG(mode):
            return open(path, "rb")
        found = "a folder" if stat.S_ISDIR(mode) else "no regular file"
    except FileNotFoundError:
        raise InputError(f"{path}: no such file, expected {expected}") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    raise InputError(f"{path}: is {found}, expected {expected}")


def _bytes(path: str | Path, expected: str) -> bytes:
    try:
        with opened(path, expected) as file:
            return file.read()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
