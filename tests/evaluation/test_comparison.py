"""Intervals, paired differences and queries won and lost, where they can be counted by hand."""

from __future__ import annotations

import numpy as np
import pytest

from lib.datasets import data_set
from lib.evaluation.comparison import FIGURES, compare
from lib.evaluation.report import Ranked, evaluate_matrix, ranked_galleries

N = 200
OWNERS = np.repeat(np.arange(N), 5)


def ranked(i2t, t2i=None) -> Ranked:
    """A gallery of N images with five captions each, whose captions have rank 0 unless they are given."""
    return Ranked(np.asarray(i2t), np.zeros(5 * N, int) if t2i is None else np.asarray(t2i), OWNERS)


def test_values_are_those_of_the_recalls_also_as_means_of_folds_and_with_uneven_captions():
    rng = np.random.default_rng(0)
    owners = np.sort(np.concatenate([np.arange(50), rng.integers(0, 50, 60)]))
    scores = rng.standard_normal((50, 110)) + 2 * (owners == np.arange(50)[:, None])
    for (_, galleries), expected in zip(
        ranked_galleries(data_set("coco"), scores, owners),
        [row.result for row in evaluate_matrix(data_set("coco"), scores, owners)[-2:]],
        strict=True,
    ):
        (found,) = compare([galleries], draws=10)
        recalls = [getattr(getattr(expected, way), r) for way in ("i2t", "t2i") for r in ("r1", "r5", "r10")]
        assert [each.value for each in found.figures.values()] == pytest.approx([*recalls, expected.rsum])
        assert found.against is None and tuple(found.figures) == FIGURES


def test_the_interval_of_a_recall_is_that_of_a_binomial():
    """100 of 200 images are found: standard deviation 100 * sqrt(0.25 / 200) = 3.54."""
    (found,) = compare([[ranked(np.arange(N) % 2)]], draws=4000)
    half = found.figures["i2t R@1"]
    assert half.value == 50 and half.low == pytest.approx(50 - 1.96 * 3.54, abs=0.6)
    assert half.high == pytest.approx(50 + 1.96 * 3.54, abs=0.6)
    assert found.figures["t2i R@1"] == (100, 100, 100) and found.figures["i2t R@5"] == (100, 100, 100)


def test_captions_of_an_image_are_drawn_together():
    """Five captions of one image succeed or fail together, so t2i varies as much as i2t, not less."""
    (found,) = compare([[ranked(np.arange(N) % 2, np.repeat(np.arange(N) % 2, 5))]])
    assert found.figures["i2t R@1"] == found.figures["t2i R@1"]


def test_a_matrix_is_not_better_than_itself():
    same = [ranked(np.arange(N) % 3)]
    _, found = compare([same, same], draws=200)
    for name, each in found.against.items():
        assert each.difference == (0, 0, 0) and each.p == 1
        assert (each.won, each.lost) == ((None, None) if name == "RSUM" else (0, 0))


def test_a_difference_on_the_same_queries_is_found_where_both_intervals_overlap():
    """The second gets 10 images more, and loses none: the intervals are wide, the paired difference is not."""
    first = np.arange(N) % 2
    second = first.copy()
    second[np.flatnonzero(first)[:10]] = 0
    one, two = compare([[ranked(first)], [ranked(second)]])
    won = two.against["i2t R@1"]
    assert two.figures["i2t R@1"].low < one.figures["i2t R@1"].high
    assert won.difference.value == pytest.approx(5) and won.difference.low > 0 and won.p < 0.01
    assert (won.won, won.lost) == (10, 0) and two.against["i2t R@5"].p == 1
    back = compare([[ranked(second)], [ranked(first)]])[1].against["i2t R@1"]
    assert (back.won, back.lost, back.p) == (0, 10, won.p)
    assert back.difference.low == pytest.approx(-won.difference.high)


def test_chance_differences_are_rarely_significant():
    rng = np.random.default_rng(0)
    p = [
        compare([[ranked(rng.integers(0, 2, N))], [ranked(rng.integers(0, 2, N))]], draws=200)[1].against["i2t R@1"].p
        for _ in range(100)
    ]
    assert 0 <= np.mean(np.array(p) < 0.05) < 0.13 and 0.3 < np.mean(p) < 0.7


def test_the_seed_decides_the_draws():
    model = [ranked(np.arange(N) % 2)]
    assert compare([model], 50, seed=1) == compare([model], 50, seed=1) != compare([model], 50, seed=2)
