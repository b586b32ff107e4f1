"""Going on where a checkpoint stopped: the state that a run takes from it, and the notes on changed settings."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from torch import Tensor

from lib.checkpoint import Checkpoint
from lib.core.errors import InputError, listed, shown
from lib.files.weights import load_strictly
from lib.training.engine import Trainer
from lib.training.run import LATEST, STATE, Run

logger = logging.getLogger("esl")
# Settings that a resumed run may change without training another model.
FREE = {
    "workers", "device", "score_memory", "kernels", "resume", "reset_start_epoch", "log_step", "val_step",
    "save_step", "logger_name", "model_name", "data_path", "val_split", "image_list", "num_epochs", "word_vectors",
    "precomp_enc_type", "validations",
}  # fmt: skip
# Settings without which an RSUM can't be compared with an earlier one.
JUDGED_ON = ("data_name", "data_path", "val_split")
OWN = {"lr", "base_lr", "weight_decay"}  # entries of an optimizer's groups that may differ
HOW = {"foreach", "maximize", "capturable", "differentiable", "fused", "decoupled_weight_decay"}  # as torch computes it


def resume(run: Run, trainer: Trainer, checkpoint: Checkpoint) -> None:
    """Go on where a checkpoint stopped: optimizer, loss, epoch, step and best RSUM. Says which settings differ.

    The best RSUM starts anew where it was measured on other data. Raises InputError for a checkpoint without an
    optimizer, or with another optimizer or loss.
    """
    path = checkpoint.path
    if checkpoint.optimizer is None:
        raise InputError(
            f"{path}: holds no optimizer state (model_best.pth and released files do not); resume from {LATEST}, or "
            "add --reset_start_epoch to start from its weights"
        )
    changed = _changed(checkpoint.settings, run.settings)
    if "optim" in changed:
        raise InputError(f"{path}: its optimizer state does not fit (another optimizer); use the same --optim")
    state = _optimizer_state(trainer, checkpoint)
    load_strictly(
        trainer.criterion, checkpoint.criterion, f"{path}: not the parameters of the loss; use the same --loss"
    )
    trainer.optimizer.load_state_dict(state)
    for name in STATE:
        setattr(run, name, getattr(checkpoint, name))
    if run.position:  # in batches of this run's size
        pairs = run.position["done"] * checkpoint.settings["batch_size"]
        run.position = run.position | {"done": pairs // run.settings["batch_size"]}
    for name in changed:
        if name not in FREE - vars(trainer.schedule).keys() and run.settings[name] is not None:  # None: another model's
            was, now = shown(checkpoint.settings[name]), run.settings[name]
            logger.info("note: --%s was %s when %s was written and is %s now", name, was, path, now)
    best = f", best RSUM {run.best_rsum:.1f}" if run.best_rsum >= 0 else ""
    logger.info("resumed %s: epoch %d, step %d%s", path, run.epoch, run.step, best)
    if moved := [f"--{name}" for name in changed if name in JUDGED_ON]:
        run.best_rsum = -1.0
        logger.info("note: %s changed, so the best RSUM starts anew", " and ".join(moved))


def _changed(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """The settings that are others now; a value that no flag has is none."""
    flags = {name for name, value in before.items() if isinstance(value, str | int | float | None)}
    return sorted(name for name in flags & now.keys() if _place(name, before) != _place(name, now))


def _place(name: str, settings: dict[str, Any]):
    """A setting as it is compared: one folder may be named in several ways."""
    value = settings[name]
    return Path(value).resolve() if name == "data_path" and isinstance(value, str) and "\0" not in value else value


def _optimizer_state(trainer: Trainer, checkpoint: Checkpoint) -> dict[str, Any]:
    """The state of a checkpoint as the optimizer loads it: its tensors and rates, everything else is the run's own.

    Raises InputError if it is the state of another optimizer or of other parameters.
    """
    misfit, remedy = f"{checkpoint.path}: its optimizer state does not fit", "use the same --optim"
    groups, states = checkpoint.optimizer["param_groups"], checkpoint.optimizer["state"]
    own_groups = trainer.optimizer.state_dict()["param_groups"]
    if len(groups) != len(own_groups):
        raise InputError(f"{misfit} ({len(groups)} groups of parameters, not {len(own_groups)}); {remedy}")
    for group, own in zip(groups, own_groups, strict=True):
        entries = sorted((group.keys() | own.keys()) - OWN - HOW)
        if differing := [entry for entry in entries if group.get(entry) != own.get(entry)]:
            raise InputError(f"{misfit} (another {listed(differing)}); {remedy}")
        own["lr"] = group["lr"]
    weights = [*trainer.runner.model.named_parameters(), *trainer.criterion.named_parameters()]
    names = {weight: name for name, weight in weights}
    for group, own in zip(trainer.optimizer.param_groups, own_groups, strict=True):
        for place, weight in zip(own["params"], group["params"], strict=True):
            for key, value in states.get(place, {}).items():
                if isinstance(value, Tensor) and value.numel() != 1 and value.shape != weight.shape:
                    shapes = f"{tuple(value.shape)}, the weight {tuple(weight.shape)}"
                    raise InputError(f"{misfit} ({key} of {names[weight]} has the shape {shapes}); {remedy}")
    return {"state": states, "param_groups": own_groups}
