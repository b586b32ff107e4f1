"""One run at a time works in a folder, and its lock ends with its process alone."""

from __future__ import annotations

import errno
import os
import signal
import socket

import pytest

from lib.core.errors import InputError
from lib.training.lock import LOCK, locked

fcntl = pytest.importorskip("fcntl")


def test_a_second_run_is_refused_with_host_and_process_of_the_first(tmp_path):
    with locked(tmp_path):
        with pytest.raises(InputError) as refused, locked(tmp_path):
            pytest.fail("two runs in one folder")
    line = str(refused.value)
    assert line.startswith(f"{tmp_path}: ") and "--model_name" in line and "\n" not in line
    assert f"host {socket.gethostname()}, process {os.getpid()}" in line


def test_the_lock_ends_with_its_block_and_names_the_new_holder_alone(tmp_path):
    (tmp_path / LOCK).write_text("host elsewhere, process 12345678, which was killed\n")
    for _ in range(2):
        with locked(tmp_path):
            assert (tmp_path / LOCK).read_text() == f"host {socket.gethostname()}, process {os.getpid()}\n"


def test_a_killed_run_whose_loaders_live_on_holds_no_lock(tmp_path):
    """Its forked process inherits the open file, and with it the lock, unless it closes it."""
    ready, tell = os.pipe()
    run = os.fork()
    if run == 0:
        with locked(tmp_path):
            loader = os.fork()
            if loader == 0:
                signal.alarm(20)
                os.write(tell, str(os.getpid()).encode())
                signal.pause()
            signal.pause()
    loader = int(os.read(ready, 20))
    with pytest.raises(InputError), locked(tmp_path):
        pytest.fail("the run is alive")
    os.kill(run, signal.SIGKILL)
    os.waitpid(run, 0)
    try:
        with locked(tmp_path):
            os.kill(loader, 0)  # it is alive
    finally:
        os.kill(loader, signal.SIGKILL)


def test_a_file_system_without_locks_gets_a_note(tmp_path, monkeypatch, capsys):
    def missing(*_):
        raise OSError(errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", missing)
    with locked(tmp_path):
        assert capsys.readouterr().err.startswith(f"note: {tmp_path}: no locks on this file system")
