"""What every command shares: one-line errors, exit codes, and the types of its numbers."""

from __future__ import annotations

import argparse
import contextlib
import functools
import math
import os
import shlex
import sys
import warnings

from lib.errors import InputError


class Parser(argparse.ArgumentParser):
    """Reports a command line that can't be understood as any other bad input: in one line."""

    def error(self, message: str):
        raise InputError(f"{' '.join(message.split())}; see {self.prog} --help")


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


def positive(kind: type = int):
    """An argparse type: a finite number of `kind` above 0."""
    return _number(kind, lambda value: 0 < value < math.inf, f"positive {kind.__name__}", "is not positive and finite")


def not_negative(kind: type = int):
    """An argparse type: a finite number of `kind`, at least 0."""
    message = "is negative or not finite"
    return _number(kind, lambda value: 0 <= value < math.inf, f"non-negative {kind.__name__}", message)


def _number(kind: type, accepts, name: str, message: str):
    def parse(text: str):
        value = kind(text)
        if not accepts(value):
            raise argparse.ArgumentTypeError(f"{text} {message}")
        return value

    parse.__name__ = name  # argparse says: invalid positive int value
    return parse


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
    """Wrap a script's `main(argv=None)`: an InputError prints as one line on stderr and exits with code 2."""

    @functools.wraps(main)
    def wrapper(argv=None):
        try:
            with one_line_warnings():
                return main(argv)
        except InputError as error:
            print(f"error: {error}", file=sys.stderr)
            raise SystemExit(2) from None
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            reason = str(error).partition("\n")[0].partition(". ")[0]
            advice = "use fewer --workers if memory ran out; checkpoints and files already written are kept"
            print(f"error: a process that loads data died ({reason}); {advice}", file=sys.stderr)
            raise SystemExit(2) from None
        except KeyboardInterrupt:
            print("interrupted; checkpoints and files already written are kept", file=sys.stderr)
            raise SystemExit(130) from None

    return wrapper
