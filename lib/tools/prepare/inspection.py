"""Looks at one split of the layout and notes what is there, what is wrong and what is odd. Changes nothing."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from lib.datasets.captions import read_captions
from lib.datasets.layout import image_folder, precomp_folder, read_id_mapping
from lib.datasets.splits import Split, open_split
from lib.errors import InputError

SAMPLED_ROWS = 64  # feature rows read for NaN and zeros, spread evenly
SAMPLED_IMAGES = 200  # image files looked for, spread evenly


@dataclass
class SplitReport:
    """What was found of one split. `errors` keep it from being used, `warnings` don't."""

    name: str
    split: Split | None = None
    captions: int | None = None  # lines of the captions file when the split doesn't fit together
    features: tuple[tuple[int, ...], str, int] | None = None  # shape, dtype, bytes
    lacks_features: bool = True
    boxes: bool = False
    mask: bool = False
    images_found: tuple[int, int] | None = None  # image files found, looked for
    examples: list[str] = field(default_factory=list)
    text_errors: list[str] = field(default_factory=list)
    region_errors: list[str] = field(default_factory=list)
    image_errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def there(self) -> bool:
        """True when the split has a captions file, good or bad."""
        return self.captions is not None or bool(self.text_errors)

    @property
    def captions_per_image(self) -> tuple[int, int]:
        """Fewest and most captions of an image."""
        counts = np.bincount(self.split.image_of_caption)
        return int(counts.min()), int(counts.max())

    @property
    def runs_on_regions(self) -> bool:
        return self.split is not None and self.features is not None and not self.region_errors

    @property
    def runs_on_images(self) -> bool:
        return self.split is not None and not self.image_errors


@dataclass(frozen=True)
class Images:
    """The raw images of a data set: their folder and the id mapping, None (with an error) when absent or broken."""

    folder: Path | None
    mapping: dict[str, str] | None
    errors: list[str]


def find_images(data_path: Path, data_name: str) -> Images:
    """Find the image folder and read `id_mapping.json`, noting what is missing."""
    errors, found = [], []
    for find in (lambda: image_folder(data_path, data_name), lambda: read_id_mapping(data_path)):
        try:
            found.append(find())
        except InputError as error:
            found.append(None)
            errors.append(str(error))
    return Images(*found, errors)


def inspect_split(data_path: Path, data_name: str, name: str, images: Images) -> SplitReport:
    """Open a split as training would and look at captions, ids, feature rows and image files."""
    report = SplitReport(name)
    try:
        folder = precomp_folder(data_path, data_name)
    except InputError:
        return report
    if not (folder / f"{name}_caps.txt").is_file():
        return report
    _open(report, data_path, data_name, folder)
    if report.split is None:
        return report
    report.boxes, report.mask = report.split.files.boxes is not None, report.split.files.mask is not None
    _look_at_captions(report, images)
    if report.split.features is not None:
        _look_at_features(report)
    _look_at_images(report, images)
    return report


def spread(count: int, sample: int) -> np.ndarray:
    """At most `sample` of the numbers 0 … count - 1, evenly spread, first and last included."""
    return np.unique(np.linspace(0, count - 1, min(sample, count)).astype(np.int64))


def _open(report: SplitReport, data_path: Path, data_name: str, folder: Path) -> None:
    has_features = (folder / f"{report.name}_ims.npy").is_file()
    report.lacks_features = not has_features
    for need_features in (True, False) if has_features else (False,):
        try:
            report.split = open_split(data_path, data_name, report.name, need_features=need_features)
            report.captions = report.split.n_captions
            return
        except InputError as error:
            (report.region_errors if need_features else report.text_errors).append(str(error))
    report.region_errors = [error for error in report.region_errors if error not in report.text_errors]
    try:
        report.captions = len(read_captions(folder / f"{report.name}_caps.txt"))
    except InputError:
        return  # named among the errors already


def _look_at_captions(report: SplitReport, images: Images) -> None:
    captions, image_ids = report.split.captions, report.split.image_ids
    in_file = len(read_captions(report.split.files.captions))
    if in_file > len(captions):
        report.examples.append(f"{in_file:,} captions in the file; the first {len(captions):,} are used")
    for word, index in (("first", 0), ("last", -1)):
        image_id = image_ids[report.split.image_of_caption[index]]
        path = (images.mapping or {}).get(str(image_id), "not in id_mapping.json")
        report.examples.append(f"{word} caption: {captions[index]!r} of image {image_id} ({path})")
    damaged = [line for line, caption in enumerate(captions, 1) if caption.startswith(("b'", 'b"'))]
    if damaged:
        report.warnings.append(
            f"{len(damaged):,} captions start with b' (first in line {damaged[0]}): they were written as Python bytes, "
            "which costs points; write them again with `prepare captions`"
        )


def _look_at_features(report: SplitReport) -> None:
    features = report.split.features
    report.features = (features.shape, str(features.dtype), features.path.stat().st_size)
    zero_rows = []
    for row in spread(len(features), SAMPLED_ROWS).tolist():
        try:
            values, mask = features.row(row)  # (R, D), (R,)
        except InputError as error:
            report.region_errors.append(str(error))
            return
        if not values[mask].any(axis=1).all():
            zero_rows.append(row)
    if zero_rows:
        sampled = min(SAMPLED_ROWS, len(features))
        report.warnings.append(
            f"{len(zero_rows)} of {sampled} sampled feature rows have regions of zeros (first row {zero_rows[0]}): "
            f"an unfinished copy, or padding without {report.name}_mask.npy"
        )
    if report.boxes:
        _look_at_boxes(report, features.shape)


def _look_at_boxes(report: SplitReport, shape: tuple[int, ...]) -> None:
    path = report.split.files.boxes
    try:
        boxes = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        report.warnings.append(f"{path}: not a readable .npy file ({error}); pictures can't be drawn")
        return
    if boxes.shape != (*shape[:2], 4):
        report.warnings.append(f"{path}: shape {boxes.shape}, expected {(*shape[:2], 4)}; pictures can't be drawn")


def _look_at_images(report: SplitReport, images: Images) -> None:
    report.image_errors += images.errors
    if report.split.files.ids is None:
        report.image_errors.append(f"{report.name}_ids.txt is missing")
        return
    ids = report.split.image_ids
    if images.mapping is None:
        return
    unknown = [image_id for image_id in ids.tolist() if str(image_id) not in images.mapping]
    if unknown:
        report.image_errors.append(f"{len(unknown):,} ids are not in id_mapping.json, first {unknown[0]}")
    if images.folder is None:
        return
    known = [images.mapping[str(image_id)] for image_id in ids.tolist() if str(image_id) in images.mapping]
    paths = [images.folder / known[index] for index in spread(len(known), SAMPLED_IMAGES)] if known else []
    absent = [path for path in paths if not path.is_file()]
    report.images_found = (len(paths) - len(absent), len(paths))
    if absent:
        report.image_errors.append(
            f"{len(absent):,} of {len(paths):,} image files looked for are missing, first {absent[0]}"
        )
