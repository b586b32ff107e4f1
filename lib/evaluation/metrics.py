"""Ranks, recalls and folds of a similarity matrix: rows are images, columns are captions. numpy alone.

Letters: N images, C captions, K cut-off of a recall.

The tie rule, here and in `lib.evaluation.cxc.scores`: of two items with the same score the wrong one ranks before the
right one. A constant matrix therefore gets the worst ranks, never perfect ones.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass

import numpy as np

from lib.core.errors import InputError
from lib.core.machine import available_cores

RECALLS_AT = (1, 5, 10)
BLOCK_ROWS = 64  # rows taken from the matrix at once: what a memory-mapped or column-major matrix costs in memory
MOST_THREADS = 8  # reading memory stops getting faster beyond a few
COUNT_FLUSH = 255  # additions of 0 or 1 that fit into uint8


@dataclass(frozen=True)
class Recalls:
    """R@1, R@5, R@10 in percent, and the median and mean rank counted from 1."""

    r1: float
    r5: float
    r10: float
    medr: float
    meanr: float

    def as_dict(self) -> dict[str, float]:
        """The figures as plain numbers for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Retrieval:
    """Both directions of one gallery, and RSUM, the sum of the six recalls."""

    i2t: Recalls
    t2i: Recalls
    rsum: float

    def as_dict(self) -> dict:
        """The figures as nested plain numbers for JSON."""
        return asdict(self)


def check_matrix(scores: np.ndarray, what: str = "similarity matrix") -> np.ndarray:
    """`scores` as an array (N, C) without copying it; raises InputError when it is no non-empty matrix of numbers."""
    scores = np.asanyarray(scores)
    if scores.ndim != 2 or scores.size == 0:
        raise InputError(f"{what}: shape {scores.shape}, expected (images, captions), both at least 1")
    if scores.dtype.kind not in "fiu":
        raise InputError(f"{what}: dtype {scores.dtype}, expected real numbers such as float32")
    return scores


def caption_owners(shape: tuple[int, int], image_of_caption: np.ndarray | None = None) -> np.ndarray:
    """The row (C,) of the image that each caption belongs to; None means C / N successive captions for every image.

    Raises InputError when C is no multiple of N, an entry names no row, or an image has no caption.
    """
    n_images, n_captions = shape
    if image_of_caption is None:
        if n_captions % n_images:
            hint = "; rows must be images and columns captions, is it transposed?" if n_images > n_captions else ""
            raise InputError(f"{n_captions} captions are no multiple of {n_images} images{hint}")
        return np.repeat(np.arange(n_images), n_captions // n_images)
    owners = np.asarray(image_of_caption)
    if owners.shape != (n_captions,) or owners.dtype.kind not in "iu":
        raise InputError(
            f"image_of_caption: {owners.dtype} of shape {owners.shape}, "
            f"expected one integer for each of {n_captions} captions"
        )
    if owners.min() < 0 or owners.max() >= n_images:
        raise InputError(f"image_of_caption: entries {owners.min()} to {owners.max()}, expected 0 to {n_images - 1}")
    without = np.flatnonzero(np.bincount(owners, minlength=n_images) == 0)
    if without.size:
        raise InputError(f"image {without[0]} has no caption ({without.size} such); every image needs at least one")
    return owners.astype(np.int64, copy=False)


def ranks(scores: np.ndarray, image_of_caption: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Ranks of both directions from 0: i2t (N,) and t2i (C,), in one pass over the matrix.

    i2t: how many captions of other images score at least as high as the image's own best caption.
    t2i: how many other images score at least as high for the caption as its own.
    Infinities are ordered like any other value. Raises InputError for NaN, naming row and column.
    """
    scores = check_matrix(scores)
    owners = caption_owners(scores.shape, image_of_caption)
    captions = np.argsort(owners, kind="stable")  # those of image 0 first
    own = np.empty(len(owners), scores.dtype)
    own[captions] = scores[owners[captions], captions]  # (C,), read row by row
    first = np.searchsorted(owners[captions], np.arange(len(scores)))
    with np.errstate(invalid="ignore"):  # NaN is found, and reported with its place, by the pass below
        best_own = np.maximum.reduceat(own[captions], first)  # (N,)
    i2t, t2i = count_at_least(scores, best_own, own)
    i2t -= np.bincount(owners[own >= best_own[owners]], minlength=len(scores))  # its own captions don't count
    return i2t, t2i - 1  # nor does the own image


def count_at_least(
    scores: np.ndarray, row_thresholds: np.ndarray, column_thresholds: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray | None]:
    """How many entries of each row reach that row's threshold (N,), and of each column the column's (C,).

    One pass; rows are shared out to threads and each row is used while it lies in cache. Raises InputError for NaN.
    """
    n_rows, n_columns = scores.shape
    row_counts = np.empty(n_rows, np.int64)

    @np.errstate(invalid="ignore")
    def count(start: int, stop: int) -> np.ndarray:
        reached = np.empty(n_columns, np.bool_)
        few = np.zeros(n_columns, np.uint8)  # column counts since the last flush
        column_counts = np.zeros(n_columns, np.int64)
        for first in range(start, stop, BLOCK_ROWS):
            block = np.ascontiguousarray(scores[first : min(first + BLOCK_ROWS, stop)])  # a copy only if column-major
            for i, row in enumerate(block, first):
                if math.isnan(row.max()):
                    where = f"row {i}, column {np.isnan(row).argmax()}"
                    raise InputError(f"similarity matrix: NaN at {where}; a matrix with NaN has no ranks")
                np.greater_equal(row, row_thresholds[i], out=reached)
                row_counts[i] = np.count_nonzero(reached)
                if column_thresholds is not None:
                    np.greater_equal(row, column_thresholds, out=reached)
                    few += reached.view(np.uint8)
                    if (i - start) % COUNT_FLUSH == COUNT_FLUSH - 1:
                        column_counts += few
                        few[:] = 0
        return column_counts + few

    n_threads = max(1, min(available_cores(MOST_THREADS), scores.size >> 18))
    borders = [n_rows * t // n_threads for t in range(n_threads + 1)]
    if n_threads == 1:
        parts = [count(0, n_rows)]
    else:
        with ThreadPoolExecutor(n_threads) as pool:
            parts = list(pool.map(count, borders[:-1], borders[1:]))
    return row_counts, None if column_thresholds is None else np.sum(parts, axis=0)


def recalls(ranks: np.ndarray) -> Recalls:
    """R@K = percentage of ranks < K; MedR = floor(median) + 1; MeanR = mean + 1, for ranks counted from 0."""
    ranks = np.asarray(ranks)
    if ranks.size == 0:
        raise InputError("no ranks: recalls need at least one query")
    r1, r5, r10 = (100.0 * int(np.count_nonzero(ranks < k)) / ranks.size for k in RECALLS_AT)
    return Recalls(r1, r5, r10, float(math.floor(np.median(ranks)) + 1), float(ranks.mean() + 1))


def retrieval_metrics(scores: np.ndarray, image_of_caption: np.ndarray | None = None) -> Retrieval:
    """Recalls of both directions and RSUM of a matrix (N, C)."""
    i2t, t2i = (recalls(direction) for direction in ranks(scores, image_of_caption))
    return retrieval(i2t, t2i)


def fold_blocks(
    scores: np.ndarray, image_of_caption: np.ndarray | None, n_folds: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """`n_folds` diagonal blocks of N / n_folds successive images, each with its captions and their images' rows in it.

    COCO 1K is five folds of a 5,000 x 25,000 matrix. Raises InputError if N is no multiple of n_folds.
    """
    scores = check_matrix(scores)
    if n_folds < 1 or len(scores) % n_folds:
        raise InputError(f"{len(scores)} images don't divide into {n_folds} folds of equal size")
    owners = caption_owners(scores.shape, image_of_caption)
    size = len(scores) // n_folds
    for first in range(0, len(scores), size):
        captions = np.flatnonzero((owners >= first) & (owners < first + size))
        start, stop = captions[0], captions[-1] + 1
        columns = slice(start, stop) if stop - start == len(captions) else captions  # a view where they lie together
        yield scores[first : first + size, columns], owners[columns] - first


def mean_retrieval(results: list[Retrieval]) -> Retrieval:
    """The mean of every figure over several results (MedR and MeanR too, so they may be fractions)."""
    return retrieval(_mean([result.i2t for result in results]), _mean([result.t2i for result in results]))


def _mean(parts: list[Recalls]) -> Recalls:
    columns = zip(*(part.as_dict().values() for part in parts), strict=True)
    return Recalls(*(math.fsum(column) / len(parts) for column in columns))


def retrieval(i2t: Recalls, t2i: Recalls) -> Retrieval:
    """Both directions with their RSUM."""
    return Retrieval(i2t, t2i, i2t.r1 + i2t.r5 + i2t.r10 + t2i.r1 + t2i.r5 + t2i.r10)
