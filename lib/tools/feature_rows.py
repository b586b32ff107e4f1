"""A features file that is filled row by row and survives being interrupted.

Letters: N rows, B rows of a batch, R regions or grid cells.
"""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import numpy as np

from lib.errors import InputError
from lib.files import read_json, write_json

SECONDS_BETWEEN_MARKS = 30  # a killed run repeats at most this much


class FeatureRows:
    """A features file that is filled from its first row to its last, in as many runs as it takes.

    Until it is complete it's called `{path}.part`. `{stem}.json` beside it holds the settings and the number of rows
    that are safely on disk. Raises InputError rather than touch a file that has other settings or another origin.
    """

    def __init__(self, path: Path, settings: dict):
        self.path, self.part, self.record = path, path.with_name(f"{path.name}.part"), path.with_suffix(".json")
        self.settings, self.total, self.done = settings, settings["images"], 0
        self._rows, self._marked = None, time.monotonic()
        present = next((file for file in (path, self.part) if file.exists()), None)
        if present is None:
            return
        if not self.record.exists():
            raise InputError(f"{present}: already there, and not from this command; name another --out or --split")
        record = read_json(self.record)
        self._compare(present, record)
        self.done = self.total if present == path else record["done"]

    @property
    def complete(self) -> bool:
        """Whether the finished file is there."""
        return self.path.exists()

    def append(self, features: np.ndarray) -> None:
        """Write the next rows (B, R, channels); they are recorded as done every half minute and when the block ends."""
        if self._rows is None:
            self._rows = self._open(features)
        self._rows[self.done : self.done + len(features)] = features
        self.done += len(features)
        if time.monotonic() - self._marked > SECONDS_BETWEEN_MARKS:
            self._mark()

    def __enter__(self) -> FeatureRows:
        return self

    def __exit__(self, kind, error, traceback) -> None:
        self._mark()
        if kind is None and self.done == self.total and self.part.exists():
            os.replace(self.part, self.path)

    def _mark(self) -> None:
        """Bring the rows to disk, then record their number; the map is given up so that memory doesn't grow with it."""
        if self._rows is not None:
            self._rows.flush()
            self._rows = None
            write_json(self.record, {"settings": self.settings, "done": self.done})
        self._marked = time.monotonic()

    def _open(self, features: np.ndarray) -> np.memmap:
        shape, folder = (self.total, *features.shape[1:]), self.path.parent
        if not self.part.exists():
            write_json(self.record, {"settings": self.settings, "done": 0})
        needed, free = (self.total - self.done) * features[0].nbytes, shutil.disk_usage(folder).free
        if needed > free:  # writing beyond the end of the disk through a memory map kills the process
            raise InputError(
                f"{folder}: {needed / 1e9:.1f} GB needed for {shape} {features.dtype}, {free / 1e9:.1f} GB free; "
                "use --dtype float16, --pool, or another --out"
            )
        if not self.part.exists():
            return np.lib.format.open_memmap(self.part, mode="w+", dtype=features.dtype, shape=shape)
        try:
            there = np.load(self.part, mmap_mode="r", allow_pickle=False)  # fails where mode "r+" would fill up with 0
        except (OSError, ValueError, EOFError) as error:
            raise InputError(f"{self.part}: broken ({str(error).splitlines()[0]}); delete it to start again") from None
        if there.shape != shape or there.dtype != features.dtype:
            raise InputError(
                f"{self.part}: holds {there.dtype} {there.shape}, expected {features.dtype} {shape}; "
                "delete it to start again"
            )
        return np.lib.format.open_memmap(self.part, mode="r+")

    def _compare(self, present: Path, record) -> None:
        there = record.get("settings") if isinstance(record, dict) else None
        if not isinstance(there, dict) or not isinstance(record.get("done"), int):
            raise InputError(f"{self.record}: not a record of this command; name another --out or --split")
        different = [key for key in (*self.settings, *there) if self.settings.get(key) != there.get(key)]
        if different:
            listed = ", ".join(
                f"{key} {_short(there.get(key))} there, {_short(self.settings.get(key))} now"
                for key in dict.fromkeys(different)
            )
            raise InputError(f"{present}: made with other settings ({listed}); name another --out or --split")


def _short(value) -> str:
    return str(value) if len(str(value)) <= 24 else f"{str(value)[:12]}…"
