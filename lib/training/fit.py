"""The epochs of a run: train, validate, keep the latest and the best checkpoint."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from lib.core.errors import InputError
from lib.datasets.loaders import Loader
from lib.distributed.launch import rank
from lib.evaluation.metrics import Retrieval
from lib.evaluation.report import recall_table
from lib.evaluation.tables import text
from lib.training.engine import Trainer
from lib.training.progress import EpochLog
from lib.training.randomness import set_random_states
from lib.training.resuming import TOTALS
from lib.training.run import Run
from lib.training.stopping import Stopped

logger = logging.getLogger("esl")


def fit(trainer: Trainer, loader: Loader, run: Run, validate: Callable[[], Retrieval]) -> None:
    """Train until the run's `num_epochs` are done, keeping the model with the best RSUM.

    `validate()` gives the recalls on the validation split, `validations` times an epoch, the last time at its end;
    every `val_step` steps (0: never) they are logged as well, which never chooses a model. Every `save_step` steps (0:
    never), and when a signal stops the run, the state within the epoch is saved. Raises Stopped then, and InputError
    when the last state could not be saved.
    """
    names = "val_split", "val_step", "save_step", "num_epochs", "log_step"
    split, val_step, save_step, num_epochs, log_step = (run.settings[name] for name in names)
    heading, steps = f"{run.settings['data_name']} {split}", len(loader.batch_sampler)
    within = validation_steps(steps, run.settings.get("validations", 1))[:-1]  # of an epoch, before its end

    def validated(step: int) -> Retrieval:
        result = validate()
        for direction in ("i2t", "t2i"):
            run.tracker.scalars(step, f"{split}/{direction}_", **getattr(result, direction).as_dict())
        run.tracker.scalars(step, f"{split}/", rsum=result.rsum)
        run.tracker.line(step, epoch=epoch, split=split, rsum=result.rsum, i2t=result.i2t, t2i=result.t2i)
        return result

    def improves(result: Retrieval, step: int) -> bool:
        improved = result.rsum > run.best_rsum
        if improved:
            run.best_rsum, run.best_step = result.rsum, step
        return improved

    def after_step(step: int) -> None:
        run.step = step
        if step - start in within:  # no signal cuts it short, or the resumed run would miss it
            result = validated(step)
            improved = improves(result, step)
            if improved:
                run.save_within(trainer, log, improved)
            logger.info("step %d  %s RSUM %.1f%s", step, split, result.rsum, "   best so far" if improved else "")
        elif val_step and step % val_step == 0:
            with run.stop.waiting(False):
                logger.info("step %d  %s RSUM %.1f", step, split, validated(step).rsum)
        if save_step and step % save_step == 0:
            run.save_within(trainer, log)
        run.stop.check()

    between, header = 0.0, True  # seconds that an epoch spends beside its steps; whether the table's head is to come
    if run.epoch >= num_epochs:
        logger.info("nothing to train: the checkpoint has %d epochs and --num_epochs is %d", run.epoch, num_epochs)
    for epoch in range(run.epoch, num_epochs):
        began = time.perf_counter()
        totals = {name: run.position[name] for name in TOTALS} if run.position else {}
        if run.position:
            _set_random_states(run, trainer)
        mean = getattr(trainer.criterion, "mean", False)
        log = EpochLog(run.tracker, epoch, steps, log_step, num_epochs, between, mean, **totals)
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
            improved = improves(result, run.step)
            run.epoch, run.position = epoch + 1, {}
            run.save(trainer, improved)
            seconds = time.perf_counter() - began
            between, best = seconds - log.data_time - log.step_time, "   best so far" if improved else ""
            label = f"epoch {epoch:<{len(str(num_epochs - 1))}}"
            *head, line = text(recall_table([(label, result)])._replace(words=[heading]), width=6).splitlines()
            for said in (*(head if header else ()), f"{line}   {seconds:.0f} s{best}"):
                logger.info(said)
            header = False
    if run.failure:
        raise InputError(run.failure)


def validation_steps(steps: int, validations: int) -> list[int]:
    """After which of an epoch's steps, from 1, a model is validated: evenly spread, rounded down, the last at its end
    (released code of CLIP-based ESL)."""
    return [number * (steps - 1) // validations + 1 for number in range(1, validations + 1)]


def _set_random_states(run: Run, trainer: Trainer) -> None:
    """Go on with the random states of this process, or with new ones where it wasn't there before."""
    states = run.position["random"]
    if rank() < len(states):
        set_random_states(states[rank()], trainer.runner.devices)
    else:
        trainer.seed_epoch(run.epoch, run.position["done"])
