"""Region features and boxes of single images, from a file of one image or from rows of a split's file.

Letters: N rows, R regions, D size of a region feature (img_dim).
"""

from __future__ import annotations

import filecmp
from pathlib import Path

import numpy as np

from lib.core.errors import InputError
from lib.datasets import DATA_SETS
from lib.datasets.captions import read_captions
from lib.datasets.images import ImageFolder
from lib.datasets.layout import read_id_mapping
from lib.datasets.regions import RegionFeatures
from lib.datasets.splits import image_rows
from lib.files.images import DEFAULT_LIMITS, ImageLimits
from lib.files.npy import map_array
from lib.files.reading import read_ids


class SingleImages:
    """Features (R, D) of one image, or (N, R, D) of which single rows are read, with `{split}_mask.npy` where it lies
    beside `{split}_ims.npy`.

    Raises InputError for another shape, another D than `img_dim` (that of `model`, for the message), and no such file.
    """

    def __init__(self, path: Path, img_dim: int, model: Path, limits: ImageLimits = DEFAULT_LIMITS):
        self.path, self.limits = path, limits
        self.array = map_array(path)
        self.shape = self.array.shape
        if len(self.shape) not in (2, 3) or 0 in self.shape:
            raise InputError(f"{path}: found shape {self.shape}, expected (R, {img_dim}) or (N, R, {img_dim})")
        if self.shape[-1] != img_dim:
            raise InputError(f"{path}: found features of size {self.shape[-1]}, but {model} was trained on features of "
                             f"size {img_dim}; extract them as its training data was")  # fmt: skip
        self.rows = RegionFeatures(path, beside(path, "mask")) if len(self.shape) == 3 else None

    def choose(self, rows: list[int] | None) -> list[int]:
        """`rows` where they exist, or the only image; InputError for a row that is not there or that is not named."""
        if self.rows is None:
            if rows is not None:
                raise InputError(f"{self.path}: holds the regions of one image, shape {self.shape}; leave out --row")
            return [0]
        count = self.shape[0]
        if rows is None and count > 1:
            raise InputError(f"{self.path}: holds {count} rows; say which with --row, 0 to {count - 1}")
        for row in rows or [0]:
            if not 0 <= row < count:
                raise InputError(f"{self.path}: has no row {row}; expected --row 0 to {count - 1}")
        return rows or [0]

    def read(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        """A copy of one image's features (R, D) and its mask (R,), True = real region; InputError for NaN."""
        if self.rows is not None:
            return self.rows.row(row)
        features = np.array(self.array)  # (R, D)
        if features.dtype not in (np.float16, np.float32):
            raise InputError(f"{self.path}: found dtype {features.dtype}, expected float32 or float16")
        wrong = np.flatnonzero(~np.isfinite(features).all(1))
        if len(wrong):
            raise InputError(f"{self.path}, region {wrong[0]}: NaN or infinity; extract its features again")
        return features, np.ones(len(features), bool)

    def boxes(self, row: int, path: Path | None = None) -> np.ndarray | None:
        """Boxes (R, 4) float64 of one image, from `path`, else from `{split}_boxes.npy` beside the features, else None.

        Raises InputError for boxes that are not as many as the regions, that hold NaN or end before they begin.
        """
        path = path or beside(self.path, "boxes")
        if path is None:
            return None
        boxes = map_array(path)
        every = *self.shape[:-1], 4
        if boxes.shape not in (every, every[-2:]):
            raise InputError(f"{path}: found shape {boxes.shape}, expected {every} as the features have")
        own = np.array(boxes if boxes.ndim == 2 else boxes[row], np.float64)  # (R, 4)
        if not (np.isfinite(own).all() and (own[:, 2:] >= own[:, :2]).all()):
            raise InputError(f"{path}: a box has NaN or ends before it begins; expected x1 y1 x2 y2 in pixels")
        return own

    def image(self, row: int, given: Path | None = None) -> Path | None:
        """The image file of a row: `given`, or by the split's ids and `id_mapping.json`, None where they are not there.

        Raises InputError when `given` is another image than the one that they name.
        """
        own = self._own_image(row)
        if given is None or own is None:
            return given or own
        if not (own.samefile(given) or filecmp.cmp(own, given, shallow=False)):
            raise InputError(f"--image {given}: row {row} of {self.path} is another image, {own}; leave out --image")
        return given

    def _own_image(self, row: int) -> Path | None:
        """What a split's files say, where the features are one of them."""
        split, data_path = self.path.name.removesuffix("_ims.npy"), self.path.absolute().parent.parent
        ids, captions = (self.path.with_name(f"{split}_{kind}.txt") for kind in ("ids", "caps"))
        if self.rows is None or not all(file.is_file() for file in (ids, captions, data_path / "id_mapping.json")):
            return None
        index = image_rows(len(self.rows), len(read_captions(captions)), read_ids(ids), where=str(self.path))
        image_id = index.image_ids[np.searchsorted(index.rows, row, "right") - 1]
        names = read_id_mapping(data_path)
        folders = [data_path / each.images for each in DATA_SETS.values() if str(image_id) in names]
        paths = (ImageFolder(folder, names, [image_id], self.limits).path(0) for folder in folders)
        return next((path for path in paths if path.is_file()), None)


def beside(features: Path, kind: str) -> Path | None:
    """`{split}_<kind>.npy` beside `{split}_ims.npy`, where it is."""
    stem = features.name.removesuffix("_ims.npy")
    path = features.with_name(f"{stem}_{kind}.npy")
    return path if stem != features.name and path.is_file() else None
