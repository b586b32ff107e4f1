"""Key names of released files and ours: tables of rules, read in both directions."""

from __future__ import annotations

import functools
import re
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lib.checkpoint.checkpoint import Checkpoint
from lib.core.errors import InputError, listed, shown


class Rule(NamedTuple):
    """Which released key is which of ours, in the models that have all traits of `where`.

    {k} is a level, {k-1} the same counted from 0, {rest} the remainder. The released tensor has `ones` more leading
    axes of size 1.
    """

    where: str
    part: str
    released: str
    ours: str
    ones: int = 0


class Twin(NamedTuple):
    """A released layer that is in the file under two names; only the second is used by its forward pass."""

    where: str
    part: str
    repeated: str
    used: str


class Unused(NamedTuple):
    """A released tensor without influence on any score; `default(config)` stands in where we have none to write."""

    where: str
    part: str
    released: str
    default: Any


@dataclass(frozen=True)
class Layout:
    """The key names of a family of released files, whose state dicts ("parts") have names."""

    rules: tuple[Rule, ...]
    twins: tuple[Twin, ...] = ()
    unused: tuple[Unused, ...] = ()

    def of(self, similarity: str, grid: bool) -> Layout:
        """The rows that apply to a model."""
        traits = {"grid" if grid else "region", similarity, "vse_infty" if similarity == "vse_infty" else "esl"}
        tables = self.rules, self.twins, self.unused
        return Layout(*(tuple(row for row in rows if set(row.where.split()) <= traits) for rows in tables))

    def name_of(self, key: str) -> str:
        """What one of our keys is called: "sim_vec: sims.calculator_1.masks_0.weight"."""
        rule, name = self._released(key)
        return f"{rule.part}: {name}" if rule else key

    def to_ours(
        self, parts: dict[str, dict[str, Tensor]], path: Path, what: str
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The weights under our names, and the unused ones; InputError that names every key without a meaning."""
        unused = {(row.part, row.released) for row in self.unused}
        model, extras, unknown = {}, {}, []
        for part, weights in parts.items():
            for key, tensor in weights.items():
                rule, ours = self._ours(part, key)
                if (part, key) in unused:
                    extras[f"{part}.{key}"] = tensor
                elif rule:
                    model[ours] = _without_ones(tensor, rule.ones, f"{path}: {part}: {shown(key)}")
                elif used := self._used(part, key):
                    if not _repeats(tensor, weights.get(used), f"{path}: {part}: {shown(key)}"):
                        extras[f"{part}.{key}"] = tensor
                else:
                    unknown.append(f"{part}: {key}")
        if unknown:
            raise InputError(f"{path}: {len(unknown)} left over (a file of {what} has no such key): {listed(unknown)}")
        return model, extras

    def to_released(
        self, checkpoint: Checkpoint, names: tuple[str, ...], path: str | Path
    ) -> dict[str, dict[str, Tensor]]:
        """The parts `names` of a checkpoint; InputError that names a weight without a place in them.

        Tensors that only released files hold are those that were read, else the initial values of the original code.
        """
        parts = {name: OrderedDict() for name in names}
        for key, tensor in checkpoint.model.items():
            rule, name = self._released(key)
            if rule is None or rule.part not in parts:
                raise InputError(f"{path}: the released layout has no place for {key}")
            parts[rule.part][name] = tensor.reshape((1,) * rule.ones + tuple(tensor.shape))
        for twin in self.twins:
            for used in list(parts[twin.part]):
                if name := _rename(used, twin.used, twin.repeated):
                    parts[twin.part][name] = parts[twin.part][used]
        for row in self.unused:
            if row.default is not None:
                parts[row.part][row.released] = row.default(checkpoint.config)
        for name, tensor in checkpoint.extras.items():
            part, _, key = name.partition(".")
            if part not in parts:
                raise InputError(f"{checkpoint.path}: extras holds {shown(name)}, expected {', '.join(parts)} in front")
            parts[part][key] = tensor
        return parts

    def _ours(self, part: str, key: str) -> tuple[Rule, str] | tuple[None, None]:
        renamed = ((rule, _rename(key, rule.released, rule.ours)) for rule in self.rules if rule.part == part)
        return next(((rule, name) for rule, name in renamed if name), (None, None))

    def _released(self, key: str) -> tuple[Rule, str] | tuple[None, None]:
        renamed = ((rule, _rename(key, rule.ours, rule.released)) for rule in self.rules)
        return next(((rule, name) for rule, name in renamed if name), (None, None))

    def _used(self, part: str, key: str) -> str | None:
        """The name that counts of a layer that is registered twice."""
        names = (_rename(key, twin.repeated, twin.used) for twin in self.twins if twin.part == part)
        return next((name for name in names if name), None)


@functools.cache
def _regex(pattern: str) -> re.Pattern:
    names = {"{k}": r"(?P<k>0|[1-9][0-9]?)", "{k-1}": r"(?P<less>0|[1-9][0-9]?)", "{rest}": r"(?P<rest>.+)"}
    return re.compile("".join(names.get(piece, re.escape(piece)) for piece in re.split(r"(\{.*?\})", pattern)))


def _rename(key: str, pattern: str, target: str) -> str | None:
    """`key`, which has the form of `pattern`, in the form of `target`; None when it hasn't."""
    match = _regex(pattern).fullmatch(key)
    if match is None:
        return None
    found = match.groupdict()
    k = int(found["k"]) if "k" in found else int(found["less"]) + 1 if "less" in found else 0
    return target.replace("{k}", str(k)).replace("{k-1}", str(k - 1)).replace("{rest}", found.get("rest") or "")


def _without_ones(tensor: Tensor, ones: int, where: str) -> Tensor:
    if tensor.shape[:ones] != (1,) * ones:
        raise InputError(f"{where} has the shape {tuple(tensor.shape)}, expected it to begin with {(1,) * ones}")
    return tensor.reshape(tensor.shape[ones:])


def _repeats(tensor: Tensor, used: Tensor | None, where: str) -> bool:
    """Whether a layer under its first name equals the one that counts; InputError if its shape differs."""
    if used is None:
        return False
    if tensor.shape != used.shape:
        raise InputError(
            f"{where} has the shape {tuple(tensor.shape)}, but the layer that it repeats has {tuple(used.shape)}"
        )
    return (tensor.data_ptr() == used.data_ptr() and tensor.stride() == used.stride()) or torch.equal(tensor, used)
