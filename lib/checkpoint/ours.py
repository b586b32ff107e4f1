"""Our checkpoint format: one dict of plain values and tensors that loads with weights_only=True."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lib.checkpoint.content import Checkpoint, dense_tensors, shown
from lib.config import ModelConfig
from lib.errors import InputError
from lib.files import atomic_write

FORMAT, VERSION = "esl-checkpoint", 1
_PLAIN = (str, int, float, bool, bytes, type(None))


def save_checkpoint(
    path: str | Path,
    model: torch.nn.Module,
    *,
    optimizer: torch.optim.Optimizer | None = None,
    epoch: int = 0,
    step: int = 0,
    best_rsum: float = 0.0,
    settings: dict[str, Any] | None = None,
) -> None:
    """Write a MatchingModel and the state of its training; the file of before stays whole until the new one is.

    `settings` are the run's command-line values; what is no plain value among them is written as text. Raises
    InputError when the file can't be written.
    """
    write(path, Checkpoint(
        config=model.config, model=model.state_dict(), optimizer=optimizer.state_dict() if optimizer else None,
        epoch=epoch, step=step, best_rsum=best_rsum, settings=settings or {},
    ))  # fmt: skip


def write(path: str | Path, checkpoint: Checkpoint) -> None:
    """Write a Checkpoint in our format."""
    content = {
        "format": FORMAT,
        "version": VERSION,
        "config": checkpoint.config.as_dict(),
        "model": checkpoint.model,
        "optimizer": checkpoint.optimizer,
        "epoch": checkpoint.epoch,
        "step": checkpoint.step,
        "best_rsum": checkpoint.best_rsum,
        "settings": checkpoint.settings,
    }
    if checkpoint.extras:
        content["released_extras"] = checkpoint.extras
    write_content(path, plain(content))


def write_content(path: str | Path, content: Any) -> None:
    """torch.save, atomically; InputError when the disk is full or the folder can't be written."""
    with atomic_write(path) as temporary:
        try:
            torch.save(content, temporary)
        except (OSError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:160]
            raise InputError(f"{path}: cannot be written ({reason}); is the disk full?") from None


def plain(value: Any) -> Any:
    """`value` with tensors on the CPU, numpy numbers as Python's, and text for whatever weights_only would refuse."""
    if isinstance(value, Tensor):
        return value.detach().cpu()
    if isinstance(value, dict):
        return {plain(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(plain, value)) if type(value) in (list, tuple) else list(map(plain, value))
    if isinstance(value, np.generic):
        return plain(value.item())
    return value if type(value) in _PLAIN else str(value)


def is_ours(content: Any) -> bool:
    return isinstance(content, dict) and content.get("format") == FORMAT


def read(content: dict[str, Any], path: Path) -> Checkpoint:
    """The Checkpoint of a file in our format; InputError for one of a newer version or with entries missing."""
    version = content.get("version")
    if not isinstance(version, int) or version > VERSION:
        raise InputError(f"{path}: its format is of version {shown(version)}, expected {VERSION}; update this code")
    required = {"config": dict, "model": dict, "epoch": int, "step": int, "best_rsum": (int, float), "settings": dict}
    broken = [name for name, kind in required.items() if not isinstance(content.get(name), kind)]
    if broken:
        raise InputError(f"{path}: {', '.join(broken)} missing or of a wrong type; the file was altered, save it again")
    try:
        config = ModelConfig.from_dict(content["config"])
    except (InputError, TypeError) as error:
        raise InputError(f"{path}: {shown(error, 400)}") from None
    return Checkpoint(
        config=config,
        model=dense_tensors(content["model"], f"{path}: model"),
        optimizer=content.get("optimizer"),
        epoch=content["epoch"],
        step=content["step"],
        best_rsum=content["best_rsum"],
        settings=content["settings"],
        extras=dense_tensors(content.get("released_extras", {}), f"{path}: released_extras"),
        path=path,
    )
