"""Ranks and recalls against an obvious version, the tie rule, uneven captions, folds and bad matrices."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest

from lib.core.errors import InputError
from lib.evaluation import metrics
from lib.evaluation.metrics import fold_blocks, mean_retrieval, ranks, recalls, retrieval_metrics
from tests.conftest import SHARED, needs_shared


def slow_ranks(scores, owners):
    """One pair at a time: wrong items that score at least as high as the right one rank before it."""
    n_images, n_captions = scores.shape
    i2t, t2i = [], []
    for image in range(n_images):
        best = max(scores[image, c] for c in range(n_captions) if owners[c] == image)
        i2t.append(sum(scores[image, c] >= best for c in range(n_captions) if owners[c] != image))
    for c in range(n_captions):
        t2i.append(sum(scores[i, c] >= scores[owners[c], c] for i in range(n_images) if i != owners[c]))
    return np.array(i2t), np.array(t2i)


def assert_same_ranks(scores, owners=None):
    expected_owners = np.arange(scores.shape[1]) // (scores.shape[1] // len(scores)) if owners is None else owners
    for got, expected in zip(ranks(scores, owners), slow_ranks(scores, expected_owners), strict=True):
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (2, 2), (7, 35), (70, 210)])
@pytest.mark.parametrize("levels", [0, 3])  # 3 levels: nearly everything is a tie
def test_ranks_equal_the_obvious_version(shape, levels):
    rng = np.random.default_rng(1)
    scores = rng.integers(0, levels, shape).astype(np.float32) if levels else rng.standard_normal(shape, np.float32)
    assert_same_ranks(scores)


def test_ranks_with_uneven_unordered_captions_equal_the_obvious_version():
    rng = np.random.default_rng(2)
    owners = rng.permutation(np.concatenate([np.arange(9), rng.integers(0, 9, 20)]))
    assert_same_ranks(rng.integers(0, 4, (9, 29)).astype(np.float32), owners)


@pytest.mark.parametrize("dtype", ["float16", "float64", ">f4", "int32", "uint8"])
def test_every_real_dtype_and_memory_order_ranks_alike(dtype):
    scores = np.random.default_rng(3).integers(0, 50, (11, 55)).astype(dtype)
    assert_same_ranks(scores)
    assert_same_ranks(np.asfortranarray(scores))
    assert_same_ranks(np.repeat(scores, 2, axis=1)[:, ::2])


def test_a_constant_matrix_gets_the_worst_ranks():
    result = retrieval_metrics(np.zeros((20, 100), np.float32))
    assert result.rsum == 0
    assert result.i2t.medr == result.i2t.meanr == 96  # all 95 captions of others come first
    assert result.t2i.medr == result.t2i.meanr == 20


def test_other_captions_of_the_same_image_never_count_against_it():
    scores = np.array([[9, 9, 8, 1], [1, 2, 7, 7]], np.float32)
    i2t, _ = ranks(scores)
    assert i2t.tolist() == [0, 0]


def test_infinities_are_ordered_like_other_values():
    scores = np.random.default_rng(4).standard_normal((6, 12)).astype(np.float32)
    scores[1] = -np.inf
    scores[2, 3] = np.inf
    assert_same_ranks(scores)


def test_shared_work_gives_the_ranks_of_one_thread(monkeypatch):
    scores = np.random.default_rng(5).integers(0, 999, (1100, 1100)).astype(np.float32)
    monkeypatch.setattr(metrics, "available_cores", lambda most: 1)
    one = ranks(scores)
    monkeypatch.setattr(metrics, "available_cores", lambda most: 3)
    three = ranks(scores)
    for a, b in zip(one, three, strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(one[1], (scores >= np.diag(scores)).sum(0) - 1)  # more rows than a uint8 counts


def test_a_memory_mapped_matrix_is_ranked_in_place(tmp_path):
    scores = np.random.default_rng(6).standard_normal((30, 150)).astype(np.float32)
    np.save(tmp_path / "a.npy", scores)
    assert retrieval_metrics(np.load(tmp_path / "a.npy", mmap_mode="r")) == retrieval_metrics(scores)


@pytest.mark.parametrize("place", [(0, 0), (4, 17), (199, 999)])
def test_nan_is_an_error_that_says_where(place):
    scores = np.random.default_rng(7).standard_normal((200, 1000)).astype(np.float32)
    scores[place] = np.nan
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(InputError, match=f"NaN at row {place[0]}, column {place[1]}"):
            ranks(scores)


@pytest.mark.parametrize(
    ("scores", "owners", "message"),
    [
        (np.zeros(5), None, "shape"),
        (np.zeros((0, 5)), None, "shape"),
        (np.zeros((2, 4), complex), None, "dtype"),
        (np.zeros((2, 4), object), None, "dtype"),
        (np.zeros((2, 5)), None, "5 captions are no multiple of 2 images"),
        (np.zeros((10, 2)), None, "transposed"),
        (np.zeros((2, 4)), [0, 0, 1], "one integer for each of 4 captions"),
        (np.zeros((2, 4)), [0.0, 0.0, 1.0, 1.0], "one integer"),
        (np.zeros((2, 4)), [0, 0, 1, 2], "expected 0 to 1"),
        (np.zeros((2, 4)), [0, 0, -1, 1], "expected 0 to 1"),
        (np.zeros((3, 4)), [0, 0, 2, 2], "image 1 has no caption"),
    ],
)
def test_bad_matrices_and_owners_are_refused(scores, owners, message):
    with pytest.raises(InputError, match=message):
        ranks(scores, owners)


def test_recalls_count_from_zero_and_report_ranks_from_one():
    figures = recalls(np.array([0, 1, 4, 5, 9, 10]))
    assert (figures.r1, figures.r5, figures.r10) == (100 / 6, 50.0, 500 / 6)
    assert figures.medr == 5.0  # median 4.5
    assert figures.meanr == pytest.approx(29 / 6 + 1)
    with pytest.raises(InputError, match="no ranks"):
        recalls(np.array([]))


def folds(scores, owners=None):
    return [retrieval_metrics(*block) for block in fold_blocks(scores, owners, 5)]


def test_folds_are_the_diagonal_blocks_and_the_mean_is_the_mean_of_their_figures():
    scores = np.random.default_rng(8).standard_normal((50, 250)).astype(np.float32)
    parts = folds(scores)
    mean = mean_retrieval(parts)
    assert parts == [retrieval_metrics(scores[i : i + 10, 5 * i : 5 * i + 50]) for i in range(0, 50, 10)]
    assert mean.rsum == pytest.approx(np.mean([part.rsum for part in parts]), abs=1e-12)
    for figure in ("r1", "r5", "r10", "medr", "meanr"):
        expected = np.mean([getattr(part.t2i, figure) for part in parts])
        assert getattr(mean.t2i, figure) == pytest.approx(expected, abs=1e-12)


def test_folds_follow_unordered_captions():
    rng = np.random.default_rng(9)
    scores = rng.standard_normal((10, 50)).astype(np.float32)
    order = rng.permutation(50)
    assert folds(scores[:, order], (np.arange(50) // 5)[order]) == folds(scores)


def test_images_that_do_not_divide_into_folds_are_refused():
    with pytest.raises(InputError, match="7 images don't divide into 5 folds"):
        folds(np.zeros((7, 7)))


def test_figures_are_plain_numbers_for_json():
    figures = retrieval_metrics(np.eye(5, dtype=np.float32)).as_dict()
    assert figures["rsum"] == 600.0 and figures["i2t"] == {"r1": 100, "r5": 100, "r10": 100, "medr": 1, "meanr": 1}
    assert all(type(value) is float for value in figures["t2i"].values())


@needs_shared
@pytest.mark.parametrize("name", ["sims", "single_sims"])
def test_golden_recalls(name):
    golden = np.load(SHARED / "golden/golden_ranking.npz")
    result = retrieval_metrics(golden[name])
    prefix = "" if name == "sims" else "single_"
    for direction in ("i2t", "t2i"):
        figures = list(getattr(result, direction).as_dict().values())
        np.testing.assert_allclose(figures, golden[prefix + direction], rtol=0, atol=1e-9)
    if not prefix:
        for got, expected in zip(ranks(golden[name]), (golden["i2t_ranks"], golden["t2i_ranks"]), strict=True):
            np.testing.assert_array_equal(got, expected)


@needs_shared
def test_ties_never_rank_better_than_the_released_order():
    golden = np.load(SHARED / "golden/golden_ranking_ties.npz")
    result = retrieval_metrics(golden["sims"])
    for direction in ("i2t", "t2i"):
        figures = getattr(result, direction)
        assert (figures.r1, figures.r5, figures.r10) <= tuple(golden[direction][:3])
        assert figures.meanr >= golden[direction][4] or math.isclose(figures.meanr, golden[direction][4])
