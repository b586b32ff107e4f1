"""Console lines, the progress of an epoch and TensorBoard (through tensorboard-logger)."""

from __future__ import annotations

import logging
import math
import os
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

# tensorboard-logger 0.1.0 ships protobuf code of an old generation, which protobuf >= 4 refuses to import unless its
# pure-Python implementation is chosen before protobuf is first imported.
os.environ.setdefault("PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION", "python")

logger = logging.getLogger("esl")


def setup_console(log_file: str | Path | None = None) -> logging.Logger:
    """The `esl` logger: plain lines on stdout and, with `log_file`, time-stamped lines appended to a file."""
    logger.setLevel(logging.INFO)
    logger.propagate = False
    close_console()
    console = logging.StreamHandler(sys.stdout)
    console.setFormatter(logging.Formatter("%(message)s"))
    logger.addHandler(console)
    if log_file is not None:
        file = logging.FileHandler(log_file, encoding="utf-8")
        file.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
        logger.addHandler(file)
    return logger


def close_console() -> None:
    """Close the log file and detach the console: later lines of the process belong to no run."""
    for handler in list(logger.handlers):
        if isinstance(handler, logging.StreamHandler):  # FileHandler included; not what others attached
            logger.removeHandler(handler)
            handler.close()


class Tracker:
    """TensorBoard scalars of one run: one event file, written by tensorboard-logger. `Tracker(None)` writes nothing."""

    def __init__(self, folder: str | Path | None):
        self._logger = None
        if folder is not None:
            from tensorboard_logger import Logger

            while list(Path(folder).glob(f"events.out.tfevents.{int(time.time())}.*")):
                time.sleep(0.1)  # files are named by the second, and a second run within it would empty the first's
            self._logger = Logger(str(folder), flush_secs=5)

    def scalars(self, step: int, prefix: str = "", **values: float) -> None:
        """Write `values` at `step`, names prefixed with `prefix`."""
        if self._logger is not None:
            for name, value in values.items():
                self._logger.log_value(prefix + name, float(value), int(step))

    def close(self) -> None:
        """Close the event file."""
        self._logger = None  # its file closes with it


class Step(NamedTuple):
    """A finished step: its global number, the places of its captions, loss over all pairs, gradient norm, rate, and the
    seconds until its batch was there and until it was done."""

    number: int
    captions: np.ndarray
    loss: float
    norm: float
    rate: float
    data_time: float
    step_time: float


class EpochLog:
    """The steps of an epoch as they are seen: timed, in a bar, in TensorBoard, and as a console line now and then.

    What a GPU computes is read with each console line alone, since reading waits for it; the bar shows the last read.
    """

    def __init__(self, tracker: Tracker, epoch: int, steps: int, log_step: int = 200):
        self.tracker, self.epoch, self.steps, self.log_step = tracker, epoch, steps, log_step
        self.done = self.pairs = 0
        self.unread: list[Step] = []  # loss and norm still tensors
        self.loss = self.data_time = self.step_time = 0.0  # totals
        self.bar = tqdm(total=steps, desc=f"epoch {epoch}", unit="step", disable=None, leave=False)

    def __enter__(self) -> EpochLog:
        return self

    def __exit__(self, *_) -> None:
        self.bar.close()

    def timed(self, batches: Iterable) -> Iterator:
        """The batches; what passes until one is there is data time, what passes until `step` is called step time."""
        source = iter(batches)
        while True:
            asked = time.perf_counter()
            batch = next(source, None)
            if batch is None:
                return
            self.started = time.perf_counter()
            self.waited = self.started - asked
            yield batch

    def step(self, number: int, captions: np.ndarray, loss: Tensor, norm: Tensor, rate: float) -> list[Step]:
        """Note a finished step: its global number, the places of its captions, loss over all pairs, norm, rate.

        Returns the steps whose loss and norm have been read since the last call.
        """
        self.done += 1
        line = self.done % self.log_step == 0 or self.done == self.steps
        took = time.perf_counter() - self.started
        self.unread.append(Step(number, captions, loss, norm, rate, self.waited, took))
        read = self._read() if line or loss.device.type == "cpu" else []
        self.data_time += self.waited
        self.step_time += time.perf_counter() - self.started
        self.bar.update()
        if line:
            logger.info(
                f"epoch {self.epoch} step {self.done}/{self.steps}  loss {self.last:.4f} (mean {self.mean:.4f})"
                f"  lr {rate:.1e}  gradient {read[-1].norm:.2f}  data {self.data_time / self.done:.3f} s"
                f"  step {self.step_time / self.done:.3f} s"
            )
        return read

    def _read(self) -> list[Step]:
        values = torch.stack([torch.stack((step.loss, step.norm)) for step in self.unread]).tolist()
        read = [step._replace(loss=loss, norm=norm) for step, (loss, norm) in zip(self.unread, values, strict=True)]
        self.unread = []
        for step in read:
            self._show(step)
        return read

    def _show(self, step: Step) -> None:
        pairs = len(step.captions)
        self.last = step.loss / pairs
        speed = f"{pairs / (step.data_time + step.step_time):.0f}"
        self.bar.set_postfix({"loss": f"{self.last:.4f}", "lr": f"{step.rate:.1e}", "images/s": speed}, refresh=False)
        if not (math.isfinite(step.loss) and math.isfinite(step.norm)):
            return
        self.pairs, self.loss = self.pairs + pairs, self.loss + step.loss
        self.tracker.scalars(
            step.number, "train/", loss=step.loss, loss_per_pair=self.last, lr=step.rate, gradient_norm=step.norm,
            data_time=step.data_time, step_time=step.step_time,
        )  # fmt: skip

    @property
    def mean(self) -> float:
        """The mean loss of a pair in this epoch."""
        return self.loss / self.pairs if self.pairs else math.nan
