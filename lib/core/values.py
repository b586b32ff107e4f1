"""Types of values, stated once: they read a flag's text and check a value from a file."""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from typing import Any

from lib.core.errors import shown


@dataclass(frozen=True)
class Number:
    """Finite numbers of a kind from `low` (without it where `above`) to `high` (None: any); an argparse type."""

    kind: type = int
    low: float = 0
    high: float | None = None
    above: bool = False

    def __call__(self, text: str) -> int | float:
        try:
            value = self.kind(text)
        except ValueError:
            value = None
        if not self.holds(value):
            raise argparse.ArgumentTypeError(f"'{shown(text)}' is not {self}")
        return value

    @property
    def __name__(self) -> str:
        return self.kind.__name__  # help texts print N for int, X for float

    def holds(self, value: Any) -> bool:
        if type(value) not in (int, self.kind):
            return False
        return (self.low < value if self.above else self.low <= value) and value <= self._most()

    def _most(self) -> float:
        return self.high if self.high is not None else 2**53 if self.kind is int else sys.float_info.max

    def __str__(self) -> str:
        name = "a whole number" if self.kind is int else "a finite number"
        if self.high is not None:
            return f"{name} {'above' if self.above else 'from'} {self.low:.10g} to {self.high:.10g}"
        return f"{name} {'above' if self.above else 'of at least'} {self.low:.10g}"


@dataclass(frozen=True)
class Choice:
    """One of a few words."""

    words: tuple[str, ...]

    def holds(self, value: Any) -> bool:
        return type(value) is str and value in self.words

    def __str__(self) -> str:
        return f"one of {', '.join(self.words)}"


class Switch:
    """Yes or no."""

    def holds(self, value: Any) -> bool:
        return type(value) is bool

    def __str__(self) -> str:
        return "True or False"


@dataclass(frozen=True)
class Several:
    """A list of numbers, `fewest` to `most` of them."""

    each: Number
    fewest: int
    most: int

    def holds(self, value: Any) -> bool:
        fits = isinstance(value, list | tuple) and self.fewest <= len(value) <= self.most
        return fits and all(map(self.each.holds, value))

    def __str__(self) -> str:
        return f"a list of {self.fewest} to {self.most} numbers, each {self.each}"


def problem(values: dict[str, Any], allowed: dict[str, Any]) -> str | None:
    """Describes the first unknown or invalid value; None if all are valid."""
    for name, value in values.items():
        if name not in allowed:
            return f"{shown(name)} is none of {', '.join(allowed) or 'no values'}"
        if not allowed[name].holds(value):
            return f"{name} is {shown(value)}, expected {allowed[name]}"
    return None


def positive(kind: type = int, high: float | None = None) -> Number:
    """The finite numbers of `kind` above 0."""
    return Number(kind, 1, high) if kind is int else Number(kind, 0, high, above=True)


def not_negative(kind: type = int, high: float | None = None) -> Number:
    """The finite numbers of `kind`, at least 0."""
    return Number(kind, 0, high)
