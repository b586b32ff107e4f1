"""The console of a run, and its copy in a log file."""

from __future__ import annotations

import contextlib
import logging
import sys
from pathlib import Path

from tqdm import tqdm

from lib.console.screen import silence
from lib.distributed.launch import is_main
from lib.training.tracking import logger


def setup_console(log_file: str | Path | None = None) -> logging.Logger:
    """The `esl` logger: plain lines on stdout and, with `log_file`, time-stamped lines appended to a file."""
    logger.setLevel(logging.INFO)
    logger.propagate = False
    close_console()
    if not is_main():
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
