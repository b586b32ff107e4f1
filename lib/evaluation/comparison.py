"""Whether one matrix is better than another: intervals and differences by a paired bootstrap over images. numpy alone.

A draw takes N images with replacement, each with all its captions; the galleries, and so the ranks, stay as they are.
Every matrix gets the same draws. Folds are drawn apart and their recalls averaged, as in the protocol.

Letters: N images, S draws, F = 7 figures: the six recalls and RSUM.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lib.evaluation.metrics import RECALLS_AT
from lib.evaluation.report import Ranked

FIGURES = (*(f"{direction} R@{k}" for direction in ("i2t", "t2i") for k in RECALLS_AT), "RSUM")
DRAWS, LEVEL = 1000, 95


class Estimate(NamedTuple):
    """A figure and the borders of its 95 % interval."""

    value: float
    low: float
    high: float


class Difference(NamedTuple):
    """A figure above the first matrix's, its two-sided p-value, and the queries won and lost (None: RSUM)."""

    difference: Estimate
    p: float
    won: int | None
    lost: int | None


class Compared(NamedTuple):
    """One matrix by figure; `against` the first one, None for the first one itself."""

    figures: dict[str, Estimate]
    against: dict[str, Difference] | None


def compare(models: Sequence[Sequence[Ranked]], draws: int = DRAWS, seed: int = 0) -> list[Compared]:
    """Compare the galleries of each model (one, or its folds) with those of the first."""
    exact, drawn = _figures(models, None, draws), _figures(models, seed, draws)
    compared = []
    for number, galleries in enumerate(models):
        values, of_draws = exact[number, 0], drawn[number]  # (F,), (S, F)
        against = None
        if number:
            differences = of_draws - drawn[0]  # (S, F)
            won, lost = _gained(models[0], galleries), _gained(galleries, models[0])
            estimates = _estimates(values - exact[0, 0], differences)
            against = {
                name: Difference(estimate, float(p), gained, given)
                for (name, estimate), p, gained, given in zip(
                    estimates.items(), _p_values(differences), (*won, None), (*lost, None), strict=True
                )
            }
        compared.append(Compared(_estimates(values, of_draws), against))
    return compared


def _figures(models: Sequence[Sequence[Ranked]], seed: int | None, draws: int) -> np.ndarray:
    """Figures (models, S, F) of draws of images, or with seed None of all images once (S = 1)."""
    folds = []
    for number, parts in enumerate(zip(*models, strict=True)):
        n = len(parts[0].i2t)
        if seed is None:
            counts = np.ones((1, n))
        else:
            rng = np.random.default_rng((seed, number))
            counts = np.stack([np.bincount(rng.integers(n, size=n), minlength=n) for _ in range(draws)]).astype(float)
        captions = counts @ np.bincount(parts[0].image_of_caption, minlength=n)  # (S,)
        folds.append([_recalls(part, counts, captions) for part in parts])
    recalls = np.mean(folds, axis=0)  # (models, S, 6)
    return np.concatenate([recalls, recalls.sum(2, keepdims=True)], 2)


def _recalls(ranked: Ranked, counts: np.ndarray, captions: np.ndarray) -> np.ndarray:
    """The six recalls (S, 6) of a gallery where image n counts counts[:, n] times."""
    n = counts.shape[1]
    i2t = np.stack([ranked.i2t < k for k in RECALLS_AT], 1).astype(float)  # (N, 3)
    owners = ranked.image_of_caption
    t2i = np.stack([np.bincount(owners[ranked.t2i < k], minlength=n) for k in RECALLS_AT], 1).astype(float)  # (N, 3)
    return 100 * np.concatenate([counts @ i2t / n, counts @ t2i / captions[:, None]], 1)


def _gained(first: Sequence[Ranked], second: Sequence[Ranked]) -> list[int]:
    """For each recall the queries that the second gets right and the first does not."""
    pairs = list(zip(first, second, strict=True))
    return [
        sum(int(np.count_nonzero((two[direction] < k) & (one[direction] >= k))) for one, two in pairs)
        for direction in (0, 1)  # i2t, t2i
        for k in RECALLS_AT
    ]


def _estimates(values: np.ndarray, drawn: np.ndarray) -> dict[str, Estimate]:
    borders = np.percentile(drawn, [(100 - LEVEL) / 2, (100 + LEVEL) / 2], axis=0)  # (2, F)
    return {
        name: Estimate(float(value), float(low), float(high))
        for name, value, low, high in zip(FIGURES, values, *borders, strict=True)
    }


def _p_values(differences: np.ndarray) -> np.ndarray:
    """Twice the share of draws on the other side of 0 (F,), the sample itself counted as one that is."""
    sides = [np.count_nonzero(side, axis=0) for side in (differences <= 1e-9, differences >= -1e-9)]
    return np.minimum(1, 2 * (np.minimum(*sides) + 1) / (len(differences) + 1))
