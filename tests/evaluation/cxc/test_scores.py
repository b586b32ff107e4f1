"""CxC: recalls against an obvious version and the golden case, from both forms of annotations, and correlation."""

from __future__ import annotations

import json

import numpy as np
import pytest

from lib.core.errors import InputError
from lib.evaluation.cxc import scores as cxc
from lib.evaluation.cxc.annotations import JSON_FILES
from lib.evaluation.cxc.scores import cxc_correlations, cxc_recalls, read_annotations
from tests.conftest import SHARED, needs_shared
from tests.evaluation.cxc.cxc_files import CAPTIONS, IMAGES, C, D, N, write, write_csvs, write_folder


def data(levels=3, seed=5):
    """Scores and vectors of few distinct whole numbers, so that ties are everywhere."""
    rng = np.random.default_rng(seed)
    shapes = ((N, C), (N, D), (C, D))
    return [rng.integers(0, levels, shape).astype(np.float32) for shape in shapes]


def slow_recalls(folder, scores, images, captions):
    """The rules, one query at a time."""
    it, i2i, t2t = (json.loads((folder / name).read_text()) for name in JSON_FILES)
    image_row = {str(i): row for row, i in enumerate(IMAGES.tolist())}
    caption_row = {str(c): row for row, c in enumerate(CAPTIONS.tolist())}
    tasks = {
        "i2t": (image_row, caption_row, it["i2t"], 0, scores),
        "t2i": (caption_row, image_row, it["t2i"], 0, scores.T),
        "i2i": (image_row, image_row, i2i, 2.5, images @ images.T),
        "t2t": (caption_row, caption_row, t2t, 3.0, captions @ captions.T),
    }
    results = {}
    for task, (query_rows, item_rows, lists, threshold, similarity) in tasks.items():
        ranks = []
        for query, row in query_rows.items():
            if task != "t2t" and query not in lists:
                continue
            listed = {str(item) for item, rating in lists.get(query, []) if rating >= threshold and str(item) != query}
            if task == "i2i" and not listed:
                continue
            positives = {item_rows[item] for item in listed if item in item_rows}
            own = C // N
            if task == "t2t":
                positives |= set(range(row // own * own, row // own * own + own)) - {row}
            if not positives:
                ranks.append(np.inf)
                continue
            best = max(similarity[row, item] for item in positives)
            self = {row} if task in ("i2i", "t2t") else set()
            wrong = set(range(similarity.shape[1])) - positives - self
            ranks.append(sum(similarity[row, item] >= best for item in wrong))
        results[task] = [100 * np.mean(np.array(ranks) < k) for k in (1, 5, 10)] + [len(ranks)]
    return results


@pytest.mark.parametrize("levels", [2, 1000])
@pytest.mark.parametrize("block", [1, 5, 512])
def test_recalls_equal_the_obvious_version(tmp_path, monkeypatch, levels, block):
    monkeypatch.setattr(cxc, "BLOCK_QUERIES", block)
    folder = write_folder(tmp_path / "cxc")
    arrays = data(levels)
    expected = slow_recalls(folder, *arrays)
    assert 0 < expected["i2i"][3] < N  # some queries without a positive, some with
    result = cxc_recalls(*arrays, read_annotations(folder))
    assert list(result) == ["i2t", "t2i", "i2i", "t2t"]
    for task, figures in result.items():
        np.testing.assert_allclose(list(figures.as_dict().values()), expected[task], atol=1e-9, err_msg=task)


def test_constant_similarities_never_look_perfect(tmp_path):
    annotations = read_annotations(write_folder(tmp_path / "cxc"))
    result = cxc_recalls(np.zeros((N, C)), np.zeros((N, D)), np.zeros((C, D)), annotations)
    assert all(figures.r1 == 0 for figures in result.values())


def test_the_query_is_no_answer_to_itself(tmp_path):
    folder = write_folder(tmp_path / "cxc")
    write(folder, "cxc_i2i.json", {str(i): [[int(i), 5.0]] for i in IMAGES})
    assert "i2i" not in cxc_recalls(*data(), read_annotations(folder))  # rated with itself alone: no query is left
    pairs = {str(a): [[int(b), 5.0]] for a, b in zip(IMAGES, np.roll(IMAGES, 1), strict=True)}
    write(folder, "cxc_i2i.json", pairs)
    circle = np.stack([np.cos(np.arange(N)), np.sin(np.arange(N))], 1)
    vectors = np.concatenate([circle * 9, np.eye(N)], 1)
    scores, _, captions = data()
    similarity = vectors @ vectors.T - 1e9 * np.eye(N)
    expected = 100 * np.mean(similarity.argmax(1) == np.roll(np.arange(N), 1))
    assert cxc_recalls(scores, vectors, captions, read_annotations(folder))["i2i"].r1 == pytest.approx(expected)


def test_positives_outside_the_gallery_are_misses_and_images_without_positives_are_skipped(tmp_path):
    folder = write_folder(tmp_path / "cxc")
    image, other, third = (str(i) for i in IMAGES[:3])
    write(folder, "cxc_it.json", {"i2t": {image: [[1, 5.0]], other: []}, "t2i": {str(CAPTIONS[0]): [[2, 4.0]]}})
    write(folder, "cxc_i2i.json", {image: [[1, 5.0]], other: [[int(third), 2.49]], third: []})
    result = cxc_recalls(*data(), read_annotations(folder))
    assert (result["i2t"].r10, result["i2t"].queries) == (0, 2)
    assert (result["t2i"].r10, result["t2i"].queries) == (0, 1)
    assert (result["i2i"].r10, result["i2i"].queries) == (0, 1)


def test_without_vectors_the_tasks_within_a_modality_are_left_out(tmp_path):
    annotations = read_annotations(write_folder(tmp_path / "cxc"))
    scores, images, _ = data()
    assert list(cxc_recalls(scores, None, None, annotations)) == ["i2t", "t2i"]
    assert list(cxc_recalls(scores, images, None, annotations)) == ["i2t", "t2i", "i2i"]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ((np.zeros((N, C - 1)), None, None), "similarity matrix"),
        ((np.zeros((N, C)), np.zeros((N - 1, D)), None), "image vectors"),
        ((np.zeros((N, C)), None, np.full((C, D), np.nan)), "caption vectors: NaN or infinity in row 0"),
        ((np.full((N, C), np.nan), None, None), "NaN at row 0, column 0"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(tmp_path, arrays, message):
    with pytest.raises(InputError, match=message):
        cxc_recalls(*arrays, read_annotations(write_folder(tmp_path / "cxc")))


def test_csv_and_json_files_of_the_same_ratings_give_the_same_figures(tmp_path):
    ratings = write_csvs(tmp_path / "csv")
    from_csv = read_annotations(tmp_path / "csv", IMAGES, CAPTIONS)
    for task, name in (("sis", "cxc_i2i.json"), ("sts", "cxc_t2t.json")):
        content = {}
        for a, b, rating in ratings[task]:
            content.setdefault(int(a), []).append([int(b), rating])
            content.setdefault(int(b), []).append([int(a), rating])
        write(tmp_path / "json", name, content)
    between = {"t2i": {}, "i2t": {}}
    own = dict(zip(CAPTIONS.tolist(), np.repeat(IMAGES, C // N).tolist(), strict=True))
    for caption, image, rating in ratings["sits"]:
        if rating >= 3 or own[int(caption)] == image:
            between["t2i"].setdefault(int(caption), []).append([int(image), rating])
            between["i2t"].setdefault(int(image), []).append([int(caption), rating])
    write(tmp_path / "json", "cxc_it.json", between)
    from_json = read_annotations(tmp_path / "json", IMAGES, CAPTIONS)
    arrays = data()
    assert cxc_recalls(*arrays, from_json) == cxc_recalls(*arrays, from_csv)
    both = cxc_correlations(*arrays, from_json, samples=50), cxc_correlations(*arrays, from_csv, samples=50)
    assert list(both[0]) == ["sts", "sis"] and list(both[1]) == ["sts", "sis", "sits"]  # cxc_it.json: positives alone
    assert all(both[0][task] == both[1][task] for task in both[0])


# ---- correlation ----


def slow_spearman(x, y):
    def rank(values):
        return [sum(v < w for v in values) + (sum(v == w for v in values) - 1) / 2 for w in values]

    return np.corrcoef(rank(x), rank(y))[0, 1]


def test_spearman_shares_average_ranks_between_ties():
    rng = np.random.default_rng(0)
    for _ in range(5):
        x, y = rng.integers(0, 6, (2, 40))
        fast = cxc._pearson(cxc._ranks_of_codes(x), cxc._ranks_of_codes(y))
        assert fast == pytest.approx(slow_spearman(x, y), abs=1e-12)


def test_each_sample_takes_half_of_the_queries_and_one_pair_of_each(monkeypatch):
    query = np.repeat(np.arange(10), np.arange(1, 11))
    drawn = []
    monkeypatch.setattr(cxc, "_ranks_of_codes", lambda codes: drawn.append(codes) or codes.astype(float))
    cxc.sampled_spearman(query, np.arange(len(query)), np.arange(len(query)), samples=200)
    assert len(drawn) == 400
    of_queries = [query[codes] for codes in drawn[::2]]  # distinct values: a code is the number of its pair
    assert all(len(set(sample.tolist())) == 5 for sample in of_queries)
    assert set(np.concatenate(drawn).tolist()) == set(range(len(query)))
    np.testing.assert_array_equal(drawn[0], drawn[1])  # x and y of the same pairs


def test_correlation_is_seeded_and_perfect_for_the_ratings_themselves():
    rng = np.random.default_rng(1)
    query = np.sort(rng.integers(0, 30, 90))
    rating, other = rng.random((2, 90))
    assert cxc.sampled_spearman(query, rating, np.exp(rating), 20).mean == pytest.approx(100)
    assert cxc.sampled_spearman(query, rating, -rating, 20).mean == pytest.approx(-100)
    assert cxc.sampled_spearman(query, rating, np.zeros(90), 20).mean == 0
    runs = [cxc.sampled_spearman(query, rating, other, 20, seed) for seed in (0, 0, 1)]
    assert runs[0] == runs[1] != runs[2] and runs[0].std > 0


def test_correlation_follows_similarities_that_follow_the_ratings(tmp_path):
    ratings = write_csvs(tmp_path)
    annotations = read_annotations(tmp_path, IMAGES, CAPTIONS)
    scores = np.zeros((N, C), np.float32)
    for caption, image, rating in ratings["sits"]:
        scores[list(IMAGES).index(image), list(CAPTIONS).index(caption)] = rating
    result = cxc_correlations(scores, None, None, annotations, samples=100)
    assert list(result) == ["sits"] and result["sits"].queries == C
    assert result["sits"].mean > 80  # a few pairs are rated twice


# ---- golden values ----


@needs_shared
def test_golden_recalls():
    golden = np.load(SHARED / "golden/golden_cxc.npz")
    annotations = read_annotations(SHARED / "golden/cxc_small/cxc_annots")
    np.testing.assert_array_equal(annotations.image_ids, golden["img_ids"])
    result = cxc_recalls(golden["sims"], golden["images"], golden["captions"], annotations)
    for task, figures in result.items():
        expected = golden[task].tolist()
        if task == "i2i":
            expected[2] = 62.5  # the query itself excluded instead of scored 0
        assert list(figures.as_dict().values())[:3] == pytest.approx(expected, abs=1e-9)
