"""The figures of a run: lines of JSON, and TensorBoard through tensorboard-logger."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
import warnings
from pathlib import Path
from typing import Any

from lib.core.errors import InputError
from lib.files.writing import atomic_write, plain
from lib.training.record import read_lines_of_json

# tensorboard-logger 0.1.0 ships protobuf code of an old generation, which protobuf >= 4 refuses to import unless its
# pure-Python implementation is chosen before protobuf is first imported.
os.environ.setdefault("PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION", "python")

logger = logging.getLogger("esl")


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
