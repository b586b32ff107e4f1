"""What is printed: without control characters, in any encoding, and even if nobody reads it."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import TextIO

from lib.core.errors import printable


class Screen:
    """A stream for people: "?" for control characters, escapes for what its encoding lacks.

    `bars` lets progress bars return to the start of their line, and to the line above.
    """

    def __init__(self, stream: TextIO, bars: bool = False):
        self._stream, self._bars = stream, bars

    def write(self, text: str) -> int:
        if not (self._bars and text.replace("\x1b[A", "").strip("\n") == ""):
            text = printable(text, "\n\t\r" if self._bars else "\n\t")
        encoding = getattr(self._stream, "encoding", None) or "utf-8"
        return self._stream.write(text.encode(encoding, "backslashreplace").decode(encoding))

    def __getattr__(self, name: str):
        return getattr(self._stream, name)


@contextlib.contextmanager
def screens():
    """Within the block stdout and stderr are Screens."""
    with contextlib.ExitStack() as stack:
        if sys.stdout is not None:  # closed by whoever started this process
            stack.enter_context(contextlib.redirect_stdout(Screen(sys.stdout)))
        if sys.stderr is not None:
            stack.enter_context(contextlib.redirect_stderr(Screen(sys.stderr, bars=True)))
        yield


def flush() -> None:
    """Print now what stdout still holds; OSError where it can't."""
    if sys.stdout is not None and not sys.stdout.closed:
        sys.stdout.flush()


def last_words(line: str) -> None:
    """Print a last line on stderr. What stdout can't print any more goes nowhere, or the interpreter would complain."""
    with contextlib.suppress(OSError):
        print(line, end="\n" if line else "", file=sys.stderr, flush=True)
    try:
        flush()
    except OSError:
        silence(sys.stdout)


def silence(stream: TextIO) -> None:
    """Let what is written to a stream from now on go nowhere."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
