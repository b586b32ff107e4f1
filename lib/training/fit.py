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
from lib.training.run import Run
from lib.training.stopping import Stopped

logger = logging.getLogger("esl")
BEST_SO_FAR = "   best so far"


def fit(trainer: Trainer, loader: Loader, run: Run, validate: Callable[[], Retrieval]) -> None:
    """Train until the run's `num_epochs` are done, keeping the model with the best RSUM.

    `validate()` gives the recalls on the validation split, `validations` times an epoch, the last time at its end;
    every `val_step` steps (0: never) they are logged as well, which never chooses a model. Every `save_step` steps (0:
    never), and when a signal stops the run, the state within the epoch is saved. Raises Stopped then, and InputError
    when the last state could not be saved.
    """
    settings, first, steps = run.settings, run.epoch, len(loader.batch_sampler)
    split, val_step, save_step, num_epochs = (
        settings[name] for name in ("val_split", "val_step", "save_step", "num_epochs")
    )
    within = validation_steps(steps, settings.get("validations", 1))[:-1]  # of an epoch, before its end
    between = 0.0  # seconds that an epoch spends beside its steps
    if first >= num_epochs:
        logger.info("nothing to train: the checkpoint has %d epochs and --num_epochs is %d", first, num_epochs)
    for epoch in range(first, num_epochs):
        began = time.perf_counter()
        if run.position:
            _set_random_states(run, trainer)
        log = EpochLog(run.tracker, epoch, steps, settings["log_step"], num_epochs, between, run.position)
        with run.stop.waiting():
            try:
                with log:
                    for step in trainer.steps(loader, epoch, run.step, log.done):
                        trainer.watch(log.add(step))
                        run.step = step.number
                        if step.done == steps:
                            continue  # validated and saved below
                        if step.done in within:  # no signal cuts it short, or the resumed run would miss it
                            result = run.track(validate())
                            improved = run.improves(result)
                            if improved:
                                run.save_within(trainer, log, improved)
                            logger.info("step %d  %s RSUM %.1f%s", run.step, split, result.rsum, BEST_SO_FAR * improved)
                        elif val_step and run.step % val_step == 0:
                            with run.stop.waiting(False):
                                logger.info("step %d  %s RSUM %.1f", run.step, split, run.track(validate()).rsum)
                        if save_step and run.step % save_step == 0:
                            run.save_within(trainer, log)
                        run.stop.check()
                run.stop.check()
                with run.stop.waiting(False):
                    result = run.track(validate())
            except Stopped:
                run.save_within(trainer, log)
                raise
            improved = run.improves(result)
            run.epoch, run.position = epoch + 1, {}
            run.save(trainer, improved)
            seconds = time.perf_counter() - began
            between = seconds - log.data_time - log.step_time
            *head, row = _table(run, epoch, result)
            for line in (*(head if epoch == first else ()), f"{row}   {seconds:.0f} s{BEST_SO_FAR * improved}"):
                logger.info(line)
    if run.failure:
        raise InputError(run.failure)


def _table(run: Run, epoch: int, result: Retrieval) -> list[str]:
    """The recalls of an epoch under their heading, as lines."""
    label = f"epoch {epoch:<{len(str(run.settings['num_epochs'] - 1))}}"
    heading = f"{run.settings['data_name']} {run.settings['val_split']}"
    return text(recall_table([(label, result)])._replace(words=[heading]), width=6).splitlines()


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
