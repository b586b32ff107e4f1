"""Console lines, running averages and TensorBoard (through tensorboard-logger)."""

from __future__ import annotations

import logging
import os
import sys
import time
from pathlib import Path

# tensorboard-logger 0.1.0 ships protobuf code of an old generation, which protobuf >= 4 refuses to import unless its
# pure-Python implementation is chosen before protobuf is first imported.
os.environ.setdefault("PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION", "python")


def setup_console(log_file: str | Path | None = None) -> logging.Logger:
    """The `esl` logger: plain lines on stdout and, with `log_file`, time-stamped lines appended to a file."""
    logger = logging.getLogger("esl")
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
    logger = logging.getLogger("esl")
    for handler in list(logger.handlers):
        if isinstance(handler, logging.StreamHandler):  # FileHandler included; not what others attached
            logger.removeHandler(handler)
            handler.close()


class Average:
    """Running mean of a quantity, and its last value."""

    def __init__(self):
        self.total, self.count, self.last = 0.0, 0, 0.0

    def update(self, value: float, count: int = 1) -> None:
        self.last = value
        self.total += value * count
        self.count += count

    @property
    def mean(self) -> float:
        return self.total / self.count if self.count else 0.0


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
