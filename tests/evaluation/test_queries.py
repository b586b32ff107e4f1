"""What each query got: rank, margin and the best items, counted by hand and against the slow way."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest

from lib.core.errors import InputError
from lib.evaluation import queries
from lib.evaluation.metrics import ranks
from lib.evaluation.queries import Items, answer, answer_folds, check_table_name, records, save_queries

SCORES = np.array([[0.9, 0.1, 0.5, 0.7], [0.2, 0.3, 0.6, 0.8]], np.float32)  # captions 0 and 1 belong to image 0
ITEMS = Items(np.array([7, 9]), ["a.jpg", None], ["a ball", 'a, "b"', "a cat", "two"], np.array([0, 0, 1, 1]))


def slow(scores, right, best):
    """Rank, margin and order of every query, item by item; of equal scores the wrong ones first, then by number."""
    found = []
    for row, ok in zip(scores, right, strict=True):
        order = sorted(range(len(row)), key=lambda item: (-row[item], ok[item], item))
        first = next(place for place, item in enumerate(order) if ok[item])
        wrong = max((row[item] for item in order if not ok[item]), default=-np.inf)
        found.append((first, row[order[first]] - wrong, order[:best]))
    return found


def test_two_images_and_four_captions_by_hand():
    i2t, t2i = answer(SCORES, best=3).values()
    assert i2t.rank.tolist() == [0, 0]
    np.testing.assert_allclose(i2t.margin, [0.2, 0.5], atol=1e-6)
    assert i2t.items.tolist() == [[0, 3, 2], [3, 2, 1]]
    assert i2t.right.tolist() == [[True, False, False], [True, True, False]]
    assert t2i.rank.tolist() == [0, 1, 0, 0] and t2i.items.tolist() == [[0, 1], [1, 0], [1, 0], [1, 0]]
    np.testing.assert_allclose(t2i.margin, [0.7, -0.2, 0.1, 0.1], atol=1e-6)
    np.testing.assert_allclose(t2i.scores[1], [0.3, 0.1], atol=1e-6)


@pytest.mark.parametrize("kind", ["distinct", "tied", "constant", "infinite", "integers", "float16"])
def test_ranks_are_those_of_the_recalls_and_the_best_items_those_of_sorting(monkeypatch, kind):
    rng = np.random.default_rng(0)
    scores = {
        "distinct": rng.standard_normal((13, 70)).astype(np.float32),
        "tied": rng.integers(0, 6, (13, 70)).astype(np.float32),
        "constant": np.zeros((13, 70), np.float32),
        "infinite": np.where(rng.random((13, 70)) < 0.3, -np.inf, 1.0),
        "integers": rng.integers(-5, 5, (13, 70)),
        "float16": rng.standard_normal((13, 70)).astype(np.float16),
    }[kind]
    owners = np.sort(np.concatenate([np.arange(13), rng.integers(0, 13, 57)]))
    monkeypatch.setattr(queries, "BLOCK", 150)  # several blocks of queries
    right = owners[None] == np.arange(13)[:, None]
    with np.errstate(invalid="ignore"):
        found = answer(scores, owners, best=4)
        for answers, expected_ranks, matrix, ok in zip(
            found.values(), ranks(scores, owners), (scores, scores.T), (right, right.T), strict=True
        ):
            np.testing.assert_array_equal(answers.rank, expected_ranks)
            expected = slow(matrix.astype(np.float64), ok, 4)
            assert answers.items.tolist() == [items for _, _, items in expected]
            np.testing.assert_allclose(answers.margin, [margin for _, margin, _ in expected], atol=1e-3)
            np.testing.assert_array_equal(answers.right, np.take_along_axis(ok, answers.items, 1))
            np.testing.assert_array_equal(answers.scores, np.take_along_axis(matrix, answers.items, 1))


def test_nan_has_no_rank():
    with pytest.raises(InputError, match="NaN"):
        answer(np.array([[1.0, np.nan]]))


def test_folds_are_galleries_of_their_own_and_numbers_count_over_all():
    one, two = answer_folds([SCORES, SCORES]).values()
    assert one.items.tolist() == [[0, 3, 2, 1], [3, 2, 1, 0], [4, 7, 6, 5], [7, 6, 5, 4]]
    assert two.items[:, 0].tolist() == [0, 1, 1, 1, 2, 3, 3, 3] and two.rank.tolist() == [0, 1, 0, 0] * 2
    for part, whole in zip(answer_folds([SCORES]).values(), answer(SCORES).values(), strict=True):
        assert all(map(np.array_equal, part, whole))


def test_a_record_names_the_query_and_what_it_got():
    first, second = records(answer(SCORES, best=1)["i2t"], "i2t", ITEMS)
    assert first == {
        "image": 0, "id": 7, "file": "a.jpg", "rank": 1, "margin": 0.2,
        "best": [{"caption": 0, "text": "a ball", "score": 0.9, "right": True}],
    }  # fmt: skip
    assert second["file"] is None
    caption = list(records(answer(SCORES, best=1)["t2i"], "t2i", ITEMS))[1]
    assert caption == {
        "caption": 1, "text": 'a, "b"', "image": 0, "id": 7, "file": "a.jpg", "rank": 2, "margin": -0.2,
        "best": [{"image": 1, "id": 9, "file": None, "score": 0.3, "right": False}],
    }  # fmt: skip


def test_a_margin_that_is_no_number_is_null():
    (record,) = records(answer(np.ones((1, 2)))["i2t"], "i2t", Items(np.array([1]), [None], ["a", "b"], np.zeros(2)))
    assert record["margin"] is None


def test_both_forms_of_table_hold_every_query_of_both_directions(tmp_path):
    found = answer(SCORES)
    paths = [save_queries(tmp_path / f"q{suffix}", found, ITEMS) for suffix in (".csv", ".jsonl")]
    assert [[path.name for path in each] for each in paths] == [
        ["q_i2t.csv", "q_t2i.csv"], ["q_i2t.jsonl", "q_t2i.jsonl"]
    ]  # fmt: skip
    for table, lines in zip(*paths, strict=True):
        objects = [json.loads(line) for line in lines.read_text(encoding="utf-8").splitlines()]
        with open(table, encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        assert len(rows) == len(objects)
        for row, each in zip(rows, objects, strict=True):
            best = each.pop("best")
            flat = each | {f"{k}_{key}": value for k, item in enumerate(best, 1) for key, value in item.items()}
            assert row == {key: "" if value is None else str(value) for key, value in flat.items()}


def test_the_name_of_a_table_says_its_form():
    with pytest.raises(InputError, match=r"--save_queries q.txt: expected a name that ends in .csv or .jsonl"):
        check_table_name("q.txt", "--save_queries")
