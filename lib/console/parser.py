"""The parser of every command: one style of --help, errors in one line, and types of flags."""

from __future__ import annotations

import argparse
import difflib
import os
import sys
from pathlib import Path

from lib.core.errors import InputError
from lib.core.machine import available_cores
from lib.core.values import not_negative


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
    """The values of flags. `given` is the set of names that stand on the command line."""

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
        values, unknown = super().parse_known_args(args, Flags() if namespace is None else namespace)
        for argument in unknown[:1]:
            flag = argument.partition("=")[0]
            near = difflib.get_close_matches(flag, self._option_string_actions, 1)
            self.error(f"unrecognized argument {flag}" + (f": did you mean {near[0]}?" if near else ""))
        words = (argument.partition("=")[0] for argument in args)
        values.given = frozenset(word.removeprefix("--") for word in words if word.startswith("--"))
        return values, unknown

    def error(self, message: str):
        raise InputError(f"{' '.join(message.split())}; see {self.prog} --help")


def workers(text: str) -> int:
    """An argparse type: a number of processes. Notes if there are fewer cores, and takes as many."""
    asked, cores = not_negative(int)(text), available_cores()
    if asked > cores:
        print(f"note: --workers {asked}: this process may use {cores} cores, so {cores} are started", file=sys.stderr)
    return min(asked, cores)


def existing(path: str) -> Path:
    """An argparse type: the path of a file or folder that is there."""
    if not os.path.exists(path):
        raise argparse.ArgumentTypeError(f"{path}: no such file")
    return Path(path)
