"""The epochs of a run: train, validate, keep the latest and the best checkpoint."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lib.checkpoint import Checkpoint
from lib.datasets.loaders import Loader
from lib.distributed import rank
from lib.errors import InputError, shown
from lib.evaluation.metrics import Retrieval
from lib.evaluation.report import format_table
from lib.training.engine import Trainer
from lib.training.randomness import set_random_states
from lib.training.run import LATEST, STATE, Run
from lib.training.stopping import Stopped
from lib.training.tracking import EpochLog
from lib.weights import load_strictly

logger = logging.getLogger("esl")
# Settings that a resumed run may change without training another model.
FREE = {
    "workers", "device", "score_memory", "kernels", "resume", "reset_start_epoch", "log_step", "val_step",
    "save_step", "logger_name", "model_name", "data_path", "val_split", "image_list", "num_epochs", "word_vectors",
    "precomp_enc_type", "validations",
}  # fmt: skip
# Entries of an optimizer's groups that a resumed run has of its own.
OWN = ("base_lr", "weight_decay", "fused")
TOTALS = {"done": int, "pairs": int, "loss": float}  # of the epoch, as EpochLog takes and gives them
# Settings without which an RSUM can't be compared with an earlier one.
JUDGED_ON = ("data_name", "data_path", "val_split")


def fit(trainer: Trainer, loader: Loader, run: Run, validate: Callable[[], Retrieval]) -> None:
    """Train until the run's `num_epochs` are done, keeping the model with the best RSUM.

    `validate()` gives the recalls on the validation split, `validations` times an epoch, the last time at its end;
    every `val_step` steps (0: never) they are logged as well, which never chooses a model. Every `save_step` steps (0:
    never), and when a signal stops the run, the state within the epoch is saved. Raises Stopped then, and InputError
    when the last state could not be saved.
    """
    names = "val_split", "val_step", "save_step", "num_epochs", "log_step"
    split, val_step, save_step, num_epochs, log_step = (run.settings[name] for name in names)
    steps = len(loader.batch_sampler)
    within = validation_steps(steps, run.settings.get("validations", 1))[:-1]  # of an epoch, before its end

    def validated(step: int) -> Retrieval:
        result = validate()
        for direction in ("i2t", "t2i"):
            run.tracker.scalars(step, f"{split}/{direction}_", **getattr(result, direction).as_dict())
        run.tracker.scalars(step, f"{split}/", rsum=result.rsum)
        run.tracker.line(step, epoch=epoch, split=split, rsum=result.rsum, i2t=result.i2t, t2i=result.t2i)
        return result

    def after_step(step: int) -> None:
        run.step = step
        if step - start in within:  # no signal cuts it short, or the resumed run would miss it
            result = validated(step)
            improved = result.rsum > run.best_rsum
            if improved:
                run.best_rsum, run.best_step = result.rsum, step
                run.save_within(trainer, log, improved)
            logger.info("step %d  %s RSUM %.1f%s", step, split, result.rsum, "   best so far" if improved else "")
        elif val_step and step % val_step == 0:
            with run.stop.waiting(False):
                logger.info("step %d  %s RSUM %.1f", step, split, validated(step).rsum)
        if save_step and step % save_step == 0:
            run.save_within(trainer, log)
        run.stop.check()

    if run.epoch >= num_epochs:
        logger.info("nothing to train: the checkpoint has %d epochs and --num_epochs is %d", run.epoch, num_epochs)
    for epoch in range(run.epoch, num_epochs):
        began = time.perf_counter()
        totals = {name: run.position[name] for name in TOTALS} if run.position else {}
        if run.position:
            _set_random_states(run, trainer)
        log = EpochLog(run.tracker, epoch, steps, log_step, num_epochs, **totals)
        start = run.step - log.done
        with run.stop.waiting():
            try:
                with log:
                    run.step = trainer.train_epoch(loader, epoch, run.step, log, after_step)
                run.stop.check()
                with run.stop.waiting(False):
                    result = validated(run.step)
            except Stopped:
                run.save_within(trainer, log)
                raise
            improved = result.rsum > run.best_rsum
            if improved:
                run.best_rsum, run.best_step = result.rsum, run.step
            run.epoch, run.position = epoch + 1, {}
            run.save(trainer, improved)
            seconds = time.perf_counter() - began
            logger.info("epoch %d done in %.0f s%s", epoch, seconds, "   best so far" if improved else "")
            logger.info(format_table([(f"{run.settings['data_name']} {split}", result)]))
    if run.failure:
        raise InputError(run.failure)


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
    for name in STATE:
        setattr(run, name, getattr(checkpoint, name))
    run.position = _position(checkpoint, run, trainer.runner.devices)
    before, now = checkpoint.settings, run.settings
    changed = sorted(name for name in before.keys() & now.keys() if _place(name, before) != _place(name, now))
    for name in changed:
        if name not in FREE - vars(trainer.schedule).keys() and now[name] is not None:  # None: a flag of another model
            logger.info("note: --%s was %s when %s was written and is %s now", name, before[name], path, now[name])
    best = f", best RSUM {run.best_rsum:.1f}" if run.best_rsum >= 0 else ""
    logger.info("resumed %s: epoch %d, step %d%s", path, run.epoch, run.step, best)
    if moved := [f"--{name}" for name in changed if name in JUDGED_ON]:
        run.best_rsum = -1.0
        logger.info("note: %s changed, so the best RSUM starts anew", " and ".join(moved))


def _position(checkpoint: Checkpoint, run: Run, devices: list) -> dict[str, Any]:
    """Where in its epoch a run goes on, in batches of its own size; InputError for a position that is none."""
    if not checkpoint.position:
        return {}
    try:
        done, pairs, loss = (kind(checkpoint.position[name]) for name, kind in TOTALS.items())
        for states in checkpoint.position["random"] or [None]:
            set_random_states(states, devices)
        done = done * checkpoint.settings["batch_size"] // run.settings["batch_size"]
        if min(done, pairs) < 0:
            raise ValueError("less than nothing")
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = f"its position within the epoch is damaged ({shown(error)}); go on from another checkpoint"
        raise InputError(f"{checkpoint.path}: {reason}") from None
    return {"done": done, "pairs": pairs, "loss": loss, "random": checkpoint.position["random"]}


def _set_random_states(run: Run, trainer: Trainer) -> None:
    """Go on with the random states of this process, or with new ones where it wasn't there before."""
    states = run.position["random"]
    if rank() < len(states):
        set_random_states(states[rank()], trainer.runner.devices)
    else:
        trainer.seed_epoch(run.epoch, run.position["done"])


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
