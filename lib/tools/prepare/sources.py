"""Readers of published region features: bottom-up-attention TSV, LXMERT TSV, .npz of bottom-up-attention.pytorch.

n = boxes of one image, D = feature size. A record is decoded only when it is wanted, so skipping one costs little.
"""

from __future__ import annotations

import binascii
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lib.errors import InputError

FORMATS = ("bua-tsv", "lxmert-tsv", "npz")
_BUA_COLUMNS = "image_id image_w image_h num_boxes boxes features".split()
_LXMERT_COLUMNS = "img_id img_h img_w objects_id objects_conf attrs_id attrs_conf num_boxes boxes features".split()
_TSV_COLUMNS = {"bua-tsv": _BUA_COLUMNS, "lxmert-tsv": _LXMERT_COLUMNS}
_LONGEST_LINE = 64 << 20  # bytes; a line of 100 boxes of 2048 numbers has 1.1 million


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


def find_sources(paths: Iterable[Path], file_format: str | None = None) -> list[tuple[str, list[Path]]]:
    """Expand folders and tell formats: a list of (format, files), files sorted, in the order of `paths`.

    A folder stands for its .npz files, or else its .tsv files. Without `file_format`, the first line of a TSV decides:
    6 columns bottom-up-attention, 10 LXMERT. Raises InputError for a path that is missing, empty or neither.
    """
    return [_find_source(Path(path), file_format) for path in paths]


def read_records(file_format: str, files: list[Path], img_dim: int) -> Iterator[Record]:
    """Yield the records of one source in order, holding one image in memory at a time.

    Raises InputError with file and line for a row with a wrong number of columns; decoding a record raises it for
    broken base64, sizes other than n x 4 and n x `img_dim`, and values that are no finite numbers.
    """
    for path in files:
        if file_format == "npz":
            yield _npz_record(path, img_dim)
        else:
            yield from _tsv_records(path, _TSV_COLUMNS[file_format], img_dim)


def _find_source(path: Path, file_format: str | None) -> tuple[str, list[Path]]:
    if not path.exists():
        raise InputError(f"{path}: no such file or folder; expected region features as .tsv or .npz")
    files = [path]
    if path.is_dir():
        files = _files_of(path, file_format)
    if file_format is None:
        file_format = "npz" if files[0].suffix == ".npz" else _tsv_format(files[0])
    return file_format, files


def _files_of(folder: Path, file_format: str | None) -> list[Path]:
    npz = sorted(folder.glob("*.npz")) if file_format in (None, "npz") else []
    files = npz or sorted([*folder.glob("*.tsv"), *folder.glob("*.tsv.[0-9]*")])  # COCO's 10-100 boxes: .tsv.0, .tsv.1
    if not files or (file_format == "npz" and not npz):
        raise InputError(f"{folder}: the folder holds no {'.npz' if file_format == 'npz' else '.npz or .tsv'} file")
    return files


def _tsv_format(path: Path) -> str:
    with _open(path) as file:
        columns = _read_line(file, path, 1).count(b"\t") + 1
    for name, expected in _TSV_COLUMNS.items():
        if columns == len(expected):
            return name
    raise InputError(
        f"{path}, line 1: {columns} tab-separated columns, expected 6 (bottom-up-attention) or 10 (LXMERT); "
        "other formats have to be converted first"
    )


def _open(path: Path):
    try:
        return open(path, "rb", buffering=1 << 20)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None


def _read_line(file, path: Path, number: int) -> bytes:
    line = file.readline(_LONGEST_LINE)
    if len(line) == _LONGEST_LINE and not line.endswith(b"\n"):
        raise InputError(f"{path}, line {number}: longer than {_LONGEST_LINE >> 20} MiB; not a TSV of region features")
    return line


def _tsv_records(path: Path, columns: list[str], img_dim: int) -> Iterator[Record]:
    with _open(path) as file:
        number = 0
        while line := _read_line(file, path, number := number + 1):
            if len(line) <= 2 and not line.strip():
                continue
            where = f"{path}, line {number}"
            found = line.count(b"\t") + 1
            if found != len(columns):
                raise InputError(f"{where}: {found} columns, expected {len(columns)} ({' '.join(columns)})")
            key = line[: line.index(b"\t")].decode("utf-8", "replace")
            if number == 1 and key == columns[0]:
                raise InputError(f"{where}: a header line; these files have none, delete it (sed -i 1d)")
            yield Record(
                key, where, len(line), lambda line=line, where=where: _decode_tsv(line, columns, where, img_dim)
            )


def _decode_tsv(line: bytes, columns: list[str], where: str, img_dim: int) -> Regions:
    fields = dict(zip(columns, line.rstrip(b"\r\n").split(b"\t"), strict=True))
    width, height = columns[1:3] if columns is _BUA_COLUMNS else columns[2:0:-1]
    count = _whole_number(fields, "num_boxes", where)
    return Regions(
        _whole_number(fields, width, where),
        _whole_number(fields, height, where),
        _decode_floats(fields, "boxes", count, 4, where),
        _decode_floats(fields, "features", count, img_dim, where),
    )


def _whole_number(fields: dict[str, bytes], column: str, where: str) -> int:
    text = fields[column]
    if not text.isdigit() or len(text) > 9 or int(text) == 0:
        shown = text[:20].decode("utf-8", "replace")
        raise InputError(f"{where}: {column} is {shown!r}, expected a whole number above 0")
    return int(text)


def _decode_floats(fields: dict[str, bytes], column: str, count: int, size: int, where: str) -> np.ndarray:
    try:
        content = binascii.a2b_base64(fields[column], strict_mode=True)
    except binascii.Error as error:
        raise InputError(f"{where}: {column} is broken base64 ({error}); download the file again") from None
    if len(content) != 4 * count * size:
        hint = ""
        if column == "features" and len(content) % (4 * count) == 0:
            hint = f"; --img_dim {len(content) // (4 * count)} if that is the size of these features"
        raise InputError(
            f"{where}: {column} holds {len(content):,} bytes, expected {4 * count * size:,} "
            f"({count} boxes x {size} float32){hint}"
        )
    return _finite(np.frombuffer(content, dtype="<f4").reshape(count, size), column, where)  # (n, size)


def _npz_record(path: Path, img_dim: int) -> Record:
    return Record(path.stem, str(path), path.stat().st_size, lambda: _decode_npz(path, img_dim))


def _decode_npz(path: Path, img_dim: int) -> Regions:
    try:
        with np.load(path, allow_pickle=False) as arrays:  # the pickled `info` is never read
            x, bbox = arrays["x"], arrays["bbox"]
            count, height, width = (int(arrays[name]) for name in ("num_bbox", "image_h", "image_w"))
    except KeyError as error:
        raise InputError(f"{path}: {error.args[0]}; expected keys x, bbox, num_bbox, image_h, image_w") from None
    except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"{path}: not a readable .npz file ({error}); extract its features again") from None
    if not 0 < count or x.shape != (count, img_dim) or bbox.shape != (count, 4):
        raise InputError(
            f"{path}: x is {x.shape} and bbox {bbox.shape}, expected ({count}, {img_dim}) and ({count}, 4): "
            "num_bbox (at least 1) x --img_dim"
        )
    return Regions(width, height, _finite(bbox, "bbox", str(path)), _finite(x, "x", str(path)))


def _finite(values: np.ndarray, name: str, where: str) -> np.ndarray:
    if values.dtype.kind not in "fiu":
        raise InputError(f"{where}: {name} holds {values.dtype}, expected numbers")
    values = values.astype(np.float32, copy=False)
    if not np.isfinite(values).all():
        raise InputError(f"{where}: {name} holds NaN or infinite values; extract this image again")
    return values
