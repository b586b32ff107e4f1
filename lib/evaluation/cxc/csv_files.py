"""Reads the official Crisscrossed Captions (CxC) files `sis_*.csv`, `sts_*.csv`, `sits_*.csv`."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from lib.core.errors import InputError
from lib.files.reading import opened

COLUMNS = {
    "sis": ("image1", "image2", "agg_score", "sampling_method"),
    "sts": ("caption1", "caption2", "agg_score", "sampling_method"),
    "sits": ("caption", "image", "agg_score", "sampling_method"),
}
_IMAGE = re.compile(r"COCO_[a-z]+\d{4}_(\d{12})\.jpg", re.ASCII)
_CAPTION = re.compile(r"COCO_[a-z]+\d{4}:sentid:(\d+)", re.ASCII)


class RatedPair(NamedTuple):
    """One row: two items, the mean human rating 0 to 5 and how the pair was sampled (`c2i_original`, `i2i_csim`, …).

    The items are COCO image ids (sis), caption ids (sts), or a caption id then an image id (sits).
    """

    id1: int
    id2: int
    score: float
    method: str


def read_pairs(path: str | Path, task: str) -> Iterator[RatedPair]:
    """Yield every row of the CxC file of a task (`sis`, `sts` or `sits`), ids as integers.

    Raises InputError with file and line for a wrong header, a short row, an unreadable id, a score outside 0 to 5, a
    pair that appears twice.
    """
    columns = COLUMNS[task]
    patterns = [_IMAGE if name.startswith("image") else _CAPTION for name in columns[:2]]
    first_line: dict[tuple[int, int], int] = {}
    with _open(path) as file:
        rows = _rows(path, file)
        _check_header(path, next(rows, (1, []))[1], columns)
        for line, row in rows:
            if not row:
                continue
            if len(row) != 4:
                raise InputError(f"{path}, line {line}: {len(row)} columns, expected 4 ({','.join(columns)})")
            id1, id2 = (_id(path, line, *item) for item in zip(columns, row, patterns, strict=False))
            if (id1, id2) in first_line:
                raise InputError(
                    f"{path}, line {line}: {row[0]} and {row[1]} were rated in line {first_line[id1, id2]} already"
                )
            first_line[id1, id2] = line
            yield RatedPair(id1, id2, _score(path, line, row[2]), row[3])


def _open(path):
    return io.TextIOWrapper(opened(path, "an official CxC CSV file"), "utf-8-sig", newline="")


def _rows(path, file) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader(file, strict=True)
    try:
        for row in reader:
            yield reader.line_num, row
    except (csv.Error, UnicodeDecodeError) as error:
        raise InputError(f"{path}, line {reader.line_num + 1}: not CSV text ({error}); download it again") from None


def _check_header(path, header, columns) -> None:
    if tuple(header) != columns:
        raise InputError(f"{path}, line 1: header is {','.join(header)[:80]!r}, expected {','.join(columns)}")


def _id(path, line, column, text, pattern) -> int:
    match = pattern.fullmatch(text)
    if match is None:
        example = "COCO_val2014_000000205866.jpg" if pattern is _IMAGE else "COCO_val2014:sentid:732091"
        raise InputError(f"{path}, line {line}: {column} is {text[:60]!r}, expected something like {example}")
    return int(match[1])


def _score(path, line, text) -> float:
    try:
        score = float(text)
    except ValueError:
        score = math.nan
    if not 0 <= score <= 5:
        raise InputError(f"{path}, line {line}: agg_score is {text[:40]!r}, expected a number from 0 to 5")
    return score
