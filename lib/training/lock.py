"""One run, one folder: a lock held by the run's process, which is released however the process ends."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import sys
from pathlib import Path

from lib.core.errors import InputError, shown

LOCK = ".lock"


@contextlib.contextmanager
def locked(folder: Path):
    """Hold the lock of a run's folder; InputError with host and process of the one that holds it.

    On a file system without locks one line says so.
    """
    try:
        import fcntl  # not everywhere
    except ImportError:
        yield
        return
    with open(folder / LOCK, "a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = shown(file.read().strip() or "another process")
            raise InputError(f"{folder}: in use by another run ({holder}); wait for it, or name another folder with "
                             "--model_name") from None  # fmt: skip
        except OSError as error:
            if error.errno not in (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK, errno.EINVAL):
                raise
            print(f"note: {folder}: no locks on this file system; don't start a second run there", file=sys.stderr)
        os.set_inheritable(file.fileno(), False)
        forget = _Fork(file)
        file.truncate(0)
        file.write(f"host {socket.gethostname()}, process {os.getpid()}\n")
        file.flush()
        try:
            yield
        finally:
            forget.file = None


class _Fork:
    """Closes the lock's file in forked processes, data loaders above all: a killed run's loaders live on for seconds,
    and would keep its lock."""

    def __init__(self, file):
        self.file = file
        os.register_at_fork(after_in_child=self.close)

    def close(self) -> None:
        if self.file is not None:
            os.close(self.file.fileno())
