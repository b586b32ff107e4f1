"""Region features of every split from published files: `{split}_ims.npy`, `{split}_boxes.npy`, `{split}_mask.npy`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from tqdm import tqdm

from lib.datasets.layout import read_id_mapping
from lib.errors import InputError
from lib.tools.prepare.ids import needed_ids
from lib.tools.prepare.keys import ImageKeys
from lib.tools.prepare.rows import FeatureFiles, Settings
from lib.tools.prepare.sources import Record, Regions, find_sources, read_records

_SHOWN = 5  # ids named in a message


class RegionWriter:
    """Puts the images of a source into the rows of every split that needs them."""

    def __init__(self, splits: list[FeatureFiles], keys: ImageKeys, fewer: str):
        self._splits, self._keys, self._fewer = splits, keys, fewer
        self._first_seen: dict[int, str] = {}
        self._boxes, self._largest = splits[0].settings.boxes, np.finfo(splits[0].settings.dtype).max
        self.unknown, self.outside, self.first_key = 0, 0, None

    @property
    def matched(self) -> int:
        """Images of the sources read so far that some split needs."""
        return len(self._first_seen)

    def add(self, record: Record) -> None:
        """Write one image; decode it only if a split still lacks it. Raises InputError for an image met before."""
        self.first_key = self.first_key or record.key
        image_id = self._keys.find(record.key, record.where)
        if image_id is None:
            self.unknown += 1
            return
        if image_id in self._first_seen:
            raise InputError(
                f"{record.where}: image {image_id} ({record.key}) was in {self._first_seen[image_id]} already; "
                "give each image once"
            )
        self._first_seen[image_id] = record.where
        lacking = [split for split in self._splits if split.lacks(image_id)]
        if lacking:
            regions = record.decode()
            self._check(regions, record, image_id)
            for split in lacking:
                split.write(image_id, regions.boxes, regions.features)

    def _check(self, regions: Regions, record: Record, image_id: int) -> None:
        if len(regions.boxes) < self._boxes and self._fewer == "error":
            raise InputError(
                f"{record.where}: image {image_id} has {len(regions.boxes)} boxes, expected {self._boxes}; "
                "--fewer pad fills up with masked rows"
            )
        if np.abs(regions.features).max() > self._largest:
            raise InputError(
                f"{record.where}: image {image_id} has features too large for float16 (65504); use --dtype float32"
            )
        x1, y1, x2, y2 = regions.boxes.T  # each (n,)
        inside = (min(x1.min(), y1.min()) >= -1) & (x2.max() <= regions.width + 1) & (y2.max() <= regions.height + 1)
        self.outside += not inside


def prepare_regions(
    sources: list[Path],
    data_path: Path,
    data_name: str,
    splits: list[str] | None = None,
    *,
    file_format: str | None = None,
    settings: Settings | None = None,
    fewer: str = "pad",
    keys: str = "auto",
    overwrite: bool = False,
    restart: bool = False,
    say: Callable[[str], None] = tqdm.write,
) -> None:
    """Write the feature files of `splits` (every split that has ids, if not given) in one pass over `sources`.

    Images that no split needs are skipped and counted. Raises InputError when a row is bad or images are missing at the
    end; what was read is kept then, and the next run goes on from there.
    """
    found = find_sources(sources, file_format)
    settings = settings or Settings()
    splits = [
        FeatureFiles(folder, name, ids, settings) for name, folder, ids in needed_ids(data_path, data_name, splits)
    ]
    for files in splits:
        if line := files.begin(overwrite, restart):
            say(line)
    splits = [files for files in splits if not files.kept]
    if not splits:
        return
    mapping = read_id_mapping(data_path) if (data_path / "id_mapping.json").exists() else {}
    writer = RegionWriter(splits, ImageKeys((i for files in splits for i in files.ids), mapping, keys), fewer)
    try:
        if not all(files.complete for files in splits):
            _read_all(found, writer, settings.img_dim)
    finally:
        for files in splits:
            files.flush()
    for files in splits:
        if files.complete:
            say(files.finish())
    if writer.unknown:
        say(f"{writer.unknown:,} images of the sources are in none of these splits: skipped")
    if writer.outside:
        say(f"warning: {writer.outside:,} images have boxes outside the image; expected x1 y1 x2 y2 in pixels")
    _require_complete({files.split: files.missing() for files in splits if not files.complete}, writer)


def _read_all(found: list[tuple[str, list[Path]]], writer: RegionWriter, img_dim: int) -> None:
    size = sum(path.stat().st_size for _, files in found for path in files)
    with tqdm(total=size, desc="regions", unit="B", unit_scale=True, disable=None) as bar:
        for file_format, files in found:
            for record in read_records(file_format, files, img_dim):
                writer.add(record)
                bar.update(record.size)


def _require_complete(missing: dict[str, list[int]], writer: RegionWriter) -> None:
    if not missing:
        return
    if not writer.matched:
        first_id = next(iter(missing.values()))[0]
        raise InputError(
            f"none of the {writer.unknown:,} images of the sources is one of {', '.join(missing)}: the first is "
            f"{writer.first_key!r}, the first id needed is {first_id}; id_mapping.json links ids to file names"
        )
    lists = []
    for split, ids in missing.items():
        first = ", ".join(map(str, ids[:_SHOWN])) + (", …" if len(ids) > _SHOWN else "")
        lists.append(f"{split} lacks {len(ids):,} images ({first})")
    raise InputError(
        f"{'; '.join(lists)}: in none of the sources; the rest is kept, run again with the source that holds them"
    )
