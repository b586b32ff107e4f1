"""CxC: recalls against an obvious version and the golden case, both annotation forms, correlation, broken files."""

from __future__ import annotations

import csv
import json
import shutil

import numpy as np
import pytest

from lib.errors import InputError
from lib.evaluation import cxc, cxc_annotations
from lib.evaluation.cxc import cxc_correlations, cxc_recalls, read_annotations
from lib.evaluation.cxc_csv import COLUMNS
from tests.conftest import SHARED, needs_shared

N, C, D = 12, 36, 3
IMAGES = 500 + 7 * np.arange(N)[::-1]  # ids neither sorted nor dense
CAPTIONS = 9000 + 3 * np.random.default_rng(0).permutation(C)


def write_folder(folder, images=IMAGES, captions=CAPTIONS, seed=1):
    """Random JSON annotations; some ids lie outside the gallery, some lists are empty, some queries are missing."""
    rng = np.random.default_rng(seed)
    outside = [1, 2]

    def pairs(queries, items, low, per_query, dropped=0):
        pool = [*items.tolist(), *outside]
        lists = {"3": [[int(items[0]), 5.0]]}  # a query outside the gallery
        for query in queries[dropped:].tolist():
            lists[str(query)] = [
                [int(rng.choice(pool)), float(rng.uniform(low, 5))] for _ in range(rng.integers(per_query))
            ]
        return lists

    t2i = pairs(captions, images, 3, 3, dropped=2)
    i2t = pairs(images, captions, 3, 8)
    write(folder, "cxc_it.json", {"t2i": t2i, "i2t": i2t})
    write(folder, "cxc_i2i.json", pairs(images, images, 0, 6))
    write(folder, "cxc_t2t.json", pairs(captions, captions, 0, 6))
    (folder / "testall_ids.txt").write_text("\n".join(map(str, np.repeat(images, len(captions) // len(images)))))
    (folder / "testall_capids.txt").write_text("\n".join(map(str, captions)) + "\n")
    return folder


def write(folder, name, content):
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(json.dumps(content))


def data(levels=3, seed=5):
    """Scores and vectors of few distinct whole numbers, so that ties are everywhere."""
    rng = np.random.default_rng(seed)
    shapes = ((N, C), (N, D), (C, D))
    return [rng.integers(0, levels, shape).astype(np.float32) for shape in shapes]


def slow_recalls(folder, scores, images, captions):
    """The rules, one query at a time."""
    it, i2i, t2t = (json.loads((folder / name).read_text()) for name in cxc_annotations.JSON_FILES)
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


def test_image_ids_once_per_image_or_once_per_caption_mean_the_same(tmp_path):
    folder = write_folder(tmp_path / "cxc")
    repeated = read_annotations(folder)
    handed_in = read_annotations(folder, IMAGES, CAPTIONS)
    assert cxc_recalls(*data(), repeated) == cxc_recalls(*data(), handed_in)
    np.testing.assert_array_equal(repeated.image_ids, IMAGES)
    rows, owners = cxc_annotations.gallery_images(np.array([9, 9, 4, 9, 4]), 5)  # uneven counts
    assert rows.tolist() == [9, 4] and owners.tolist() == [0, 0, 1, 0, 1]


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


# ---- CSV files ----


def image_name(image):
    return f"COCO_val2014_{image:012d}.jpg"


def caption_name(caption):
    return f"COCO_val2014:sentid:{caption}"


def write_csvs(folder):
    """Ratings of IMAGES and CAPTIONS in the official columns; returns the SITS rows as (caption, image, rating)."""
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(3)
    ratings = {"sts": [], "sis": [], "sits": []}
    for _ in range(60):
        ratings["sts"].append((*rng.choice(CAPTIONS, 2, replace=False), rng.integers(0, 501) / 100))
        ratings["sis"].append((*rng.choice(IMAGES, 2, replace=False), rng.integers(0, 501) / 100))
        ratings["sits"].append((rng.choice(CAPTIONS), rng.choice(IMAGES), rng.integers(0, 501) / 100))
    ratings["sits"] += [(c, i, 1.5) for c, i in zip(CAPTIONS, np.repeat(IMAGES, C // N), strict=True)]
    ratings = {task: list({row[:2]: row for row in rows}.values()) for task, rows in ratings.items()}  # each pair once
    for task, name in cxc_annotations.CSV_FILES.items():
        with open(folder / name, "w", newline="") as file:
            out = csv.writer(file)
            out.writerow(COLUMNS[task])
            left, right = ("image" if "image" in column else "caption" for column in COLUMNS[task][:2])
            names = {"image": image_name, "caption": caption_name}
            out.writerows([names[left](a), names[right](b), r, "x"] for a, b, r in ratings[task])
    return ratings


def test_csv_ratings_become_positives_by_their_thresholds(tmp_path):
    ratings = write_csvs(tmp_path)
    annotations = read_annotations(tmp_path, IMAGES, CAPTIONS)
    image_row, caption_row = ({int(v): i for i, v in enumerate(ids)} for ids in (IMAGES, CAPTIONS))

    def pairs(task):
        positives = annotations.positives[task]
        return set(zip(positives.query.tolist(), positives.item.tolist(), strict=True))

    own = {(c, c // (C // N)) for c in range(C)}
    across = {(caption_row[int(c)], image_row[int(i)]) for c, i, rating in ratings["sits"] if rating >= 3} | own
    assert pairs("t2i") == across
    assert pairs("i2t") == {(i, c) for c, i in across}
    images = {(image_row[int(a)], image_row[int(b)]) for a, b, rating in ratings["sis"] if rating >= 2.5}
    assert pairs("i2i") == images | {(b, a) for a, b in images}
    captions = {(caption_row[int(a)], caption_row[int(b)]) for a, b, rating in ratings["sts"] if rating >= 3}
    together = {(a, b) for a in range(C) for b in range(C) if a // (C // N) == b // (C // N) and a != b}
    assert pairs("t2t") == captions | {(b, a) for a, b in captions} | together
    assert len(annotations.positives["t2i"].queries) == C and len(annotations.positives["i2t"].queries) == N


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


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("COCO_val2014_000000000500.jpg,COCO_val2014_000000000507.jpg", "2 columns"),
        ("COCO_val2014_000000000500.jpg,507,3.0,x", "image2 is '507'"),
        ("COCO_val2014_000000000500.jpg,COCO_val2014_000000000507.jpg,nan,x", "agg_score is 'nan'"),
    ],
)
def test_broken_csv_lines_are_named(tmp_path, line, message):
    write_csvs(tmp_path)
    path = tmp_path / "sis_test.csv"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:2], line, *lines[2:]]))
    with pytest.raises(InputError, match=f"sis_test.csv, line 3: {message}"):
        read_annotations(tmp_path, IMAGES, CAPTIONS)


def test_missing_and_broken_annotation_files_are_named(tmp_path):
    with pytest.raises(InputError, match="cxc_it.json"):
        read_annotations(tmp_path / "nowhere")
    folder = write_folder(tmp_path / "cxc")
    (folder / "cxc_t2t.json").unlink()
    write_csvs(folder)
    with pytest.raises(InputError, match="cxc_t2t.json missing"):  # half of the files is no reason to take the CSVs
        read_annotations(folder)
    (folder / "cxc_t2t.json").write_text('{"9000": [[9003, 4.0]')
    with pytest.raises(InputError, match="cxc_t2t.json: not valid JSON"):
        read_annotations(folder)
    for content in ({"a": []}, {"9000": [9003]}, [1], {"9000": {"9003": 4.0}}):
        write(folder, "cxc_t2t.json", content)
        with pytest.raises(InputError, match="unknown form"):
            read_annotations(folder)


def test_ids_must_be_distinct_integers_that_fit_the_captions(tmp_path):
    folder = write_folder(tmp_path / "cxc")
    with pytest.raises(InputError, match="caption ids repeat"):
        read_annotations(folder, IMAGES, np.zeros(C, np.int64))
    with pytest.raises(InputError, match="image ids with repetitions"):
        read_annotations(folder, np.zeros(N, np.int64), CAPTIONS)
    (folder / "testall_ids.txt").write_text("12\nb'13'\n")
    with pytest.raises(InputError, match="testall_ids.txt, line 2"):
        read_annotations(folder)
    (folder / "testall_ids.txt").unlink()
    with pytest.raises(InputError, match="testall_ids.txt: cannot be read"):
        read_annotations(folder)


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


# ---- golden values and the real files ----


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


@needs_shared
def test_facts_of_the_official_csv_files(tmp_path):
    source = SHARED / "data/cxc"
    if not source.is_dir():
        pytest.skip("the CxC files are not here")
    with open(source / "sits_test.csv", newline="") as file:
        rows = [(row[0], row[1]) for row in csv.reader(file) if row[3] == "c2i_original"]
    ids = [(int(image[-16:-4]), int(caption.split(":")[-1])) for caption, image in rows]
    image_ids, caption_ids = np.array(sorted(ids)).T
    for name in cxc_annotations.CSV_FILES.values():
        shutil.copy(source / name, tmp_path / name)
    annotations = read_annotations(tmp_path, image_ids, caption_ids)
    sits = annotations.rated["sits"]
    assert (sits.rating >= 3).sum() == 35_585 and len(np.unique(sits.first[sits.rating >= 3])) == 24_972
    counts = {task: (len(p.queries), len(p.query)) for task, p in annotations.positives.items()}
    assert counts["t2i"] == (25_000, 35_614) and counts["i2t"] == (5_000, 35_614)
    assert (np.bincount(annotations.positives["t2i"].query) > 1).sum() == 8_005
    assert counts["i2i"] == (4_791, 40_492)
    assert counts["t2t"][0] == 25_000
    sts = annotations.rated["sts"]
    both_ways = {*zip(sts.first[sts.rating >= 3].tolist(), sts.second[sts.rating >= 3].tolist(), strict=True)}
    both_ways |= {(b, a) for a, b in both_ways}
    assert (len({a for a, _ in both_ways}), len(both_ways)) == (20_205, 32_368)
