"""Region features on disk; resident memory follows the rows read, not the file.

Letters: N rows (or images), C captions, R regions, D size of a region feature (img_dim).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from lib.core.errors import InputError
from lib.files.npy import EXPECTED, Header, map_array, read_header
from lib.files.reading import opened


class RegionFeatures:
    """A features file (N, R, D), float16 or float32, read row by row, with an optional mask file (N, R) bool.

    Raises InputError when the file is no such array, is shorter than its header says, becomes so later, or its D is not
    `img_dim`; when the mask does not fit; and when a row read holds NaN or inf.
    """

    def __init__(self, path: str | Path, mask_path: str | Path | None = None, img_dim: int | None = None):
        self.path = Path(path)
        with opened(self.path, EXPECTED) as file:
            header = read_header(file, self.path)
        _check_layout(header, self.path)
        self.shape, self.dtype, self._offset = header.shape, header.dtype, header.offset
        if img_dim is not None and self.shape[2] != img_dim:
            raise InputError(f"{self.path}: found features of size {self.shape[2]}, expected --img_dim {img_dim}")
        self.mask = None if mask_path is None else _read_mask(Path(mask_path), self.shape[:2])
        self._file: BinaryIO | None = None

    def __len__(self) -> int:
        return self.shape[0]

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_file": None}

    def row(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """A copy of one row: features (R, D) in the file's dtype and mask (R,), True = real region."""
        features, mask = self.rows([index])
        return features[0], mask[0]

    def rows(self, indices: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Copies of B rows: features (B, R, D) in the file's dtype and mask (B, R), True = real region."""
        features = np.empty((len(indices), *self.shape[1:]), self.dtype)
        for copy, index in zip(features, indices, strict=True):
            self._read(int(index), copy)
        mask = np.ones(features.shape[:2], bool) if self.mask is None else self.mask[np.asarray(indices, np.int64)]
        return features, mask

    def _read(self, index: int, copy: np.ndarray) -> None:
        if not 0 <= index < len(self):
            raise IndexError(f"{self.path}: row {index} of {len(self)}")
        start = self._offset + index * copy.nbytes
        try:
            if self._file is None:
                self._file = open(self.path, "rb", buffering=0)
            place, done = memoryview(copy).cast("B"), 0
            while done < copy.nbytes and (count := os.preadv(self._file.fileno(), [place[done:]], start + done)):
                done += count
        except OSError as error:
            raise InputError(f"{self.path}, row {index}: cannot be read ({error.strerror})") from None
        if done < copy.nbytes:
            raise InputError(f"{self.path}, row {index}: the file became shorter while it was read; copy it again")
        if not np.isfinite(copy).all():
            region = int(np.flatnonzero(~np.isfinite(copy).all(1))[0])
            raise InputError(f"{self.path}, row {index}, region {region}: NaN or infinity; extract its features again")


def _check_layout(header: Header, path: Path) -> None:
    shape, dtype = header.shape, header.dtype
    if dtype not in (np.float16, np.float32):
        raise InputError(f"{path}: found dtype {dtype}, expected float32 or float16")
    if len(shape) != 3 or 0 in shape:
        raise InputError(f"{path}: found shape {shape}, expected (rows, regions, img_dim)")
    if header.fortran_order:
        raise InputError(f"{path}: found Fortran order, expected C order; save it again with numpy.ascontiguousarray")


def _read_mask(path: Path, shape: tuple[int, int]) -> np.ndarray:
    mask = map_array(path)
    if mask.shape != shape or mask.dtype != np.bool_:
        raise InputError(f"{path}: found {mask.dtype} {mask.shape}, expected bool {shape} as in the features file")
    mask = np.array(mask)
    empty = np.flatnonzero(~mask.any(1))
    if len(empty):
        raise InputError(f"{path}, row {empty[0]}: no real region; every image needs at least one")
    return mask
