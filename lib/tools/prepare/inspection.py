"""Looks at one split of the layout as a run would open it, and notes what is wrong or odd. Changes nothing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from lib.core.errors import InputError
from lib.datasets.images import ImageFolder
from lib.datasets.layout import SplitFiles, find_split
from lib.datasets.splits import Split, open_split
from lib.files.npy import map_array

RAW, REGIONS = "raw images", "region features"  # the two ways to run on a split
SAMPLED_ROWS = 64  # feature rows read for NaN and zeros, spread evenly


@dataclass
class SplitReport:
    """What was found of one split: an error keeps it from being used in one way, a warning doesn't."""

    name: str
    files: SplitFiles | None = None  # None without a captions file
    split: Split | None = None  # with its features where they fit
    ways: list[str] = field(default_factory=list)  # in which it can be used
    errors: dict[str, str] = field(default_factory=dict)  # by way
    warnings: list[str] = field(default_factory=list)


def inspect_split(data_path: Path, data_name: str, name: str, images: ImageFolder | None) -> SplitReport:
    """Open a split in both ways and look at captions, ids, feature rows and, where they are known, image files."""
    report = SplitReport(name)
    try:
        report.files = find_split(data_path, data_name, name, need_features=False)
    except InputError:
        return report
    for way in (RAW, REGIONS) if report.files.features else (RAW,):
        try:
            report.split = open_split(data_path, data_name, name, need_features=way == REGIONS)
            if way == REGIONS:
                report.warnings += _look_at_features(report.split)
            elif images is not None:
                images.check(report.split.image_ids.tolist())
            if way == REGIONS or images is not None:
                report.ways.append(way)
        except InputError as error:
            report.errors[way] = str(error)
    if report.split is not None:
        report.warnings += _look_at_captions(report.split.captions)
    return report


def spread(count: int, sample: int) -> np.ndarray:
    """At most `sample` of the numbers 0 … count - 1, evenly spread, first and last included."""
    return np.unique(np.linspace(0, count - 1, min(sample, count)).astype(np.int64))


def _look_at_captions(captions: list[str]) -> Iterator[str]:
    damaged = [line for line, caption in enumerate(captions, 1) if caption.startswith(("b'", 'b"'))]
    if damaged:
        yield (
            f"{len(damaged):,} captions start with b' (first in line {damaged[0]}): they were written as Python bytes, "
            "which lowers recalls; write them again"
        )


def _look_at_features(split: Split) -> Iterator[str]:
    """What is odd about sampled rows and about the boxes; InputError for a row that can't be used."""
    features, zeros = split.features, []
    sampled = spread(len(features), SAMPLED_ROWS).tolist()
    for row in sampled:
        values, mask = features.row(row)  # (R, D), (R,)
        if not values[mask].any(axis=1).all():
            zeros.append(row)
    if zeros:
        yield (
            f"{len(zeros)} of {len(sampled)} sampled feature rows have regions of zeros (first row {zeros[0]}): "
            "an unfinished copy, or padding without a mask file"
        )
    if split.files.boxes is not None:
        yield from _look_at_boxes(split.files.boxes, (*features.shape[:2], 4))


def _look_at_boxes(path: Path, expected: tuple[int, ...]) -> Iterator[str]:
    try:
        shape = map_array(path).shape
    except InputError as error:
        yield f"{error}; pictures can't be drawn"
    else:
        if shape != expected:
            yield f"{path}: shape {shape}, expected {expected}; pictures can't be drawn"
