"""A run on disk: its checkpoints, which of them it goes on from, and what becomes of those of an earlier run."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import itertools
import logging
import os
import sys
from pathlib import Path
from typing import Any

from lib.checkpoint import Checkpoint, read_checkpoint
from lib.checkpoint.native import written
from lib.core.errors import InputError
from lib.distributed.launch import is_main
from lib.distributed.messages import gather_objects
from lib.evaluation.metrics import Retrieval
from lib.files.writing import remove_leftovers
from lib.training.engine import Trainer
from lib.training.lock import locked
from lib.training.progress import EpochLog
from lib.training.randomness import random_states
from lib.training.record import CONFIG, METRICS
from lib.training.stopping import Stop
from lib.training.tracking import Tracker

logger = logging.getLogger("esl")
LATEST, PREVIOUS, BEST = "checkpoint.pth", "checkpoint_previous.pth", "model_best.pth"
STATE = ("epoch", "step", "best_rsum", "best_step", "position")  # of a run, as its checkpoints hold it


@dataclasses.dataclass
class Run:
    """A run on disk: where it writes, its command-line values, how far it is, the best RSUM on its validation split.

    `position` is {} between epochs. Within one it holds `EpochLog.totals` and the random states of every process.
    """

    folder: Path
    settings: dict[str, Any]
    command: str = ""
    epoch: int = 0
    step: int = 0
    best_rsum: float = -1.0
    best_step: int = 0
    position: dict[str, Any] = dataclasses.field(default_factory=dict)
    tracker: Tracker = dataclasses.field(default_factory=lambda: Tracker(None))
    stop: Stop = dataclasses.field(default_factory=Stop)
    held: contextlib.ExitStack = dataclasses.field(default_factory=contextlib.ExitStack)  # its lock, until it ends
    locked: bool = False
    unsaved_best: Checkpoint | None = None  # the best model, while the disk had no room for it
    failure: str | None = None  # why the last save failed

    def lock(self) -> None:
        """Make the folder if need be, and keep other runs out of it; InputError where one is going on there."""
        if is_main() and not self.locked:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.held.enter_context(locked(self.folder))
            self.locked = True
            remove_leftovers(self.folder)

    def track(self, result: Retrieval) -> Retrieval:
        """Write the recalls of a validation to the tracker, and return them."""
        split = self.settings["val_split"]
        for direction in ("i2t", "t2i"):
            self.tracker.scalars(self.step, f"{split}/{direction}_", **getattr(result, direction).as_dict())
        self.tracker.scalars(self.step, f"{split}/", rsum=result.rsum)
        recalls = {"rsum": result.rsum, "i2t": result.i2t, "t2i": result.t2i}
        self.tracker.line(self.step, epoch=self.epoch, split=split, **recalls)
        return result

    def improves(self, result: Retrieval) -> bool:
        """Keep the RSUM of a validation if it is the best so far; True if it is."""
        improved = result.rsum > self.best_rsum
        if improved:
            self.best_rsum, self.best_step = result.rsum, self.step
        return improved

    def save(self, trainer: Trainer, improved: bool = False) -> None:
        """Write the latest state, and the best model where it `improved` or could not be written before.

        Both are whole on the disk before either takes its place, the latest first; `mend` knows a crash in between.
        What can't be written is said, and written with the next save. Of several processes the first writes.
        """
        if not is_main():
            return
        state = {name: getattr(self, name) for name in (*STATE, "settings")}
        model = trainer.runner.model
        best, chosen_on = self.unsaved_best, self.settings.get("val_split")
        if improved:
            best = Checkpoint(model.config, model.state_dict(), **state, chosen_on=chosen_on)
        state |= {"optimizer": trainer.optimizer.state_dict(), "criterion": trainer.criterion.state_dict()}
        latest = Checkpoint(model.config, model.state_dict(), **state)
        try:
            with written(self.folder / BEST, best) if best else contextlib.nullcontext():
                with written(self.folder / LATEST, latest):
                    if (self.folder / LATEST).exists():
                        os.replace(self.folder / LATEST, self.folder / PREVIOUS)
            self.unsaved_best = self.failure = None
        except (InputError, OSError) as error:
            self.unsaved_best, self.failure = copy.deepcopy(best), f"step {self.step} was not saved: {error}"
            logger.warning("warning: %s; training goes on and saves at the next occasion", self.failure)

    def save_within(self, trainer: Trainer, log: EpochLog, improved: bool = False) -> None:
        """Save in the middle of an epoch, and the best model where it `improved` there."""
        self.position = log.totals() | {"random": gather_objects(random_states(trainer.runner.devices))}
        self.save(trainer, improved)

    def mend(self, checkpoint: Checkpoint) -> None:
        """Write the best model again where a crash came between the two files of a save."""
        if checkpoint.best_rsum < 0 or checkpoint.best_step != checkpoint.step:
            return
        with contextlib.suppress(InputError):  # none, or a damaged one
            if read_checkpoint(self.folder / BEST).step == checkpoint.step:
                return
        chosen_on = checkpoint.settings.get("val_split")
        best = dataclasses.replace(checkpoint, optimizer=None, criterion={}, chosen_on=chosen_on)
        with written(self.folder / BEST, best):
            pass


def newest_checkpoint(folder: Path, paths: dict[str, Any]) -> Checkpoint | None:
    """The newest checkpoint of a run that can be read, if there is one; says which is passed over."""
    for path in (folder / LATEST, folder / PREVIOUS):
        if path.exists():
            try:
                return read_checkpoint(path, paths)
            except InputError as error:
                print(f"note: passed over, since it can't be read: {error}", file=sys.stderr)
    return None


def move_aside(folder: Path) -> None:
    """Move the checkpoints of an earlier run, with what is said of them, into a folder of their own, so that a new run
    overwrites none."""
    names = [name for name in (LATEST, PREVIOUS, BEST, METRICS, CONFIG) if (folder / name).exists()]
    if {LATEST, PREVIOUS, BEST} & set(names):
        aside = next(path for n in itertools.count(1) if not (path := folder / f"earlier_{n}").exists())
        aside.mkdir()
        for name in names:
            (folder / name).rename(aside / name)
        print(f"note: the checkpoints of an earlier run were moved to {aside}", file=sys.stderr)
