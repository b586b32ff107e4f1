"""The progress of an epoch: its bar, its log lines, and the means of its steps."""

from __future__ import annotations

import dataclasses
import datetime
import math
import time
from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from lib.distributed.launch import is_main
from lib.training.tracking import Tracker, logger


@dataclasses.dataclass
class Step:
    """An update of the weights; loss and norm are tensors until an EpochLog has read them.

    `number` counts over the whole run, `done` within the epoch, both from 1. `captions` are the places of the whole
    batch's captions, `loss` is the sum over its pairs. `mean`: the gradient is that of the mean over pairs.
    """

    number: int
    done: int
    captions: np.ndarray
    loss: Tensor | float
    norm: Tensor | float
    rates: dict[str, float]
    mean: bool
    data_time: float  # seconds until the batch was there
    began: float
    step_time: float = 0.0  # seconds from then on


def timed(batches: Iterable) -> Iterator[tuple[Any, float]]:
    """Every batch with the seconds that were spent waiting for it."""
    source = iter(batches)
    while True:
        asked = time.perf_counter()
        batch = next(source, None)
        if batch is None:
            return
        yield batch, time.perf_counter() - asked


class EpochLog:
    """The steps of an epoch as they are seen: timed, in a bar, in TensorBoard, and as a console line now and then.

    What a GPU computes is read with each console line alone, since reading waits for it; the bar shows the last read.
    `num_epochs` is where the run ends, `between` the seconds from an epoch's last step to the next one's first.
    `position` holds the `totals` of an epoch that goes on.
    """

    def __init__(
        self, tracker: Tracker, epoch: int, steps: int, log_step: int = 200, num_epochs: int | None = None,
        between: float = 0.0, position: Mapping[str, Any] = MappingProxyType({}),
    ):  # fmt: skip
        self.tracker, self.epoch, self.steps, self.log_step = tracker, epoch, steps, log_step
        self.epochs = 1 if num_epochs is None else num_epochs - epoch  # this one included
        self.between = between
        self.first = self.done = min(position.get("done", 0), steps)
        self.pairs, self.loss = position.get("pairs", 0), position.get("loss", 0.0)
        self.unread: list[Step] = []
        self.read: list[Step] = []  # since the last call of `add`
        self.shown: dict[str, str] = {}  # in the bar, of the last step read
        self.data_time = self.step_time = 0.0  # totals since `first`
        kind = {"unit": "step", "disable": None if is_main() else True, "leave": False}
        self.bar = tqdm(total=steps, initial=self.done, desc=f"epoch {epoch}", **kind)

    def totals(self) -> dict[str, int | float]:
        """Steps done, their pairs and the sum of their losses; waits for a GPU."""
        self._read()
        return {"done": self.done, "pairs": self.pairs, "loss": self.loss}

    def __enter__(self) -> EpochLog:
        return self

    def __exit__(self, *_) -> None:
        self.bar.close()

    def add(self, step: Step) -> list[Step]:
        """Note a step; returns those whose loss and norm have been read since the last call."""
        self.done = step.done
        line = self.done % self.log_step == 0 or self.done == self.steps
        step.step_time = time.perf_counter() - step.began
        self.unread.append(step)
        if line or step.loss.device.type == "cpu":
            self._read()
        self.data_time += step.data_time
        self.step_time += time.perf_counter() - step.began
        self.bar.set_postfix({**self.shown, "run ends in": self.left}, refresh=False)
        self.bar.update()
        read, self.read = self.read, []
        if line:
            self._line(step)
        return read

    @property
    def times(self) -> tuple[float, float]:
        """The mean data time and step time in seconds."""
        return tuple(seconds / (self.done - self.first) for seconds in (self.data_time, self.step_time))

    @property
    def left(self) -> datetime.timedelta:
        """The time to the end of the run, at the pace of this epoch."""
        steps = self.epochs * self.steps - self.done
        return datetime.timedelta(seconds=round(steps * sum(self.times) + self.epochs * self.between))

    def _line(self, last: Step) -> None:
        data, work = self.times
        rate = next(iter(last.rates.values()))
        gradient = last.norm if last.mean else last.norm / len(last.captions)
        logger.info(
            f"epoch {self.epoch} step {self.done}/{self.steps}  loss {self.last:.4f} (mean {self.mean:.4f})  "
            f"gradient {gradient:.4f} per pair  lr {rate:.1e}  data {data:.3f} s  step {work:.3f} s  "
            f"run ends in {self.left}"
        )
        figures = {"loss": last.loss, "loss_per_pair": self.last, "mean": self.mean, "gradient_norm": last.norm}
        times = {"data_time": data, "step_time": work}
        self.tracker.line(last.number, epoch=self.epoch, **figures, rates=last.rates, **times)

    def _read(self) -> None:
        if self.unread:
            values = torch.stack([torch.stack((step.loss, step.norm)) for step in self.unread]).tolist()
            for step, (loss, norm) in zip(self.unread, values, strict=True):
                step.loss, step.norm = loss, norm
                self._show(step)
            self.unread, self.read = [], self.read + self.unread

    def _show(self, step: Step) -> None:
        pairs = len(step.captions)
        self.last = step.loss / pairs
        speed = f"{pairs / (step.data_time + step.step_time):.0f}"
        rate = next(iter(step.rates.values()))
        self.shown = {"loss": f"{self.last:.4f}", "lr": f"{rate:.1e}", "images/s": speed}
        if not (math.isfinite(step.loss) and math.isfinite(step.norm)):
            return
        self.pairs, self.loss = self.pairs + pairs, self.loss + step.loss
        self.tracker.scalars(
            step.number, "train/", loss=step.loss, loss_per_pair=self.last, lr=rate, gradient_norm=step.norm,
            data_time=step.data_time, step_time=step.step_time,
        )  # fmt: skip

    @property
    def mean(self) -> float:
        """The mean loss of a pair in this epoch."""
        return self.loss / self.pairs if self.pairs else math.nan
