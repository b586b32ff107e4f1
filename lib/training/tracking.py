"""Console lines, the progress of an epoch and TensorBoard (through tensorboard-logger)."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

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


class EpochLog:
    """The steps of an epoch as they are seen: timed, in a bar, in TensorBoard, and as a console line now and then."""

    def __init__(self, tracker: Tracker, epoch: int, steps: int, log_step: int = 200):
        self.tracker, self.epoch, self.steps, self.log_step = tracker, epoch, steps, log_step
        self.done = self.pairs = 0
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

    def step(self, step: int, pairs: int, loss: float, norm: float, rate: float) -> None:
        """Note a finished step: its global number, pairs of its batch, loss over all of them, gradient norm, rate."""
        took = time.perf_counter() - self.started
        self.done, self.pairs, self.loss = self.done + 1, self.pairs + pairs, self.loss + loss
        self.data_time, self.step_time = self.data_time + self.waited, self.step_time + took
        each = loss / pairs
        speed = f"{pairs / (self.waited + took):.0f}"
        self.bar.set_postfix({"loss": f"{each:.4f}", "lr": f"{rate:.1e}", "images/s": speed}, refresh=False)
        self.bar.update()
        times = {"data_time": self.waited, "step_time": took}
        self.tracker.scalars(step, "train/", loss=loss, loss_per_pair=each, lr=rate, gradient_norm=norm, **times)
        if self.done % self.log_step == 0 or self.done == self.steps:
            logger.info(
                f"epoch {self.epoch} step {self.done}/{self.steps}  loss {each:.4f} (mean {self.loss / self.pairs:.4f})"
                f"  lr {rate:.1e}  gradient {norm:.2f}  data {self.data_time / self.done:.3f} s"
                f"  step {self.step_time / self.done:.3f} s"
            )
