"""What changes while a model trains, as a function of epoch and step alone: there is no state to save or restore.

A new schedule is a class, and a row of SCHEDULES; its fields are flags of train.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple


class Phase(NamedTuple):
    """What holds at one step."""

    learning_rate: float  # factor of every group's rate
    hardest: bool  # whether the loss keeps the hardest negatives alone
    loss_scale: float  # factor of the loss
    fixed_blocks: int  # of the image encoder's four pre-trained blocks, the first ones


@dataclass(frozen=True)
class Schedule:
    """The schedule of VSE∞ and ESL: epochs count from 0, steps from 0 within an epoch.

    `staged`: the image encoder has pre-trained blocks. They stay fixed while embeddings warm up; in the epoch after
    that the loss is scaled by a ramp, and one more block is unfrozen after each backbone warm-up.
    """

    lr_update: int = 15
    vse_mean_warmup_epochs: int = 1
    max_violation: bool = False
    embedding_warmup_epochs: int = 1
    backbone_warmup_epochs: int = 0
    staged: bool = False

    def at(self, epoch: int, step: int, steps_per_epoch: int) -> Phase:
        """The phase of a step."""
        ramp = self.staged and epoch == self.embedding_warmup_epochs
        return Phase(
            learning_rate=0.1 if epoch >= self.lr_update else 1.0,
            hardest=self.max_violation or epoch >= self.vse_mean_warmup_epochs,
            loss_scale=step / steps_per_epoch if ramp else 1.0,
            fixed_blocks=self.fixed_blocks(epoch) if self.staged else 0,
        )

    def fixed_blocks(self, epoch: int) -> int:
        """4 (all) while embeddings warm up, then 3, 2, 1 for a backbone warm-up each, then 0."""
        since = epoch - self.embedding_warmup_epochs
        if since < 0:
            return 4
        thawed = since // self.backbone_warmup_epochs + 1 if self.backbone_warmup_epochs else 4
        return max(0, 4 - thawed)


@dataclass(frozen=True)
class CosineSchedule(Schedule):
    """The rate rises from 0 over the share `warmup` of all steps, then falls along half a cosine (released code of
    CLIP-based ESL). The rest is as in `Schedule`, but no loss is scaled: the rise takes the place of that ramp."""

    num_epochs: int = 15
    warmup: float = 0.1

    def at(self, epoch: int, step: int, steps_per_epoch: int) -> Phase:
        total, done = self.num_epochs * steps_per_epoch, epoch * steps_per_epoch + step
        rise = int(self.warmup * total)
        if done < rise:
            rate = done / rise
        else:
            rate = (1 + math.cos(math.pi * (done - rise) / max(1, total - rise))) / 2
        return super().at(epoch, step, steps_per_epoch)._replace(learning_rate=rate, loss_scale=1.0)


SCHEDULES = {"step": Schedule, "cosine": CosineSchedule}
