"""Region features of every split from published files: `{split}_ims.npy`, `{split}_boxes.npy`, `{split}_mask.npy`.

Letters: R boxes kept per image, n boxes of one image in its source, D size of a feature.
"""

from __future__ import annotations

import hashlib
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from lib.core.errors import InputError, listed
from lib.datasets.layout import read_id_mapping
from lib.files.feature_rows import FeatureRows
from lib.tools.prepare.ids import ImageKeys, needed_ids
from lib.tools.prepare.outputs import Target
from lib.tools.prepare.sources import Record, Regions, read_records

WAY_OUT = "--overwrite replaces finished files, --restart throws unfinished ones away"


@dataclass(frozen=True)
class Options:
    """What is read and how it is written: R boxes per image, feature size D, element type of the features."""

    boxes: int = 36
    img_dim: int = 2048
    dtype: str = "float32"
    format: str | None = None
    fewer: str = "pad"
    keys: str = "auto"
    restart: bool = False


def prepare_regions(sources: list[Path], target: Target, splits: list[str] | None, options: Options) -> None:
    """Write the feature files of `splits` (every split that has ids, if not given) in one pass over the sources.

    Images that no split needs are skipped and counted. Raises InputError when a row is bad or images are missing at the
    end; what was read is kept then, and the next run goes on from there.
    """
    ids_of = needed_ids(target.data_path, target.data_name, splits)
    files = [_open_files(target, split, ids, options) for split, ids in ids_of.items()]
    files = [rows for rows in files if not rows.finished]
    if not files:
        return
    mapping = read_id_mapping(target.data_path) if (target.data_path / "id_mapping.json").exists() else {}
    writer = RegionWriter(files, ImageKeys((i for rows in files for i in rows.ids), mapping, options.keys), options)
    with ExitStack() as stack:
        for rows in files:
            stack.enter_context(rows)
        if any(rows.missing() for rows in files):
            _read_all(sources, writer)
    writer.report()


class RegionWriter:
    """Puts the images of a source into the rows of every split that needs them."""

    def __init__(self, files: list[FeatureRows], keys: ImageKeys, options: Options):
        self.files, self.keys, self.options = files, keys, options
        self.first_seen: dict[int, str] = {}
        self.unknown, self.outside, self.first_key = 0, 0, None

    def add(self, record: Record) -> None:
        """Write one image; decode it only if a split still lacks it. Raises InputError for an image met before."""
        self.first_key = self.first_key or record.key
        image_id = self.keys.find(record.key, record.where)
        if image_id is None:
            self.unknown += 1
            return
        if image_id in self.first_seen:
            seen = self.first_seen[image_id]
            raise InputError(f"{record.where}: image {image_id} ({record.key}) was in {seen} already; give each once")
        self.first_seen[image_id] = record.where
        lacking = [rows for rows in self.files if rows.lacks(image_id)]
        if lacking:
            regions, kept = record.decode(), self.options.boxes
            self._check(regions, f"{record.where}: image {image_id}")
            for rows in lacking:
                rows.write(image_id, boxes=regions.boxes[:kept], ims=regions.features[:kept])

    def _check(self, regions: Regions, where: str) -> None:
        n, kept = len(regions.boxes), self.options.boxes
        if n < kept and self.options.fewer == "error":
            raise InputError(f"{where} has {n} boxes, expected {kept}; --fewer pad fills up with masked rows")
        if np.abs(regions.features).max() > np.finfo(self.options.dtype).max:
            raise InputError(f"{where} has features too large for float16 (65504); use --dtype float32")
        x1, y1, x2, y2 = regions.boxes.T  # each (n,)
        inside = min(x1.min(), y1.min()) >= -1 and x2.max() <= regions.width + 1 and y2.max() <= regions.height + 1
        self.outside += not inside

    def report(self) -> None:
        """Say what was written; raises InputError when a split still lacks images."""
        missing = {rows.split: ids for rows in self.files if (ids := rows.missing())}
        for rows in self.files:
            if rows.split not in missing:
                padded = np.count_nonzero(rows.counts < self.options.boxes)
                note = f"; {padded:,} images have fewer boxes: {rows.split}_mask.npy" if padded else ""
                print(f"{rows.split}: wrote {rows.path} and {rows.split}_boxes.npy{note}")
        if self.unknown:
            print(f"{self.unknown:,} images of the sources are in none of these splits: skipped")
        if self.outside:
            print(f"warning: {self.outside:,} images have boxes outside the image; expected x1 y1 x2 y2 in pixels")
        if missing:
            lacks = "; ".join(f"{split} lacks {len(ids):,} images ({listed(ids)})" for split, ids in missing.items())
            raise InputError(
                f"{lacks}: not in the sources, whose first image is {self.first_key!r} (id_mapping.json links ids to "
                "file names); run again with the source that holds them, the rest is kept"
            )


def _open_files(target: Target, split: str, ids: list[int], options: Options) -> FeatureRows:
    """The files of a split, new ones or those of an earlier run."""
    settings = {"images": len(ids), "ids": hashlib.sha256("\n".join(map(str, ids)).encode()).hexdigest()}
    settings |= {"boxes": options.boxes, "img_dim": options.img_dim, "dtype": options.dtype}
    rows = FeatureRows(target.precomp, split, ids, settings, WAY_OUT)
    rows.resume(target.overwrite, options.restart)
    if rows.finished:
        print(f"{split}: {rows.path} is there already, left as it is (--overwrite writes it again)")
    elif rows.kinds:
        print(f"{split}: {len(ids) - len(rows.missing()):,} of {len(ids):,} images are there already")
    else:
        rows.create(boxes=("float32", (options.boxes, 4)), ims=(options.dtype, (options.boxes, options.img_dim)))
    return rows


def _read_all(sources: list[Path], writer: RegionWriter) -> None:
    size = sum(path.stat().st_size for path in sources)
    with tqdm(total=size, desc="regions", unit="B", unit_scale=True, disable=None) as bar:
        for path in sources:
            for record in read_records(path, writer.options.format, writer.options.img_dim):
                writer.add(record)
                bar.update(record.size)
