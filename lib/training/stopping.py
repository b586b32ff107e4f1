"""The signals with which a cluster ends a job: the run stops where it can resume, with an exit code of its own."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time

from lib.distributed.launch import world_size
from lib.distributed.messages import max_over_processes

STOPPED = 75  # the exit code of a run that stopped before its end; EX_TEMPFAIL of sysexits.h: try again
SIGNALS = ("SIGTERM", "SIGUSR1", "SIGHUP")
ECHO = 0.5  # seconds within which a second signal is the first one, sent to the group of processes as well


class Stopped(SystemExit):
    """A signal asked the run to stop."""

    def __init__(self, name: str):
        super().__init__(STOPPED)
        self.name = name


class Stop:
    """A context in which the first signal raises Stopped, at once or, inside `waiting`, when that block ends.

    A second signal ends the process where it is. A signal that was ignored before (nohup) stays ignored. Where several
    processes train, all stop at the same call of `check` and nowhere else, and each knows the signal.
    """

    def __init__(self):
        self.asked: str | None = None
        self._when, self._before = 0.0, {}
        self._waits = self._together = world_size() > 1

    def __enter__(self) -> Stop:
        for number in (getattr(signal, name) for name in SIGNALS if hasattr(signal, name)):
            if signal.getsignal(number) != signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextlib.contextmanager
    def waiting(self, waits: bool = True):
        """Within the block a signal waits for its end (or for `check`), or doesn't wait."""
        before, self._waits = self._waits, waits or self._together
        try:
            if not self._waits:
                self.check()
            yield
        finally:
            self._waits = before
        if not before:
            self.check()

    def check(self) -> None:
        """Raise Stopped if a signal has come."""
        if self._together and (number := max_over_processes(SIGNALS.index(self.asked) + 1 if self.asked else 0)):
            self.asked = SIGNALS[number - 1]
        if self.asked:
            raise Stopped(self.asked)

    def _note(self, number: int, frame) -> None:
        now = time.monotonic()
        if self.asked and now - self._when > ECHO:
            sys.stderr.write("stopped at once by a second signal; what was saved is whole\n")
            sys.stderr.flush()
            os._exit(STOPPED)
        if not self.asked:
            self.asked, self._when = signal.Signals(number).name, now
        if not self._waits:
            self.check()
