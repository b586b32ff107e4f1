"""CxC's annotations: both forms of files, ids, positives, and files that are missing or broken."""

from __future__ import annotations

import csv
import shutil

import numpy as np
import pytest

from lib.core.errors import InputError
from lib.evaluation.cxc.annotations import CSV_FILES, Rows, gallery_images, read_annotations
from tests.conftest import SHARED, needs_shared
from tests.evaluation.cxc.cxc_files import CAPTIONS, IMAGES, C, N, image_name, write, write_csvs, write_folder


def pairs(annotations, task):
    """Rows of queries with the rows of their positives."""
    positives = annotations.positives[task]
    return set(zip(positives.query.tolist(), positives.item.tolist(), strict=True))


def test_image_ids_once_per_image_or_once_per_caption_mean_the_same(tmp_path):
    folder = write_folder(tmp_path / "cxc")
    repeated = read_annotations(folder)
    handed_in = read_annotations(folder, IMAGES, CAPTIONS)
    assert all(pairs(repeated, task) == pairs(handed_in, task) != set() for task in repeated.positives)
    np.testing.assert_array_equal(repeated.image_ids, IMAGES)
    rows, owners = gallery_images(np.array([9, 9, 4, 9, 4]), 5)  # uneven counts
    assert rows.tolist() == [9, 4] and owners.tolist() == [0, 0, 1, 0, 1]


def test_csv_ratings_become_positives_by_their_thresholds(tmp_path):
    ratings = write_csvs(tmp_path)
    annotations = read_annotations(tmp_path, IMAGES, CAPTIONS)
    image_row, caption_row = ({int(v): i for i, v in enumerate(ids)} for ids in (IMAGES, CAPTIONS))
    own = {(c, c // (C // N)) for c in range(C)}
    across = {(caption_row[int(c)], image_row[int(i)]) for c, i, rating in ratings["sits"] if rating >= 3} | own
    assert pairs(annotations, "t2i") == across
    assert pairs(annotations, "i2t") == {(i, c) for c, i in across}
    images = {(image_row[int(a)], image_row[int(b)]) for a, b, rating in ratings["sis"] if rating >= 2.5}
    assert pairs(annotations, "i2i") == images | {(b, a) for a, b in images}
    captions = {(caption_row[int(a)], caption_row[int(b)]) for a, b, rating in ratings["sts"] if rating >= 3}
    together = {(a, b) for a in range(C) for b in range(C) if a // (C // N) == b // (C // N) and a != b}
    assert pairs(annotations, "t2t") == captions | {(b, a) for a, b in captions} | together
    assert len(annotations.positives["t2i"].queries) == C and len(annotations.positives["i2t"].queries) == N


def json_folder(folder, images=(), captions=()):
    """JSON annotations that say nothing but these lists of similar images and captions."""
    write_folder(folder)
    write(folder, "cxc_it.json", {"i2t": {}, "t2i": {}})
    write(folder, "cxc_i2i.json", dict(images))
    write(folder, "cxc_t2t.json", dict(captions))
    return folder


def test_a_rating_on_the_threshold_is_positive(tmp_path):
    image, second, third = IMAGES[:3].tolist()
    caption, others = CAPTIONS[0].item(), CAPTIONS[[5, 9]].tolist()  # captions of three images
    lists = [(image, [[second, 2.5], [third, 2.49]])], [(caption, [[others[0], 3.0], [others[1], 2.99]])]
    annotations = read_annotations(json_folder(tmp_path / "cxc", *lists))
    assert pairs(annotations, "i2i") == {(0, 1)}
    assert {item for query, item in pairs(annotations, "t2t") if query == 0} == {1, 2, 5}  # 1 and 2 are its image's


def test_a_pair_that_is_rated_both_ways_is_positive_when_either_rating_is(tmp_path):
    write_csvs(tmp_path)
    names = [f"{image_name(a)},{image_name(b)}" for a, b in (IMAGES[:2], IMAGES[1::-1])]
    header = (tmp_path / "sis_test.csv").read_text().splitlines()[0]
    (tmp_path / "sis_test.csv").write_text(f"{header}\n{names[0]},1.0,x\n{names[1]},2.6,x\n")
    assert pairs(read_annotations(tmp_path, IMAGES, CAPTIONS), "i2i") == {(0, 1), (1, 0)}


@pytest.mark.parametrize(("lowest", "tasks"), [(2.5, ["sts"]), (2.49, ["sis", "sts"])])
def test_lists_of_positives_alone_are_no_ratings_for_a_correlation(tmp_path, lowest, tasks):
    image, second = IMAGES[:2].tolist()
    captions = [(CAPTIONS[0].item(), [[CAPTIONS[5].item(), 0.0]])]
    annotations = read_annotations(json_folder(tmp_path / "cxc", [(image, [[second, lowest]])], captions))
    assert list(annotations.rated) == tasks
    assert annotations.rated["sts"].rating.tolist() == [0.0]


def test_an_id_outside_the_gallery_has_no_row():
    assert Rows(np.array([7, 3, 5]))(np.array([5, 4, 3, 9, 7, 0])).tolist() == [2, -1, 1, -1, 0, -1]


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
    with pytest.raises(InputError, match="testall_ids.txt: no such file"):
        read_annotations(folder)


@needs_shared
def test_facts_of_the_official_csv_files(tmp_path):
    source = SHARED / "data/cxc"
    if not source.is_dir():
        pytest.skip("the CxC files are not here")
    with open(source / "sits_test.csv", newline="") as file:
        rows = [(row[0], row[1]) for row in csv.reader(file) if row[3] == "c2i_original"]
    ids = [(int(image[-16:-4]), int(caption.split(":")[-1])) for caption, image in rows]
    image_ids, caption_ids = np.array(sorted(ids)).T
    for name in CSV_FILES.values():
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
