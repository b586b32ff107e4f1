"""Features files that are filled row by row, in any order and in as many runs as it takes, even if one is killed.

Letters: N rows, R regions or grid cells, D size of a feature, n regions that one image has.
"""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import numpy as np

from lib.core.errors import InputError, shown
from lib.files.reading import read_json
from lib.files.writing import atomic_write, write_json

FLUSH_BYTES, FLUSH_SECONDS = 64 << 20, 30  # what memory holds, and what a killed run repeats, at most
INTERRUPTED = "*_ims.json.part"  # stands beside the files of a run that didn't end


class FeatureRows:
    """`{split}_ims.npy` (N, R, D), and `{split}_boxes.npy` (N, R, 4) where asked: row i is the image with id `ids[i]`.

    Until all rows are there, the files are called `*.part` and `{split}_ims.json.part` says which rows are done. Of
    finished files `{split}_ims.json` keeps the settings. Files with other settings or of other origin are refused with
    InputError; it ends with `way_out`.
    """

    def __init__(self, folder: Path, split: str, ids: list[int], settings: dict, way_out: str):
        self.folder, self.split, self.ids, self.settings, self.way_out = folder, split, ids, settings, way_out
        self.path, self.record = self._file("ims"), self._file("ims").with_suffix(".json")
        self.row_of = {image_id: row for row, image_id in enumerate(ids)}
        self.counts = np.zeros(len(ids), np.int32)  # (N,) regions of each row, 0 = not written yet
        self.kinds: dict[str, tuple] = {}  # ims, boxes: element type and shape of a row
        self.finished = False
        self._arrays: dict[str, np.memmap] = {}
        self._unflushed, self._flushed = 0, time.monotonic()

    def resume(self, overwrite: bool = False, restart: bool = False) -> None:
        """Go on with the files of an interrupted run; where finished ones are there, `finished` says so.

        `restart` throws unfinished files away; with `overwrite` new ones will replace finished ones.
        """
        if restart:
            self._discard()
        if _part(self.record).exists():
            self._go_on()
        elif self.path.exists() and not overwrite:
            self._compare(self.path, self.record)
            self.finished = True

    def create(self, **kinds: tuple) -> None:
        """Make files of zeros, such as `ims=("float16", (R, D))`; raises InputError when the disk is too small.

        Their space is reserved: a disk that fills up while a mapped file is written kills the process.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._check_space(len(self.ids) * sum(np.dtype(kind).itemsize for kind in kinds.values()))
            for kind, (dtype, shape) in kinds.items():
                _reserve(_part(self._file(kind)), dtype, (len(self.ids), *shape))
        except OSError as error:
            self._discard()
            raise InputError(f"{self.path}: cannot be written ({error.strerror}); choose another folder") from None
        self.kinds = kinds
        self._note()
        self._map()

    def missing(self) -> list[int]:
        """The ids whose rows are not written yet, in order."""
        return [self.ids[row] for row in np.flatnonzero(self.counts == 0)]

    def lacks(self, image_id: int) -> bool:
        """True when the image has a row that isn't written yet."""
        row = self.row_of.get(image_id)
        return row is not None and not self.counts[row]

    def write(self, image_id: int, **values: np.ndarray) -> None:
        """Write an image's `ims` (n, D) and `boxes` (n, 4), n at most R; what is left of its rows is zero."""
        row = self.row_of[image_id]
        for kind, regions in values.items():
            of_image = self._arrays[kind][row]  # (R, D) or (R, 4)
            of_image[: len(regions)], of_image[len(regions) :] = regions, 0
            self._unflushed += of_image.nbytes
            self.counts[row] = len(regions)
        if self._unflushed > FLUSH_BYTES or time.monotonic() - self._flushed > FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Bring the rows written so far to disk, then the note that they are done, and release their memory."""
        if self._unflushed:
            for array in self._arrays.values():
                array.flush()
            self._note()
            self._map()
        self._unflushed, self._flushed = 0, time.monotonic()

    def __enter__(self) -> FeatureRows:
        return self

    def __exit__(self, *exception) -> None:
        self.flush()
        if self.counts.all():
            self._finish()

    def _finish(self) -> None:
        """Give complete files their names; a run killed amid this does it again."""
        self._arrays.clear()
        real = np.arange(self.kinds["ims"][1][0]) < self.counts[:, None]  # (N, R)
        mask = self._file("mask")
        if real.all():
            mask.unlink(missing_ok=True)
        else:
            with atomic_write(mask) as temporary, open(temporary, "wb") as file:
                np.save(file, real)
        for part in map(_part, map(self._file, self.kinds)):
            if part.exists():
                os.replace(part, part.with_suffix(""))
        write_json(self.record, {"settings": self.settings})
        _part(self.record).unlink()

    def _go_on(self) -> None:
        part = _part(self.path)
        record = self._compare(part, _part(self.record))
        try:
            self.kinds = record["kinds"]
            self.counts = np.array(record["regions"].split(), np.int32).reshape(len(self.ids))
            if not self.counts.all():
                self._map()
        except (OSError, ValueError, EOFError, KeyError, AttributeError, TypeError) as error:
            again = f"delete {_part(self.record).name} to start again"
            raise InputError(f"{part}: broken ({shown(error)}); {again}") from None

    def _compare(self, path: Path, record_path: Path) -> dict:
        """The record of `path`, if it has the settings of this run."""
        if not record_path.exists():
            raise InputError(f"{path}: already there, and not from this command; {self.way_out}")
        record = read_json(record_path)
        there = record.get("settings") if isinstance(record, dict) else None
        if not isinstance(there, dict):
            raise InputError(f"{record_path}: not a record of this command; {self.way_out}")
        now = self.settings
        other = [key for key in dict.fromkeys((*now, *there)) if there.get(key) != now.get(key)]
        if other:
            changes = (f"{key} {shown(there.get(key), 12)} there, {shown(now.get(key), 12)} now" for key in other)
            raise InputError(f"{path}: made with other settings ({', '.join(changes)}); {self.way_out}")
        return record

    def _check_space(self, needed: int) -> None:
        free = shutil.disk_usage(self.folder).free
        if needed > free:
            raise InputError(
                f"{self.path}: needs {needed / 1e9:.1f} GB, the disk has {free / 1e9:.1f} GB free; --dtype float16 "
                "takes half of float32, another folder may have room"
            )

    def _discard(self) -> None:
        for path in (self.record, self.path, self._file("boxes")):
            _part(path).unlink(missing_ok=True)

    def _note(self) -> None:
        regions = " ".join(map(str, self.counts.tolist()))
        write_json(_part(self.record), {"settings": self.settings, "kinds": self.kinds, "regions": regions})

    def _map(self) -> None:
        for kind in self.kinds:
            part = _part(self._file(kind))
            np.load(part, mmap_mode="r", allow_pickle=False)  # fails for a short file, which "r+" would fill up with 0
            self._arrays[kind] = np.load(part, mmap_mode="r+", allow_pickle=False)  # (N, R, D) or (N, R, 4)

    def _file(self, kind: str) -> Path:
        return self.folder / f"{self.split}_{kind}.npy"


def _part(path: Path) -> Path:
    return path.with_name(f"{path.name}.part")


def _reserve(path: Path, dtype: str, shape: tuple[int, ...]) -> None:
    """An .npy file of zeros that has its disk space."""
    np.lib.format.open_memmap(path, mode="w+", dtype=np.dtype(dtype), shape=shape)
    if hasattr(os, "posix_fallocate"):
        with open(path, "r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
