"""What every command shares: one-line errors, exit codes, and the types of its numbers."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import functools
import os
import shlex
import sys
import warnings
from pathlib import Path

from lib.errors import KEPT, InputError, explained
from lib.machine import available_cores
from lib.terminal import flush, last_words, screens
from lib.values import Number


class Help(argparse.HelpFormatter):
    """The one style of every --help: N is a whole number, X any number, and a default stands at the end."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "\n\n".join(super(Help, self)._fill_text(part, width, indent) for part in text.split("\n\n"))

    def _get_help_string(self, action: argparse.Action) -> str:
        silent = action.default in (None, argparse.SUPPRESS, []) or action.default is False
        return action.help if silent or "(default: " in action.help else f"{action.help} (default: %(default)s)"

    def _get_default_metavar_for_optional(self, action: argparse.Action) -> str:
        kind = getattr(action.type, "__name__", "")
        return "N" if kind.endswith("int") else "X" if kind.endswith("float") else "FILE" if kind == "Path" else "NAME"

    def _get_default_metavar_for_positional(self, action: argparse.Action) -> str:
        return action.dest.upper()


class Flags(argparse.Namespace):
    """The values of flags; `given`, which is none of them, names those that stand on the command line."""

    __slots__ = ("given",)


class Parser(argparse.ArgumentParser):
    """Reports a command line that can't be understood in one line, as any other bad input. No flag may be shortened."""

    def __init__(self, *args, **settings):
        super().__init__(*args, allow_abbrev=False, formatter_class=Help, **settings)

    def parse_known_args(self, args=None, namespace=None):
        args = list(sys.argv[1:] if args is None else args)
        for before, argument in zip([None, *args], args, strict=False):
            if argument == "" or argument.startswith("--") and argument.endswith("="):
                named = argument.rstrip("=") or before or "the command"
                self.error(f"{named} is followed by an empty argument; is a variable not set?")
        found, unknown = super().parse_known_args(args, Flags() if namespace is None else namespace)
        for argument in unknown[:1]:
            flag = argument.partition("=")[0]
            near = difflib.get_close_matches(flag, self._option_string_actions, 1)
            self.error(f"unrecognized argument {flag}" + (f": did you mean {near[0]}?" if near else ""))
        words = (argument.partition("=")[0] for argument in args)
        found.given = frozenset(word.removeprefix("--") for word in words if word.startswith("--"))
        return found, unknown

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


def positive(kind: type = int, high: float | None = None) -> Number:
    """The finite numbers of `kind` above 0."""
    return Number(kind, 1, high) if kind is int else Number(kind, 0, high, above=True)


def not_negative(kind: type = int, high: float | None = None) -> Number:
    """The finite numbers of `kind`, at least 0."""
    return Number(kind, 0, high)


def workers(text: str) -> int:
    """An argparse type: a number of processes, no more than there are cores for them, which is said."""
    asked, cores = not_negative(int)(text), available_cores()
    if asked > cores:
        print(f"note: --workers {asked}: this process may use {cores} cores, so {cores} are started", file=sys.stderr)
    return min(asked, cores)


def existing(path: str) -> Path:
    """An argparse type: the path of a file or folder that is there."""
    if not os.path.exists(path):
        raise argparse.ArgumentTypeError(f"{path}: no such file")
    return Path(path)


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
