"""Files written so that a crash never leaves half of one."""

from __future__ import annotations

import contextlib
import errno
import glob
import json
import os
import stat
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from lib.core.errors import InputError


@contextlib.contextmanager
def atomic_write(path: str | Path):
    """Yield the path of a temporary file beside `path`; it replaces `path` when the block ends without an exception.

    A link stays and its target is replaced; a file that was there keeps its mode. A machine that crashes leaves the old
    file or the new one; a process that is killed leaves its temporary file, which the next write of `path` removes.
    Raises InputError if the folder can't be written, the disk is full, or `path` is a folder, a
    device or a pipe.
    """
    path = Path(os.path.realpath(path))
    with _writing(path, "choose a folder you may write to"):
        path.parent.mkdir(parents=True, exist_ok=True)
        mode, prefix = _mode_of(path), f".{path.name[:100]}."
        for orphan in path.parent.glob(f"{glob.escape(prefix)}*.tmp"):
            _remove_orphan(orphan)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=prefix, suffix=".tmp")
        _lock(handle)
    temporary = Path(name)
    try:
        with _writing(path, "make room on that disk, or choose another folder", temporary):
            yield temporary
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
            os.chmod(temporary, mode)
            os.replace(temporary, path)
            _sync_folder(path.parent)
    finally:
        os.close(handle)
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


def _lock(handle: int) -> bool:
    """Hold the lock of an open file until it is closed; False if another process holds it, or where there are none."""
    try:
        import fcntl  # not everywhere

        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (ImportError, OSError):
        return False
    return True


def _remove_orphan(temporary: Path) -> None:
    """Remove a temporary file that no process writes any more; one of the last seconds may not be locked yet."""
    with contextlib.suppress(OSError):
        if time.time() - temporary.stat().st_mtime > 2:
            with open(temporary, "rb") as file:
                if _lock(file.fileno()):
                    temporary.unlink()


def _mode_of(path: Path) -> int:
    """The mode of the file that stands at `path`, else that of a new file; OSError unless it may be replaced."""
    if not path.exists():
        return 0o666 & ~_umask()
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    if not path.is_file():
        raise OSError(errno.EINVAL, "is a device or a pipe, no regular file", path)
    return stat.S_IMODE(path.stat().st_mode)


def _sync_folder(folder: Path) -> None:
    """Write the names of a folder to the disk, where its file system can."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


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
    if path.exists() and not path.is_file():
        reason = "is a folder" if path.is_dir() else "is a device or a pipe"
        raise InputError(f"{path}: cannot be written ({reason}); name another file or folder with {flag}")
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


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
