"""The frame of every script: one-line errors and warnings, exit codes, and the command line that a run records."""

from __future__ import annotations

import contextlib
import functools
import os
import shlex
import sys
import warnings

from lib.console.screen import flush, last_words, screens
from lib.core.errors import KEPT, explained


def command_line(argv: list[str] | None) -> str:
    """The command line of this process, or the one that `argv` stands for."""
    start, nodes = ["python"], int(os.environ.get("GROUP_WORLD_SIZE", 1))
    if "TORCHELASTIC_RUN_ID" in os.environ:
        start = ["torchrun", f"--nproc_per_node={os.environ.get('LOCAL_WORLD_SIZE', 1)}"]
        start += [f"--nnodes={nodes}"] if nodes > 1 else []
    return shlex.join([*start, *(sys.argv if argv is None else ["train.py", *argv])])


def to_go_on(command: str) -> str:
    """A command line of train.py with --resume auto in place of what it says of resuming."""
    words = shlex.split(command)
    kept = [
        word
        for word, before in zip(words, [None, *words], strict=False)
        if not word.startswith(("--resume", "--reset_start_epoch")) and before != "--resume"
    ]
    return shlex.join([*kept, "--resume", "auto"])


@contextlib.contextmanager
def one_line_warnings():
    """Within it a warning prints as one line, without the place in the code that it came from."""
    before = warnings.formatwarning
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"
    try:
        yield
    finally:
        warnings.formatwarning = before


def script(main):
    """Wrap a script's `main(argv=None)`: bad input, and what the machine refuses, is one line on stderr and code 2.

    A reader of stdout that leaves ends it quietly, as a signal would. `python -X dev` shows where an error came from.
    """

    @functools.wraps(main)
    def wrapper(argv=None):
        with screens(), one_line_warnings():
            try:
                return _flushed(main, argv)
            except KeyboardInterrupt:
                code, line = 130, f"interrupted; {KEPT}"
            except BrokenPipeError:
                code, line = 128 + 13, ""  # of SIGPIPE
            except Exception as error:
                code, line = 2, explained(error)
                if line is None or sys.flags.dev_mode:
                    raise
                line = f"error: {line}"
            last_words(line)
            raise SystemExit(code) from None

    return wrapper


def _flushed(main, argv):
    try:
        result = main(argv)
    except SystemExit:
        flush()
        raise
    flush()
    return result
