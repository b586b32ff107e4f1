"""Going on where a checkpoint stopped: what a run takes from it, checked, and what is said of it."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lib.checkpoint import Checkpoint
from lib.core.errors import InputError, listed, shown
from lib.files.weights import load_strictly
from lib.training.engine import Trainer
from lib.training.randomness import set_random_states
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
TOTALS = ("done", "pairs", "loss")  # of the epoch, as EpochLog takes and gives them
HIGHEST = 600.0  # RSUM, six recalls of 100 %
OWN = {"base_lr", "weight_decay"}  # entries of an optimizer's groups that are the run's, not the checkpoint's
HOW = {"foreach", "maximize", "capturable", "differentiable", "fused", "decoupled_weight_decay"}  # as torch computes it


def resume(run: Run, trainer: Trainer, checkpoint: Checkpoint) -> None:
    """Go on where a checkpoint stopped: optimizer, loss, epoch, step and best RSUM. Says which settings differ.

    The best RSUM starts anew where it was measured on other data. Raises InputError for a checkpoint without an
    optimizer, or with another one, and for a state that no run can have been in.
    """
    path = checkpoint.path
    if checkpoint.optimizer is None:
        raise InputError(
            f"{path}: holds no optimizer state (model_best.pth and released files do not); resume from {LATEST}, or "
            "add --reset_start_epoch to start from its weights"
        )
    _check_progress(checkpoint)
    try:
        state = _fitting_state(trainer.optimizer, checkpoint)
    except ValueError as error:
        reason = f"its optimizer state does not fit ({shown(error, 200)}); use the same --optim"
        raise InputError(f"{path}: {reason}") from None
    load_strictly(
        trainer.criterion, checkpoint.criterion, f"{path}: not the parameters of the loss; use the same --loss"
    )
    trainer.optimizer.load_state_dict(state)
    for name in STATE:
        setattr(run, name, getattr(checkpoint, name))
    run.position = _position(checkpoint, run, trainer.runner.devices)
    changed = _changed(checkpoint.settings, run.settings)
    for name in changed:
        if name not in FREE - vars(trainer.schedule).keys() and run.settings[name] is not None:  # None: another model's
            was, now = shown(checkpoint.settings[name]), run.settings[name]
            logger.info("note: --%s was %s when %s was written and is %s now", name, was, path, now)
    best = f", best RSUM {run.best_rsum:.1f}" if run.best_rsum >= 0 else ""
    logger.info("resumed %s: epoch %d, step %d%s", path, run.epoch, run.step, best)
    if moved := [f"--{name}" for name in changed if name in JUDGED_ON]:
        run.best_rsum = -1.0
        logger.info("note: %s changed, so the best RSUM starts anew", " and ".join(moved))


def _check_progress(checkpoint: Checkpoint) -> None:
    """InputError for an epoch, a step or an RSUM that no run has."""
    step = checkpoint.step if _is_number(checkpoint.step, int) else 0
    for name, kind, low, high in (
        ("step", int, 0, 1 << 53),
        ("epoch", int, 0, step),  # an epoch has a step at least
        ("best_step", int, 0, step),
        ("best_rsum", float, -1, HIGHEST),
    ):
        value = getattr(checkpoint, name)
        if not _is_number(value, kind, low, high):
            expected = f"{'a whole number' if kind is int else 'a number'} from {low} to {high:.0f}"
            reason = f"its {name} is {shown(value)}, expected {expected}; go on from another checkpoint"
            raise InputError(f"{checkpoint.path}: {reason}")


def _is_number(value: Any, kind: type, low: float = 0, high: float = math.inf) -> bool:
    """Whether a value from a file is a finite number of `kind` from `low` to `high`."""
    return type(value) in (int, kind) and low <= value <= high and math.isfinite(value)


def _position(checkpoint: Checkpoint, run: Run, devices: list) -> dict[str, Any]:
    """Where in its epoch a run goes on, in batches of its own size; InputError for a position that is none."""
    if not checkpoint.position:
        return {}
    try:
        done, pairs, loss = (checkpoint.position[name] for name in TOTALS)
        size = checkpoint.settings["batch_size"]
        if not (_is_number(done, int, 0, checkpoint.step) and _is_number(pairs, int) and _is_number(loss, float)):
            raise ValueError(f"{done} steps, {pairs} pairs, loss {loss}")
        if not _is_number(size, int, 1):
            raise ValueError(f"--batch_size was {size}")
        for states in checkpoint.position["random"] or [None]:
            set_random_states(states, devices)
    except (KeyError, TypeError, ValueError, OverflowError, RuntimeError) as error:
        reason = f"its position within the epoch is damaged ({shown(error)}); go on from another checkpoint"
        raise InputError(f"{checkpoint.path}: {reason}") from None
    done = done * size // run.settings["batch_size"]
    return {"done": done, "pairs": pairs, "loss": loss, "random": checkpoint.position["random"]}


def _changed(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """The settings that are others now; a value that no flag has is none."""
    flags = {name for name, value in before.items() if isinstance(value, str | int | float | None)}
    return sorted(name for name in flags & now.keys() if _place(name, before) != _place(name, now))


def _place(name: str, settings: dict[str, Any]):
    """A setting as it is compared: one folder may be named in several ways."""
    value = settings[name]
    return Path(value).resolve() if name == "data_path" and isinstance(value, str) and "\0" not in value else value


# ---- the optimizer ----


def _fitting_state(optimizer: torch.optim.Optimizer, checkpoint: Checkpoint) -> dict[str, Any]:
    """The state of a checkpoint as this optimizer loads it: its tensors and rates, everything else is the run's own.

    Raises ValueError for that of another optimizer, and for values that none keeps.
    """
    own, saved = optimizer.state_dict(), checkpoint.optimizer
    groups, states = saved.get("param_groups"), saved.get("state")
    if not isinstance(groups, list) or not isinstance(states, dict) or not all(isinstance(g, dict) for g in groups):
        raise ValueError("it has no groups or no state")
    if len(groups) != len(own["param_groups"]):
        raise ValueError(f"it has {len(groups)} groups of parameters, not {len(own['param_groups'])}")
    for group, mine in zip(groups, own["param_groups"], strict=True):
        _check_group(group, mine)
        mine["lr"] = group["lr"]
    places = {place for group in own["param_groups"] for place in group["params"]}
    if strange := [place for place in states if place not in places]:
        raise ValueError(f"it has values of a parameter {strange[0]}")
    for group, mine in zip(optimizer.param_groups, own["param_groups"], strict=True):
        kept = _kept(optimizer, group)
        for place, weight in zip(mine["params"], group["params"], strict=True):
            if states.get(place):
                _check_state(states[place], kept, weight, checkpoint.step)
    return {"state": states, "param_groups": own["param_groups"]}


def _check_group(group: dict[str, Any], mine: dict[str, Any]) -> None:
    """ValueError unless a group is the run's own in all but what may differ."""
    if other := sorted(map(str, (group.keys() ^ mine.keys()) - HOW)):
        raise ValueError(f"it is of another optimizer, told by {other[0]}")
    for name in sorted(mine.keys() - HOW - OWN - {"lr"}):
        if type(group[name]) is not type(mine[name]) or group[name] != mine[name]:
            what = "other parameters" if name == "params" else f"{name} {group[name]}, not {mine[name]}"
            raise ValueError(f"it has {what}")
    if not _is_number(group["lr"], float):
        raise ValueError(f"it has the learning rate {group['lr']}")


def _kept(optimizer: torch.optim.Optimizer, group: dict[str, Any]) -> dict[str, Any]:
    """What such an optimizer keeps of a parameter (2,) of a group after a step."""
    weight = nn.Parameter(torch.zeros(2, device=group["params"][0].device))
    weight.grad = torch.zeros_like(weight)
    probe = type(optimizer)([group | {"params": [weight]}])
    probe.step()
    return probe.state[weight]


def _check_state(state: Any, kept: dict[str, Any], weight: nn.Parameter, step: int) -> None:
    """ValueError unless a parameter's state is of the form of `kept` and of finite numbers."""
    if not isinstance(state, dict) or state.keys() != kept.keys():
        found = listed(list(state)) if isinstance(state, dict) else type(state).__name__
        raise ValueError(f"it keeps {found} of a parameter, not {', '.join(kept)}")
    for name, like in kept.items():
        value = state[name]
        if isinstance(like, Tensor):
            shape = weight.shape if like.shape == (2,) else like.shape
            if not isinstance(value, Tensor) or value.shape != shape or not value.is_floating_point():
                raise ValueError(f"its {name} does not have the form of the parameter")
        elif type(value) is not type(like):
            raise ValueError(f"its {name} is {value}")
        if value is not None:
            _check_range(name, torch.as_tensor(value), step)


def _check_range(name: str, values: Tensor, step: int) -> None:
    """ValueError unless numbers are finite, squares not negative, and steps no more than the run has had."""
    smallest, largest = (float(end) for end in values.aminmax())
    low = 0 if name == "step" or name.endswith("_sq") else -math.inf
    high = step if name == "step" else math.inf
    if not (low <= smallest and largest <= high and math.isfinite(smallest) and math.isfinite(largest)):
        raise ValueError(f"its {name} reaches from {smallest:g} to {largest:g}")
