"""Weighted means of similarity matrices, and weights chosen on a validation split. numpy alone.

Letters: N images, C captions.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

import numpy as np

from lib.evaluation.metrics import retrieval_metrics

BLOCK_ROWS = 128  # rows of every matrix held at once while averaging
FINEST, CANDIDATES = 20, 300  # weights are tried in steps of 1/20, or coarser where that makes too many


def average(matrices: Sequence[np.ndarray], weights: Sequence[float], progress=iter) -> np.ndarray:
    """The weighted mean (N, C) in float32, summed in float64 by blocks of rows; a single matrix stays as it is."""
    if len(matrices) == 1:
        return matrices[0]
    mean = np.empty(matrices[0].shape, np.float32)
    for start in progress(range(0, len(mean), BLOCK_ROWS)):
        rows = slice(start, start + BLOCK_ROWS)
        total = np.zeros(mean[rows].shape, np.float64)
        for matrix, weight in zip(matrices, weights, strict=True):
            if weight:
                total += np.multiply(matrix[rows], weight, dtype=np.float64)
        mean[rows] = total
    return mean


def deviation(folds: Sequence[np.ndarray]) -> float:
    """Standard deviation of the scores in up to 256 rows, evenly chosen."""
    sample = [np.asarray(fold[:: max(1, len(fold) * len(folds) // 256)], np.float64) for fold in folds]
    return float(np.std(np.concatenate([rows.ravel() for rows in sample])))


def choose_weights(
    matrices: Sequence[np.ndarray], image_of_caption: np.ndarray | None = None, progress=list
) -> tuple[list[float], float]:
    """The weights with the highest RSUM of the mean, and that RSUM; of equal ones those closest to equal weights."""
    best, weights = -1.0, None
    for candidate in progress(list(candidate_weights(len(matrices)))):
        rsum = retrieval_metrics(average(matrices, candidate), image_of_caption).rsum
        if rsum > best:
            best, weights = rsum, candidate
    return weights, best


def candidate_weights(n: int) -> Iterator[list[float]]:
    """Equal weights, then all that are multiples of a step and sum to 1, from the most equal to single matrices."""
    yield [1 / n] * n
    steps = next(s for s in range(FINEST, 0, -1) if s == 1 or math.comb(s + n - 1, n - 1) <= CANDIDATES)
    divisions = []
    for bars in itertools.combinations(range(steps + n - 1), n - 1):
        ends = (-1, *bars, steps + n - 1)
        divisions.append([stop - start - 1 for start, stop in itertools.pairwise(ends)])
    for counts in sorted(divisions, key=lambda counts: sum(count**2 for count in counts)):
        yield [count / steps for count in counts]
