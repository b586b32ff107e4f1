"""The epochs of a run: train, validate, keep the latest and the best checkpoint."""

from __future__ import annotations

import dataclasses
import itertools
import logging
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lib.checkpoint import Checkpoint, save_checkpoint
from lib.datasets.loaders import Loader
from lib.errors import InputError
from lib.evaluation.metrics import Retrieval
from lib.evaluation.report import format_table
from lib.pytorch_files import load_strictly
from lib.training.engine import Trainer
from lib.training.tracking import EpochLog, Tracker

logger = logging.getLogger("esl")
LATEST, BEST = "checkpoint.pth", "model_best.pth"
# Settings that a resumed run may change without training another model.
FREE = {
    "workers", "device", "score_memory", "kernels", "resume", "reset_start_epoch", "log_step", "val_step",
    "logger_name", "model_name", "data_path", "val_split", "image_list", "num_epochs", "word_vectors",
    "precomp_enc_type", "validations",
}  # fmt: skip
# Entries of an optimizer's groups that a resumed run has of its own.
OWN = ("base_lr", "weight_decay", "fused")
# Settings without which an RSUM can't be compared with an earlier one.
JUDGED_ON = ("data_name", "data_path", "val_split")


@dataclasses.dataclass
class Run:
    """A run on disk: where it writes, its command-line values, how far it is, the best RSUM on its validation split."""

    folder: Path
    settings: dict[str, Any]
    epoch: int = 0
    step: int = 0
    best_rsum: float = -1.0
    tracker: Tracker = dataclasses.field(default_factory=lambda: Tracker(None))

    def save(self, trainer: Trainer, improved: bool) -> None:
        """Write the latest state, and before it the best model where it `improved`: after a crash in between, a resumed
        run repeats the epoch and writes both."""
        if improved:
            self.save_best(trainer)
        state = self._state() | {"criterion": trainer.criterion.state_dict()}
        save_checkpoint(self.folder / LATEST, trainer.runner.model, optimizer=trainer.optimizer, **state)

    def save_best(self, trainer: Trainer) -> None:
        """Write the best model, without the state of its training."""
        save_checkpoint(self.folder / BEST, trainer.runner.model, **self._state())

    def _state(self) -> dict[str, Any]:
        return {key: getattr(self, key) for key in ("epoch", "step", "best_rsum", "settings")}


def fit(trainer: Trainer, loader: Loader, run: Run, validate: Callable[[], Retrieval]) -> None:
    """Train until the run's `num_epochs` are done, keeping the model with the best RSUM.

    `validate()` gives the recalls on the validation split, `validations` times an epoch, the last time at its end;
    every `val_step` steps (0: never) they are logged as well, which never chooses a model.
    """
    split, val_step, num_epochs = (run.settings[name] for name in ("val_split", "val_step", "num_epochs"))
    steps = len(loader.batch_sampler)
    within = validation_steps(steps, run.settings.get("validations", 1))[:-1]  # of an epoch, before its end

    def validated(step: int) -> Retrieval:
        result = validate()
        for direction in ("i2t", "t2i"):
            run.tracker.scalars(step, f"{split}/{direction}_", **getattr(result, direction).as_dict())
        run.tracker.scalars(step, f"{split}/", rsum=result.rsum)
        return result

    def after_step(step: int) -> None:
        if step - start in within:
            result = validated(step)
            improved = result.rsum > run.best_rsum
            if improved:
                run.best_rsum = result.rsum
                run.save_best(trainer)
            logger.info("step %d  %s RSUM %.1f%s", step, split, result.rsum, "   best so far" if improved else "")
        elif val_step and step % val_step == 0:
            logger.info("step %d  %s RSUM %.1f", step, split, validated(step).rsum)

    if run.epoch >= num_epochs:
        logger.info("nothing to train: the checkpoint has %d epochs and --num_epochs is %d", run.epoch, num_epochs)
    for epoch in range(run.epoch, num_epochs):
        began, start = time.perf_counter(), run.step
        with EpochLog(run.tracker, epoch, steps, run.settings["log_step"]) as log:
            run.step = trainer.train_epoch(loader, epoch, run.step, log, after_step)
        result = validated(run.step)
        improved = result.rsum > run.best_rsum
        run.epoch, run.best_rsum = epoch + 1, max(run.best_rsum, result.rsum)
        run.save(trainer, improved)
        seconds = time.perf_counter() - began
        logger.info("epoch %d done in %.0f s%s", epoch, seconds, "   best so far" if improved else "")
        logger.info(format_table([(f"{run.settings['data_name']} {split}", result)]))


def validation_steps(steps: int, validations: int) -> list[int]:
    """After which of an epoch's steps, from 1, a model is validated: evenly spread, rounded down, the last at its end
    (released code of CLIP-based ESL)."""
    return [number * (steps - 1) // validations + 1 for number in range(1, validations + 1)]


def resume(run: Run, trainer: Trainer, checkpoint: Checkpoint) -> None:
    """Go on where a checkpoint stopped: optimizer, loss, epoch, step and best RSUM. Says which settings differ.

    The best RSUM starts anew where it was measured on other data. Raises InputError for a checkpoint without an
    optimizer, or with another one.
    """
    path = checkpoint.path
    if checkpoint.optimizer is None:
        raise InputError(
            f"{path}: holds no optimizer state (model_best.pth and released files do not); resume from {LATEST}, or "
            "add --reset_start_epoch to start from its weights"
        )
    _restore(trainer.optimizer, checkpoint)
    load_strictly(
        trainer.criterion, checkpoint.criterion, f"{path}: not the parameters of the loss; use the same --loss"
    )
    run.epoch, run.step, run.best_rsum = checkpoint.epoch, checkpoint.step, checkpoint.best_rsum
    before, now = checkpoint.settings, run.settings
    changed = sorted(name for name in before.keys() & now.keys() if _place(name, before) != _place(name, now))
    for name in changed:
        if name not in FREE - vars(trainer.schedule).keys() and now[name] is not None:  # None: a flag of another model
            logger.info("note: --%s was %s when %s was written and is %s now", name, before[name], path, now[name])
    logger.info("resumed %s: epoch %d, step %d, best RSUM %.1f", path, run.epoch, run.step, run.best_rsum)
    if moved := [f"--{name}" for name in changed if name in JUDGED_ON]:
        run.best_rsum = -1.0
        logger.info("note: %s changed, so the best RSUM starts anew", " and ".join(moved))


def _place(name: str, settings: dict[str, Any]):
    """A setting as it is compared: one folder may be named in several ways."""
    value = settings[name]
    return Path(value).resolve() if name == "data_path" and isinstance(value, str) else value


def _restore(optimizer, checkpoint: Checkpoint) -> None:
    """Give the optimizer its state back, but for what is OWN to this run."""
    own = [{name: group[name] for name in OWN if name in group} for group in optimizer.param_groups]
    try:
        saved = checkpoint.optimizer["param_groups"]
        if any(("betas" in group) != ("betas" in optimizer.defaults) for group in saved):
            raise ValueError("it is of another optimizer")
        if len(saved) != len(own):
            raise ValueError(f"it has {len(saved)} groups of parameters, not {len(own)}")
        groups = [group | mine for group, mine in zip(saved, own, strict=True)]
        optimizer.load_state_dict({**checkpoint.optimizer, "param_groups": groups})
    except (ValueError, KeyError) as error:
        reason = f"its optimizer state does not fit ({error}); use the same --optim"
        raise InputError(f"{checkpoint.path}: {reason}") from None


def move_aside(folder: Path) -> None:
    """Move the checkpoints of an earlier run into a folder of their own, so that a new run overwrites none."""
    earlier = [folder / name for name in (LATEST, BEST) if (folder / name).exists()]
    if earlier:
        aside = next(path for n in itertools.count(1) if not (path := folder / f"earlier_{n}").exists())
        aside.mkdir()
        for file in earlier:
            file.rename(aside / file.name)
        print(f"note: the checkpoints of an earlier run were moved to {aside}", file=sys.stderr)
