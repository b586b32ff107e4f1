"""Weighted means and the choice of weights."""

from __future__ import annotations

import numpy as np
import pytest

from lib.evaluation.ensemble import CANDIDATES, average, candidate_weights, choose_weights, deviation


def test_the_mean_is_weighted_and_a_single_matrix_stays_as_it_is():
    a, b = np.array([[1.0, 2.0]], np.float32), np.array([[3.0, 6.0]], np.float32)
    assert average([a, b], [0.75, 0.25]).tolist() == [[1.5, 3.0]]
    assert average([a], [1.0]) is a


def test_a_matrix_without_weight_may_hold_infinities():
    a, b = np.array([[1.0, 2.0]], np.float32), np.full((1, 2), np.inf, np.float32)
    assert average([a, b], [1.0, 0.0]).tolist() == [[1.0, 2.0]]


@pytest.mark.parametrize("n", [1, 2, 3, 4, 12])
def test_candidates_are_distinct_weights_that_sum_to_1_and_equal_ones_come_first(n):
    found = list(candidate_weights(n))
    assert found[0] == [1 / n] * n and len(found) <= CANDIDATES + 1
    assert all(sum(weights) == pytest.approx(1) and min(weights) >= 0 for weights in found)
    assert len({tuple(weights) for weights in found[1:]}) == len(found) - 1
    single = [[float(i == j) for j in range(n)] for i in range(n)]
    assert all(weights in found for weights in single)
    if n == 2:
        assert sorted(found[1:]) == [[i / 20, 1 - i / 20] for i in range(21)] or len(found) == 22


def test_the_matrix_that_is_right_gets_the_weight_that_the_other_one_s_noise_leaves_it():
    right, noise = np.eye(6, dtype=np.float32), np.random.default_rng(0).standard_normal((6, 6)).astype(np.float32)
    weights, rsum = choose_weights([right, 4 * noise])
    assert rsum == 600 and weights[0] > 0.8
    assert choose_weights([right, right]) == ([0.5, 0.5], 600)


def test_spread_is_the_standard_deviation():
    assert deviation([np.array([[0.0, 2.0]]), np.array([[0.0, 2.0]])]) == 1.0
