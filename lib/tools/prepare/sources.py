"""Readers of published region features: bottom-up-attention TSV, LXMERT TSV, .npz of bottom-up-attention.pytorch.

n = boxes of one image, D = feature size. A record is decoded only when it is wanted, so skipping one costs little.
"""

from __future__ import annotations

import binascii
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lib.core.errors import InputError, shown
from lib.files.npy import array_of
from lib.files.reading import opened, readable

TSV_COLUMNS = {
    "bua-tsv": "image_id image_w image_h num_boxes boxes features".split(),
    "lxmert-tsv": "img_id img_h img_w objects_id objects_conf attrs_id attrs_conf num_boxes boxes features".split(),
}
FORMATS = (*TSV_COLUMNS, "npz")
NPZ_KEYS = ("x", "bbox", "num_bbox", "image_h", "image_w")
MOST_BYTES = 64 << 20  # of an array of one image, unpacked
LONGEST_LINE = 64 << 20  # bytes; a line of 100 boxes of 2048 numbers has 1.1 million


class Regions(NamedTuple):
    """One image: its size in pixels, boxes (n, 4) x1 y1 x2 y2 in pixels and features (n, D), both float32."""

    width: int
    height: int
    boxes: np.ndarray
    features: np.ndarray


class Record(NamedTuple):
    """One image of a source, not decoded yet: its key, where it stands, its bytes in the source."""

    key: str
    where: str
    size: int
    decode: Callable[[], Regions]


def find_files(paths: list[Path], file_format: str | None = None) -> list[Path]:
    """All files in the order of `paths`; a folder stands for its .npz files, or else its .tsv files.

    Raises InputError for a path that is missing and for a folder without such files.
    """
    for path in paths:
        if not path.exists():
            raise InputError(f"{path}: no such file or folder; expected region features as .tsv or .npz")
    return [file for path in paths for file in (_in_folder(path, file_format) if path.is_dir() else [path])]


def read_records(path: Path, file_format: str | None, img_dim: int) -> Iterator[Record]:
    """Yield the records of a file in order, holding one image in memory at a time.

    Without `file_format`, the suffix tells .npz, and the columns of a row tell the two kinds of TSV. Raises InputError
    with file and line for a row with a wrong number of columns; decoding a record raises it for broken base64, sizes
    other than n x 4 and n x `img_dim`, and values that are no finite numbers.
    """
    if (file_format or path.suffix) in ("npz", ".npz"):
        yield Record(path.stem, str(path), _size(path), partial(_decode_npz, path, img_dim))
        return
    possible = [columns for name, columns in TSV_COLUMNS.items() if file_format in (None, name)]
    expected = " or ".join(f"{len(columns)} ({' '.join(columns)})" for columns in possible)
    for number, line in _numbered_lines(path):
        where, values = f"{path}, line {number}", line.rstrip(b"\r\n").split(b"\t")
        columns = next((columns for columns in possible if len(columns) == len(values)), None)
        if columns is None:
            raise InputError(f"{where}: {len(values)} tab-separated columns, expected {expected}")
        key = values[0].decode("utf-8", "replace")
        if key == columns[0]:
            raise InputError(f"{where}: a header line; these files have none, delete it (sed -i 1d)")
        row = dict(zip(columns, values, strict=True))
        yield Record(key, where, len(line), partial(_decode_row, row, where, img_dim))


def _in_folder(folder: Path, file_format: str | None) -> list[Path]:
    npz = [] if file_format in TSV_COLUMNS else folder.glob("*.npz")
    tsv = [] if file_format == "npz" else [*folder.glob("*.tsv"), *folder.glob("*.tsv.[0-9]*")]  # COCO's: .tsv.0, …
    files = sorted(npz) or sorted(tsv)
    if not files:
        raise InputError(f"{folder}: the folder holds no {file_format or '.npz or .tsv'} file")
    return files


def _numbered_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """The lines that aren't blank."""
    with readable(path), opened(path, "a TSV of region features") as file:
        for number, line in enumerate(iter(partial(file.readline, LONGEST_LINE), b""), start=1):
            if len(line) == LONGEST_LINE:
                raise InputError(f"{path}, line {number}: too long; not a TSV of region features")
            if len(line) > 2 or line.strip():
                yield number, line
        if not file.tell():
            raise InputError(f"{path}: is empty, expected a TSV of region features; copy it again")


def _size(path: Path) -> int:
    with readable(path):
        return path.stat().st_size


def _decode_row(row: dict[str, bytes], where: str, img_dim: int) -> Regions:
    prefix = "image" if "image_id" in row else "img"
    count, width, height = (_whole_number(row, name, where) for name in ("num_boxes", f"{prefix}_w", f"{prefix}_h"))
    return Regions(
        width, height, _floats(row, "boxes", count, 4, where), _floats(row, "features", count, img_dim, where)
    )


def _whole_number(row: dict[str, bytes], column: str, where: str) -> int:
    text = row[column]
    if not text.isdigit() or len(text) > 9 or int(text) == 0:
        found = shown(text.decode("utf-8", "replace"), 20)
        raise InputError(f"{where}: {column} is {found!r}, expected a whole number above 0")
    return int(text)


def _floats(row: dict[str, bytes], column: str, count: int, size: int, where: str) -> np.ndarray:
    try:
        content = binascii.a2b_base64(row[column], strict_mode=True)
    except binascii.Error as error:
        raise InputError(f"{where}: {column} is broken base64 ({error}); download the file again") from None
    if len(content) != 4 * count * size:
        fitting = column == "features" and len(content) % (4 * count) == 0
        hint = f"; --img_dim {len(content) // (4 * count)} if that is the size of these features" if fitting else ""
        raise InputError(
            f"{where}: {column} holds {len(content):,} bytes, expected {4 * count * size:,} "
            f"({count} boxes x {size} float32){hint}"
        )
    return _finite(np.frombuffer(content, dtype="<f4").reshape(count, size), column, where)  # (n, size)


def _decode_npz(path: Path, img_dim: int) -> Regions:
    try:
        with opened(path, "an .npz file") as file, zipfile.ZipFile(file) as archive:  # the pickled `info` is never read
            if archive.infolist()[0].header_offset:
                raise ValueError("other bytes stand in front of the archive")
            x, bbox, *numbers = (_member(archive, name, path) for name in NPZ_KEYS)
            count, height, width = map(int, numbers)
    except InputError:
        raise
    except Exception as error:  # whatever damaged archives provoke
        reason = shown(str(error) or type(error).__name__)
        raise InputError(f"{path}: not a readable .npz file ({reason}); extract its features again") from None
    if count < 1 or x.shape != (count, img_dim) or bbox.shape != (count, 4):
        raise InputError(
            f"{path}: x is {x.shape} and bbox {bbox.shape}, expected ({count}, {img_dim}) and ({count}, 4): "
            "num_bbox (at least 1) x --img_dim"
        )
    return Regions(width, height, _finite(bbox, "bbox", path), _finite(x, "x", path))


def _member(archive: zipfile.ZipFile, name: str, path: Path) -> np.ndarray:
    """One array of an archive, whose checksum is checked; InputError where there is none, or one of absurd size."""
    if f"{name}.npy" not in archive.namelist():
        raise InputError(f"{path}: {name} is missing; expected keys {', '.join(NPZ_KEYS)}")
    if archive.getinfo(f"{name}.npy").file_size > MOST_BYTES:
        raise InputError(f"{path}: {name} is longer than {MOST_BYTES:,} bytes; not the regions of one image")
    return array_of(archive.read(f"{name}.npy"), f"{path}: {name}")


def _finite(values: np.ndarray, name: str, where: str | Path) -> np.ndarray:
    if values.dtype.kind not in "fiu":
        raise InputError(f"{where}: {name} holds {values.dtype}, expected numbers")
    values = values.astype(np.float32, copy=False)
    if not np.isfinite(values).all():
        raise InputError(f"{where}: {name} holds NaN or infinite values; extract this image again")
    return values
