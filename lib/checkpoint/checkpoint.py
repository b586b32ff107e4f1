"""Checkpoint: what a file holds after reading, whatever its format was."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lib.core.config import ModelConfig
from lib.core.errors import InputError, shown
from lib.model import describe


@dataclasses.dataclass
class Checkpoint:
    """A model and the state of its training, under our key names.

    `settings` are the command-line values of the run, `criterion` the parameters of its loss, `best_step` the step of
    its best model; `position` says how far inside an epoch it is, {} at the end of one. `chosen_on` is the split whose
    RSUM chose the epoch, None for the last epoch of a run and where the file doesn't say. `extras` are the tensors of a
    released file that our model has no place for ("img_enc.mlp.bns.1.weight"), kept so that it can be written again as
    it was.
    """

    config: ModelConfig
    model: dict[str, Tensor]
    optimizer: dict[str, Any] | None = None
    epoch: int = 0
    step: int = 0
    best_rsum: float = 0.0
    best_step: int = 0
    position: dict[str, Any] = dataclasses.field(default_factory=dict)
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    criterion: dict[str, Tensor] = dataclasses.field(default_factory=dict)
    extras: dict[str, Tensor] = dataclasses.field(default_factory=dict)
    origin: str = "ours"
    chosen_on: str | None = None
    path: Path | None = None

    @property
    def description(self) -> str:
        """What it is, in a few words: "released ESL-A, region features, BERT, embed_size 512"."""
        origin = "released " if self.origin != "ours" else ""
        return f"{origin}{describe(self.config)}, embed_size {self.config.embed_size}"


def dense_tensors(values: Any, where: str) -> dict[str, Tensor]:
    """`values` as a dict of ordinary tensors by name; InputError that begins with `where` if it is anything else."""
    if not isinstance(values, dict):
        raise InputError(f"{where} is a {type(values).__name__}, expected a dict of tensors")
    for key, value in values.items():
        plain = isinstance(value, Tensor) and value.layout == torch.strided and value.device.type == "cpu"
        if not isinstance(key, str) or not plain or value.is_quantized:
            raise InputError(f"{where} holds '{shown(key)}', which is no ordinary tensor; expected a state dict")
    return {key: value.detach() for key, value in values.items()}
