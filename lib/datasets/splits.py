"""Splits: which captions belong to which image, and which row of the features file an image has.

Letters: N images, C captions.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lib.core.errors import InputError
from lib.datasets import data_set
from lib.datasets.captions import read_captions
from lib.datasets.layout import SplitFiles, find_split
from lib.datasets.regions import RegionFeatures
from lib.files.reading import read_ids


class ImageIndex(NamedTuple):
    """Images in order of appearance; captions of an image stand together."""

    rows: np.ndarray  # (N,) the feature row of each image
    image_of_caption: np.ndarray  # (C,) the image of each caption, 0 … N - 1, ascending
    image_ids: np.ndarray  # (N,)


def image_rows(
    n_rows: int | None,
    n_captions: int,
    ids: np.ndarray | None = None,
    captions_per_image: int = 1,
    where: str = "split",
) -> ImageIndex:
    """Find the images of a split from its counts and ids, for files with one row per image and one row per caption.

    With one id per caption the captions of an image may be any number; else each image has equally many. `n_rows` is
    None when no features file is read. Raises InputError with the numbers when they do not fit together.
    """
    if ids is None:
        n_images = _count_images(n_rows, n_captions, captions_per_image, where)
        first = np.arange(n_images) * (n_captions // n_images)
        image_ids = np.arange(n_images)
    elif len(ids) == n_captions:
        first = np.flatnonzero(np.concatenate([[True], ids[1:] != ids[:-1]]))
        image_ids = ids[first]
    elif len(ids) and n_captions % len(ids) == 0:
        first = np.arange(len(ids)) * (n_captions // len(ids))
        image_ids = ids
    else:
        rows = "" if n_rows is None else f" and {n_rows} feature rows"
        raise InputError(
            f"{where}: {len(ids)} ids for {n_captions} captions{rows}; expected one id per caption, or one per image "
            "and a whole number of captions for each"
        )
    n_images = len(first)
    _check_distinct(image_ids, where)
    if n_rows not in (None, n_images, n_captions):
        raise InputError(
            f"{where}: {n_rows} feature rows for {n_images} images and {n_captions} captions; expected one row per "
            "image or one per caption"
        )
    rows = np.arange(n_images) if n_rows in (None, n_images) else first
    image_of_caption = np.repeat(np.arange(n_images), np.diff(first, append=n_captions))
    return ImageIndex(rows, image_of_caption, np.asarray(image_ids, np.int64))


def _count_images(n_rows: int | None, n_captions: int, captions_per_image: int, where: str) -> int:
    if n_rows is None:
        raise InputError(f"{where}: no ids file; without features it must say which image each caption belongs to")
    repeated = n_rows == n_captions  # one row per caption
    n_images = n_captions // captions_per_image if repeated else n_rows
    if n_captions % (captions_per_image if repeated else n_rows):
        every = f"{captions_per_image} per image" if repeated else f"{n_rows} feature rows"
        raise InputError(
            f"{where}: {n_captions} captions are not a multiple of {every}; an ids file with one id per caption says "
            "which belong together"
        )
    return n_images


def _check_distinct(image_ids: np.ndarray, where: str) -> None:
    values, counts = np.unique(image_ids, return_counts=True)
    if (counts > 1).any():
        raise InputError(
            f"{where}: id {values[counts > 1][0]} comes back after other ids; the lines of an image must be consecutive"
        )


@dataclass(frozen=True)
class Split:
    """The captions and images of a split, as `open_split` finds them."""

    captions: list[str]  # C
    image_of_caption: np.ndarray  # (C,) ascending
    image_ids: np.ndarray  # (N,)
    features: RegionFeatures | None
    rows: np.ndarray  # (N,) the row of each image in `features`
    files: SplitFiles
    limited: bool = False  # True when --limit took images away

    @property
    def n_images(self) -> int:
        return len(self.image_ids)

    @property
    def n_captions(self) -> int:
        return len(self.captions)

    @property
    def read_files(self) -> list[Path]:
        """The files that the split was made of."""
        of_features = (self.files.features, self.files.mask) if self.features else ()
        return [path for path in (self.files.captions, self.files.ids, *of_features) if path is not None]

    def first_images(self, n_images: int) -> Split:
        """The first images and their captions."""
        n_captions = int(np.searchsorted(self.image_of_caption, n_images))
        return replace(
            self,
            captions=self.captions[:n_captions],
            image_of_caption=self.image_of_caption[:n_captions],
            image_ids=self.image_ids[:n_images],
            rows=self.rows[:n_images],
        )


def open_split(
    data_path: str | Path,
    data_name: str,
    split: str,
    img_dim: int | None = None,
    need_features: bool = True,
    limit: int | None = None,
) -> Split:
    """Open a split: read captions and ids, map the features, find the image of each caption.

    `dev` is cut to as many captions (whole images) as the data set's row says; `limit` keeps the first images.
    `need_features=False` leaves the features file alone (raw images). Raises InputError for whatever does not fit.
    """
    if limit is not None and limit < 1:
        raise InputError(f"--limit {limit}: expected a number of images of at least 1")
    files = find_split(data_path, data_name, split, need_features)
    captions = read_captions(files.captions)
    ids = None if files.ids is None else read_ids(files.ids)
    features = RegionFeatures(files.features, files.mask, img_dim) if need_features else None
    where = str(files.captions.with_name(f"{split}_*"))
    row = data_set(data_name)
    index = image_rows(None if features is None else len(features), len(captions), ids, row.captions_per_image, where)
    if features is not None and ids is None and len(features) == len(captions):
        _check_repeated(features, row.captions_per_image, where)
    opened = Split(captions, index.image_of_caption, index.image_ids, features, index.rows, files)
    if split == "dev" and row.dev_captions and len(captions) > row.dev_captions:
        opened = opened.first_images(max(1, int(opened.image_of_caption[row.dev_captions])))
    if limit is not None and limit < opened.n_images:
        opened = replace(opened.first_images(limit), limited=True)
    return opened


def _check_repeated(features: RegionFeatures, captions_per_image: int, where: str) -> None:
    """One row per caption and no ids: the rows of the first image must be one, or the captions would be mixed up."""
    block, _ = features.rows(range(captions_per_image))
    if (block != block[0]).any():
        raise InputError(
            f"{where}: as many feature rows as captions and no ids file, but the first {captions_per_image} rows are "
            "different images; an ids file with one id per caption says which belong together"
        )
