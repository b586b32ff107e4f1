"""Signals stop a run where it may stop, a second one at once, and ignored ones never."""

from __future__ import annotations

import os
import signal
import time

import pytest

from lib.training import stopping
from lib.training.stopping import STOPPED, Stop, Stopped


def send(name: str) -> None:
    os.kill(os.getpid(), getattr(signal, name))


@pytest.mark.parametrize("name", stopping.SIGNALS)
def test_a_signal_stops_at_once_with_a_code_of_its_own_and_its_name(name):
    with pytest.raises(Stopped) as stopped, Stop():
        send(name)
        pytest.fail("went on")
    assert stopped.value.name == name and stopped.value.code == STOPPED == 75


def test_a_signal_waits_for_the_end_of_a_block_and_no_longer():
    seen = []
    with pytest.raises(Stopped), Stop() as stop:
        with stop.waiting():
            send("SIGTERM")
            seen.append("in the block")
        seen.append("behind it")
    assert seen == ["in the block"]


def test_a_block_inside_another_may_be_stopped_and_what_was_asked_before_stops_it_too():
    for early in (True, False):
        seen = []
        with Stop() as stop, pytest.raises(Stopped), stop.waiting():
            if early:
                send("SIGUSR1")
            seen.append("step")
            with stop.waiting(False):
                seen.append("validation")
                send("SIGUSR1")
                seen.append("after")
        assert seen == (["step"] if early else ["step", "validation"])


def test_handlers_of_before_come_back():
    before = [signal.getsignal(getattr(signal, name)) for name in stopping.SIGNALS]
    with Stop():
        pass
    assert [signal.getsignal(getattr(signal, name)) for name in stopping.SIGNALS] == before


def test_a_signal_that_was_ignored_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with Stop() as stop:
            send("SIGHUP")
            assert stop.asked is None
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize(("seconds", "output"), [(0.7, ""), (0.0, "went on\n")])
def test_a_second_signal_ends_the_process_unless_it_is_the_echo_of_the_first(capfd, seconds, output):
    child = os.fork()
    if child == 0:
        try:
            with Stop() as stop, stop.waiting():
                send("SIGTERM")
                time.sleep(seconds)
                send("SIGTERM")
                os.write(1, b"went on\n")
        except Stopped as stopped:
            os._exit(stopped.code)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == STOPPED
    found = capfd.readouterr()
    assert found.out == output
    assert found.err.count("stopped at once by a second signal; what was saved is whole\n") == (not output)
