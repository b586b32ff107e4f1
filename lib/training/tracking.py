"""Console lines, the progress of an epoch, lines of JSON and TensorBoard (through tensorboard-logger)."""

from __future__ import annotations

import contextlib
import datetime
import json
import logging
import math
import os
import sys
import time
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from lib.distributed import first
from lib.errors import InputError
from lib.files import atomic_write, plain
from lib.terminal import silence
from lib.training.record import read_lines_of_json

# tensorboard-logger 0.1.0 ships protobuf code of an old generation, which protobuf >= 4 refuses to import unless its
# pure-Python implementation is chosen before protobuf is first imported.
os.environ.setdefault("PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION", "python")

logger = logging.getLogger("esl")


def setup_console(log_file: str | Path | None = None) -> logging.Logger:
    """The `esl` logger: plain lines on stdout and, with `log_file`, time-stamped lines appended to a file."""
    logger.setLevel(logging.INFO)
    logger.propagate = False
    close_console()
    if not first():
        logger.addHandler(logging.NullHandler())
        return logger
    console = _Console(sys.stdout)
    console.setFormatter(logging.Formatter("%(message)s"))
    logger.addHandler(console)
    if log_file is not None:
        file = _LogFile(log_file)
        file.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
        logger.addHandler(file)
    return logger


def close_console() -> None:
    """Close the log file and detach the console: later lines of the process belong to no run."""
    for handler in list(logger.handlers):
        if isinstance(handler, logging.StreamHandler):  # FileHandler included; not what others attached
            logger.removeHandler(handler)
            with contextlib.suppress(OSError):
                handler.close()


class _Console(logging.StreamHandler):
    """A handler for a stdout that progress bars share, and that may be closed, as by `| head -1`: what is said then
    goes nowhere."""

    def emit(self, record: logging.LogRecord) -> None:
        with tqdm.external_write_mode(self.stream):  # bars are drawn anew below the line
            super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)
        else:
            silence(self.stream)  # so that the interpreter's last flush succeeds too


class _LogFile(logging.FileHandler):
    """A handler for a file that its first line makes, on a disk that may be full: what is said then is on the console
    alone."""

    def __init__(self, path: str | Path):
        super().__init__(path, encoding="utf-8", delay=True)

    def _open(self):
        Path(self.baseFilename).parent.mkdir(parents=True, exist_ok=True)
        return super()._open()

    def handleError(self, record: logging.LogRecord) -> None:
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)


class Tracker:
    """The figures of one run: TensorBoard scalars in one event file, and lines of JSON. What is None is not written.

    `lines` keeps what it has of a run that goes on at `step`; what came later is trained again. A file that is lost
    or can't be written is said once, and the run goes on without it.
    """

    def __init__(self, folder: str | Path | None, lines: Path | None = None, step: int = 0):
        self._logger, self._events, self._lines = None, None, lines
        if lines is not None:
            kept = [json.dumps(line) for line in read_lines_of_json(lines) if line.get("step", 0) <= step]
            with self._unless_lost("_lines", "metrics"), atomic_write(lines) as temporary:
                temporary.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
        if folder is not None:
            with self._unless_lost("_logger", "TensorBoard's events"):
                self._open(Path(folder))

    def _open(self, folder: Path) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # it imports the empty scipy.misc
            from tensorboard_logger import Logger

        folder.mkdir(parents=True, exist_ok=True)
        while list(folder.glob(f"events.out.tfevents.{int(time.time())}.*")):
            time.sleep(0.1)  # files are named by the second, and a second run within it would empty the first's
        self._logger = Logger(str(folder), flush_secs=5)
        self._events = Path(self._logger._writer.name)

    def scalars(self, step: int, prefix: str = "", **values: float) -> None:
        """Write `values` at `step`, names prefixed with `prefix`."""
        if self._logger is not None:
            with self._unless_lost("_logger", "TensorBoard's events"):
                self._events.stat()  # a file that was removed could still be written, to no purpose
                for name, value in values.items():
                    self._logger.log_value(prefix + name, float(value), int(step))

    def line(self, step: int, **values: Any) -> None:
        """Add a line with `step` and `values` to the lines of JSON."""
        if self._lines is not None:
            with self._unless_lost("_lines", "metrics"), open(self._lines, "a", encoding="utf-8") as file:
                file.write(json.dumps(plain({"step": step, **values, "time": round(time.time(), 3)})) + "\n")

    def close(self) -> None:
        """Close the event file."""
        self._logger = self._lines = None  # its file closes with it

    @contextlib.contextmanager
    def _unless_lost(self, what: str, words: str):
        try:
            yield
        except (OSError, InputError) as error:
            setattr(self, what, None)
            logger.warning("warning: %s are lost (%s); training goes on without them", words, error)


class Step(NamedTuple):
    """A finished step: its global number, the places of its captions, loss over all pairs, gradient norm, learning
    rates, and the seconds until its batch was there and until it was done."""

    number: int
    captions: np.ndarray
    loss: float
    norm: float
    rates: dict[str, float]
    data_time: float
    step_time: float


class EpochLog:
    """The steps of an epoch as they are seen: timed, in a bar, in TensorBoard, and as a console line now and then.

    What a GPU computes is read with each console line alone, since reading waits for it; the bar shows the last read.
    `num_epochs` is where the run ends, `between` the seconds from an epoch's last step to the next one's first; `mean`
    says that the loss is a mean over pairs, and so is its gradient. `done`, `pairs` and `loss` are the `totals` of an
    epoch that goes on.
    """

    def __init__(
        self, tracker: Tracker, epoch: int, steps: int, log_step: int = 200, num_epochs: int | None = None,
        between: float = 0.0, mean: bool = False, done: int = 0, pairs: int = 0, loss: float = 0.0,
    ):  # fmt: skip
        self.tracker, self.epoch, self.steps, self.log_step = tracker, epoch, steps, log_step
        self.epochs = 1 if num_epochs is None else num_epochs - epoch  # this one included
        self.between, self.mean_loss = between, mean
        self.first = self.done = min(done, steps)
        self.unread: list[Step] = []  # loss and norm still tensors
        self.read: list[Step] = []  # since the last call of `step`
        self.shown: dict[str, str] = {}  # in the bar, of the last step read
        self.pairs, self.loss = pairs, loss
        self.data_time = self.step_time = 0.0  # totals since `first`
        kind = {"unit": "step", "disable": None if first() else True, "leave": False}
        self.bar = tqdm(total=steps, initial=self.done, desc=f"epoch {epoch}", **kind)

    def totals(self) -> dict[str, int | float]:
        """Steps done, their pairs and the sum of their losses; waits for a GPU."""
        self._read()
        return {"done": self.done, "pairs": self.pairs, "loss": self.loss}

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

    def step(
        self, number: int, captions: np.ndarray, loss: Tensor, norm: Tensor, rates: dict[str, float]
    ) -> list[Step]:
        """Note a finished step: its global number, the places of its captions, loss over all pairs, norm, and the
        learning rate of each group of parameters, of which the first stands in the console's lines.

        Returns the steps whose loss and norm have been read since the last call.
        """
        self.done += 1
        line = self.done % self.log_step == 0 or self.done == self.steps
        took = time.perf_counter() - self.started
        self.unread.append(Step(number, captions, loss, norm, rates, self.waited, took))
        if line or loss.device.type == "cpu":
            self._read()
        self.data_time += self.waited
        self.step_time += time.perf_counter() - self.started
        self.bar.set_postfix({**self.shown, "run ends in": self.left}, refresh=False)
        self.bar.update()
        read, self.read = self.read, []
        if line:
            self._line(read[-1])
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
        gradient = last.norm if self.mean_loss else last.norm / len(last.captions)
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
            read = [step._replace(loss=loss, norm=norm) for step, (loss, norm) in zip(self.unread, values, strict=True)]
            self.unread, self.read = [], self.read + read
            for step in read:
                self._show(step)

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
