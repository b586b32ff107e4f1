"""Files: written so that a crash never leaves half of one, read so that a bad one is named with its line."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from lib.errors import InputError


@contextlib.contextmanager
def atomic_write(path: str | Path):
    """Yield the path of a temporary file beside `path`; it replaces `path` when the block ends without an exception.

    Raises InputError when the folder can't be written.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror}); choose a folder you may write to") from None
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files of `atomic_write` and `check_writable` whose process was killed, in this folder."""
    for pattern in (".*.tmp", ".writable.*"):
        for path in folder.glob(pattern):
            path.unlink(missing_ok=True)


def check_writable(folder: str | Path, flag: str) -> Path:
    """Make a folder if need be and find out now whether files can be written there; InputError naming `flag`."""
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle, probe = tempfile.mkstemp(dir=folder, prefix=".writable.")
        os.close(handle)
        os.unlink(probe)
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({error.strerror}); name another folder with {flag}") from None
    return folder


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


def read_json(path: str | Path):
    """Read a JSON file; raises InputError that names the file when it is missing or broken."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise InputError(f"{path}: is a folder, expected a JSON file") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:  # bytes that are no JSON, a number of thousands of digits
        raise InputError(f"{path}: not valid JSON ({error}); download or write the file again") from None


def read_ids(path: str | Path) -> np.ndarray:
    """Read one integer id per line (N,) int64. Raises InputError that names the line that is no integer."""
    ids = []
    for number, line in enumerate(read_lines(path), start=1):
        try:
            ids.append(np.int64(int(line)))
        except (ValueError, OverflowError):
            raise InputError(f"{path}, line {number}: expected one integer id, found {line.strip()[:40]!r}") from None
    return np.array(ids, dtype=np.int64)


def read_lines(path: str | Path) -> list[str]:
    """The lines of a UTF-8 text file (only `\\n` ends one); InputError for none, and for bytes that are no UTF-8."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        number = data.count(b"\n", 0, error.start) + 1
        raise InputError(f"{path}, line {number}: not UTF-8; save the file as UTF-8") from None
    lines = text.removesuffix("\n").split("\n")
    if not text.strip():
        raise InputError(f"{path}: the file is empty")
    return lines


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
