"""What happened to each query: its rank, its margin, and the best items of its gallery. numpy alone.

Letters: N images, C captions, Q queries, I items of a gallery, B queries of a block, K items shown of each query.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lib.core.errors import InputError
from lib.core.machine import available_cores
from lib.evaluation.metrics import MOST_THREADS, caption_owners, check_matrix
from lib.evaluation.tables import spreadsheet_cell
from lib.files.writing import atomic_write

BEST = 10  # items shown of each query
BLOCK = 1 << 19  # scores looked at together: they stay in cache
DIRECTIONS = {"i2t": "image to text", "t2i": "text to image"}


class Answers(NamedTuple):
    """What the queries of one direction got; items are numbers of captions (i2t) or images (t2i), best first.

    As in `lib.evaluation.metrics`, of two items with the same score the wrong one stands first.
    """

    rank: np.ndarray  # (Q,) from 0: wrong items that score at least as high as the best right one
    margin: np.ndarray  # (Q,) the score of the best right item above that of the best wrong one
    items: np.ndarray  # (Q, K)
    scores: np.ndarray  # (Q, K)
    right: np.ndarray  # (Q, K) bool


class Items(NamedTuple):
    """What the rows and columns of a matrix are; `files` are paths under the image folder, None where none is known."""

    image_ids: np.ndarray  # (N,)
    files: list[str | None]  # N
    captions: list[str]  # C
    image_of_caption: np.ndarray  # (C,)


def answer(scores: np.ndarray, image_of_caption: np.ndarray | None = None, best: int = BEST) -> dict[str, Answers]:
    """The answers of every query of a matrix (N, C) in both directions, "i2t" and "t2i".

    Raises InputError as `lib.evaluation.metrics.ranks` does.
    """
    scores = check_matrix(scores)
    owners, images = caption_owners(scores.shape, image_of_caption), np.arange(len(scores))
    return {"i2t": _answers(scores, images, owners, best), "t2i": _answers(scores.T, owners, images, best)}


def answer_folds(folds: list[np.ndarray], image_of_caption: np.ndarray | None = None) -> dict[str, Answers]:
    """`answer` for the matrices of successive folds, each a gallery of its own; numbers count over all of them."""
    if len(folds) == 1:
        return answer(folds[0], image_of_caption)
    ends = np.cumsum([(0, 0), *(fold.shape for fold in folds)], axis=0)
    parts: dict[str, list[Answers]] = {direction: [] for direction in DIRECTIONS}
    for fold, (images, captions) in zip(folds, ends, strict=False):
        for (direction, answers), first in zip(answer(fold).items(), (captions, images), strict=True):
            parts[direction].append(answers._replace(items=answers.items + first))
    return {direction: Answers(*map(np.concatenate, zip(*each, strict=True))) for direction, each in parts.items()}


def _answers(scores: np.ndarray, query_image: np.ndarray, item_image: np.ndarray, best: int) -> Answers:
    """One direction of scores (Q, I), by blocks of queries shared out to threads."""
    query_image, item_image = query_image.astype(np.int32), item_image.astype(np.int32)
    best, rows = min(best, scores.shape[1]), max(1, BLOCK // scores.shape[1])

    def of_block(start: int) -> Answers:
        block = np.ascontiguousarray(scores[start : start + rows])  # (B, I)
        if block.dtype.kind != "f":
            block = block.astype(np.float64)
        with np.errstate(invalid="ignore"):
            if np.isnan(block.max()):
                raise InputError("similarity matrix: holds NaN; a matrix with NaN has no ranks")
            return _block_answers(block, item_image == query_image[start : start + rows, None], best)

    with ThreadPoolExecutor(available_cores(MOST_THREADS)) as pool:
        parts = list(pool.map(of_block, range(0, len(scores), rows)))
    return Answers(*map(np.concatenate, zip(*parts, strict=True)))


def _block_answers(block: np.ndarray, right: np.ndarray, best: int) -> Answers:
    own = np.where(right, block, -np.inf).max(1)  # (B,)
    other = np.where(right, -np.inf, block).max(1)  # (B,)
    rank = np.count_nonzero((block >= own[:, None]) & ~right, axis=1)
    query, item = np.nonzero(block >= _at_most_the_kth(block, best)[:, None])
    score, is_right = block[query, item], right[query, item]
    order = np.lexsort((item, is_right, -score, query))
    first = np.searchsorted(query, np.arange(len(block)))
    chosen = order[first[:, None] + np.arange(best)]  # (B, K)
    return Answers(rank, own - other, item[chosen], score[chosen], is_right[chosen])


def _at_most_the_kth(block: np.ndarray, k: int) -> np.ndarray:
    """For each row a value that at least k entries reach and few others do: the k-th largest of its chunks' maxima."""
    size = max(1, block.shape[1] // (8 * k))
    chunks = block[:, : block.shape[1] // size * size].reshape(len(block), -1, size).max(2)  # (B, chunks)
    return np.partition(chunks, -k, axis=1)[:, -k]


# ---- tables ----------------------------------------------------------------------------------------------------------


def records(answers: Answers, direction: str, items: Items) -> Iterator[dict[str, Any]]:
    """A query after the other as plain values: what it is, its rank from 1, its margin, its best items."""
    captions = [{"caption": number, "text": text} for number, text in enumerate(items.captions)]
    images = [
        {"image": number, "id": image_id, "file": file}
        for number, (image_id, file) in enumerate(zip(items.image_ids.tolist(), items.files, strict=True))
    ]
    queries, gallery = images, captions
    if direction == "t2i":
        own = items.image_of_caption.tolist()
        queries, gallery = [caption | images[own[number]] for number, caption in enumerate(captions)], images
    for query, rank, margin, *best in zip(queries, *(part.tolist() for part in answers), strict=True):
        listed = [
            gallery[item] | {"score": _short(score), "right": right} for item, score, right in zip(*best, strict=True)
        ]
        yield query | {"rank": rank + 1, "margin": _short(margin), "best": listed}


def _short(value: float) -> float | None:
    return float(f"{value:.7g}") if math.isfinite(value) else None


def _write_csv(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """One line per query; the k-th best item has the columns k_caption, k_score, …"""
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = None
        for row in rows:
            best = {f"{k}_{key}": value for k, item in enumerate(row.pop("best"), 1) for key, value in item.items()}
            if writer is None:
                writer = csv.DictWriter(file, [*row, *best], lineterminator="\n")
                writer.writeheader()
            writer.writerow({key: spreadsheet_cell(value) for key, value in (row | best).items()})


def _write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """One JSON object per line; `best` is a list of objects."""
    with open(path, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


WRITERS: dict[str, Callable[[Path, Iterable[dict]], None]] = {".csv": _write_csv, ".jsonl": _write_jsonl}


def check_table_name(path: str | Path, flag: str) -> Path:
    """The path; InputError unless its suffix names a form of table."""
    path = Path(path)
    if path.suffix not in WRITERS:
        raise InputError(f"{flag} {path}: expected a name that ends in {' or '.join(WRITERS)}")
    return path


def table_paths(path: Path) -> dict[str, Path]:
    """The table of each direction: `<stem>_i2t` and `<stem>_t2i`."""
    return {direction: path.with_stem(f"{path.stem}_{direction}") for direction in DIRECTIONS}


def save_queries(path: Path, answers: dict[str, Answers], items: Items) -> list[Path]:
    """Write a table of each direction; returns their paths."""
    paths = table_paths(path)
    for direction, table in answers.items():
        with atomic_write(paths[direction]) as temporary:
            WRITERS[path.suffix](temporary, records(table, direction, items))
    return list(paths.values())
