"""The feature files of one split while they are being written: memory-mapped, resumable, renamed when complete."""

from __future__ import annotations

import hashlib
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from lib.errors import InputError
from lib.files import atomic_write, read_json, write_json

_FLUSH_BYTES = 64 << 20


@dataclass(frozen=True)
class Settings:
    """What every split of one run is written with: boxes R per image, feature size D, element type of the features."""

    boxes: int = 36
    img_dim: int = 2048
    dtype: str = "float32"


class FeatureFiles:
    """`{split}_ims.npy` (N, R, D) and `{split}_boxes.npy` (N, R, 4), one row per image id of the split, in its order.

    Rows may be written in any order. Until all are there, the files are called `*.partial` and
    `{split}_counts.npy.partial` says which rows are done, so that an interrupted run goes on where it stopped.
    """

    def __init__(self, folder: Path, split: str, ids: list[int], settings: Settings):
        self.split, self.ids, self.settings = split, ids, settings
        self.row_of = {image_id: row for row, image_id in enumerate(ids)}
        self.counts = np.zeros(len(ids), np.int32)  # (N,) boxes of each row; 0 = not written yet
        self._ims, self._boxes = folder / f"{split}_ims.npy", folder / f"{split}_boxes.npy"
        self._mask, self._counts = folder / f"{split}_mask.npy", folder / f"{split}_counts.npy"
        self._state = folder / f"{split}_regions.partial.json"
        self.kept = False
        self._unflushed = 0

    @property
    def shape(self) -> tuple[int, int, int]:
        return len(self.ids), self.settings.boxes, self.settings.img_dim

    @property
    def complete(self) -> bool:
        return bool(self.counts.all())

    def lacks(self, image_id: int) -> bool:
        """True when the split has this image and its row isn't written yet."""
        row = self.row_of.get(image_id)
        return row is not None and not self.counts[row]

    def missing(self) -> list[int]:
        """The ids whose rows are not written yet, in order."""
        return [self.ids[row] for row in np.flatnonzero(self.counts == 0)]

    def begin(self, overwrite: bool, restart: bool) -> str | None:
        """Create the files, or go on with those of an interrupted run; returns a line for the user, if there is one.

        `kept` is True afterwards when finished files of the right shape are there and stay. Raises InputError when
        files of another shape are there (and not `overwrite`), when the interrupted run had other ids or settings (and
        not `restart`), when the disk is full.
        """
        if self._state.exists() and not restart:
            return self._resume()
        if self._ims.exists() and not overwrite:
            return self._keep()
        self._create()
        return None

    def write(self, image_id: int, boxes: np.ndarray, features: np.ndarray) -> None:
        """Write the first R of an image's boxes (n, 4) and features (n, D); rows beyond n are zero."""
        row, count = self.row_of[image_id], min(len(boxes), self.settings.boxes)
        self._ims_rows[row, :count], self._ims_rows[row, count:] = features[:count], 0  # (R, D)
        self._box_rows[row, :count], self._box_rows[row, count:] = boxes[:count], 0  # (R, 4)
        self.counts[row] = count
        self._unflushed += self._ims_rows[row].nbytes
        if self._unflushed >= _FLUSH_BYTES:
            self.flush()

    def flush(self) -> None:
        """Bring everything written so far to disk, rows before the note that they are done, and release its memory."""
        if not self._unflushed:
            return
        self._ims_rows.flush()
        self._box_rows.flush()
        self._save_counts()
        self._map()
        self._unflushed = 0

    def finish(self) -> str:
        """Give the complete files their names, the features last; returns a line that says what was written."""
        self.flush()
        self._ims_rows = self._box_rows = None
        boxes = self.settings.boxes
        if (fewer := self.counts < boxes).any():
            with atomic_write(self._mask) as temporary, open(temporary, "wb") as file:
                np.save(file, np.arange(boxes) < self.counts[:, None])  # (N, R)
        else:
            self._mask.unlink(missing_ok=True)
        for path in (self._boxes, self._ims):
            if _partial(path).exists():
                os.replace(_partial(path), path)
        self._state.unlink()
        _partial(self._counts).unlink(missing_ok=True)
        padded = f"; {fewer.sum():,} images have fewer boxes: {self._mask.name}" if fewer.any() else ""
        return f"{self.split}: wrote {self._ims} {self.shape} {self.settings.dtype} and {self._boxes.name}{padded}"

    def _create(self) -> None:
        self._state.unlink(missing_ok=True)
        self.counts[:] = 0
        try:
            self._ims.parent.mkdir(parents=True, exist_ok=True)
            for path, shape, dtype in (
                (self._ims, self.shape, self.settings.dtype),
                (self._boxes, (*self.shape[:2], 4), "float32"),
            ):
                _partial(path).unlink(missing_ok=True)
                needed, free = np.prod(shape) * np.dtype(dtype).itemsize, shutil.disk_usage(path.parent).free
                if needed > free:
                    raise InputError(f"{path}: needs {needed / 1e9:.1f} GB, the disk has {free / 1e9:.1f} GB free")
                _create_array(_partial(path), shape, dtype)
        except OSError as error:
            for path in (self._ims, self._boxes):
                _partial(path).unlink(missing_ok=True)
            raise InputError(f"{self._ims}: cannot be written ({error.strerror}); choose another --data_path") from None
        self._save_counts()
        write_json(self._state, self._description())
        self._map()

    def _resume(self) -> str:
        if read_json(self._state) != self._description():
            raise InputError(
                f"{self._state}: an interrupted run had other ids or settings; repeat its --dtype, --boxes, "
                "--img_dim, or let --restart throw away what it wrote"
            )
        try:
            self.counts[:] = np.load(_partial(self._counts), allow_pickle=False)
            if not self.complete:
                self._map()
        except (OSError, ValueError) as error:
            raise InputError(
                f"{self._state}: files of the interrupted run are missing or broken ({error}); --restart begins again"
            ) from None
        return f"{self.split}: {np.count_nonzero(self.counts):,} of {len(self.ids):,} images are there already"

    def _keep(self) -> str:
        try:
            there = np.load(self._ims, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise InputError(f"{self._ims}: not a readable .npy file ({error}); --overwrite replaces it") from None
        if there.shape != self.shape or there.dtype != self.settings.dtype:
            raise InputError(
                f"{self._ims}: there already as {there.shape} {there.dtype}, not {self.shape} {self.settings.dtype}; "
                "--overwrite replaces it"
            )
        self.kept = True
        return f"{self.split}: {self._ims} is there already, left as it is (--overwrite writes it again)"

    def _description(self) -> dict:
        digest = hashlib.sha256("\n".join(map(str, self.ids)).encode()).hexdigest()
        return {"ids": len(self.ids), "ids_sha256": digest, **asdict(self.settings)}

    def _save_counts(self) -> None:
        with atomic_write(_partial(self._counts)) as temporary, open(temporary, "wb") as file:
            np.save(file, self.counts)

    def _map(self) -> None:
        self._ims_rows = np.load(_partial(self._ims), mmap_mode="r+", allow_pickle=False)  # (N, R, D)
        self._box_rows = np.load(_partial(self._boxes), mmap_mode="r+", allow_pickle=False)  # (N, R, 4)


def _partial(path: Path) -> Path:
    return path.with_name(f"{path.name}.partial")


def _create_array(path: Path, shape: tuple[int, ...], dtype: str) -> None:
    """An .npy file of zeros with its disk space reserved: a disk that fills up later would kill the process."""
    np.lib.format.open_memmap(path, mode="w+", dtype=np.dtype(dtype), shape=shape)
    if hasattr(os, "posix_fallocate"):
        with open(path, "r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
