"""Protocols are rows of a table that data sets name; CxC is the one of COCO's testall."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from lib.core.errors import InputError
from lib.datasets import DATA_SETS, data_set
from lib.evaluation.cxc.annotations import read_annotations
from lib.evaluation.cxc.scores import cxc_correlations, cxc_recalls
from lib.evaluation.protocols import PROTOCOLS, Scores
from lib.evaluation.published import PUBLISHED_CXC
from lib.evaluation.tables import printed
from lib.files.reading import read_ids
from lib.files.writing import plain

CXC = PROTOCOLS["cxc"]


@pytest.fixture(scope="module")
def image_ids(sample) -> np.ndarray:
    """Of the images of the sample's testall, in order: one of every five lines, one for each caption."""
    return read_ids(sample / "coco/precomp/testall_ids.txt")[::5]


@pytest.fixture(scope="module")
def scores() -> Scores:
    rng = np.random.default_rng(0)
    return Scores(*(rng.standard_normal(shape).astype(np.float32) for shape in ((25, 125), (25, 8), (125, 8))))


def test_data_sets_name_protocols_of_the_table_and_own_data_has_none():
    assert all(set(row.protocols) <= set(PROTOCOLS) for row in DATA_SETS.values())
    assert data_set("coco").protocols == ("cxc", "eccv") and not data_set("f30k").protocols
    assert not data_set("birds").protocols


def test_annotations_are_read_where_they_are_of_the_splits_images_in_order(sample, image_ids):
    expected = read_annotations(sample / "coco/cxc_annots")
    for data_path in (sample / "coco", str(sample / "coco")):
        found = CXC.read(data_path, image_ids)
        np.testing.assert_array_equal(found.image_ids, image_ids)
        np.testing.assert_array_equal(found.caption_ids, expected.caption_ids)


def test_annotations_of_other_images_are_refused_and_the_first_other_one_is_named(sample, image_ids):
    swapped = image_ids.copy()
    swapped[[3, 4]] = image_ids[[4, 3]]
    there, here = image_ids[3], image_ids[4]
    with pytest.raises(InputError, match=rf"testall_ids\.txt .*image 3 is {there} there and {here} in the split"):
        CXC.read(sample / "coco", swapped)
    with pytest.raises(InputError, match="cxc_annots.*25 there, 24 in the split.*same order"):
        CXC.read(sample / "coco", image_ids[:-1])


def test_missing_annotations_say_which_folder_and_which_files(sample, image_ids, tmp_path):
    with pytest.raises(InputError, match=f"{tmp_path}/cxc_annots: no such folder"):
        CXC.read(tmp_path, image_ids)
    shutil.copytree(sample / "coco/cxc_annots", tmp_path / "cxc_annots")
    (tmp_path / "cxc_annots/cxc_i2i.json").unlink()
    with pytest.raises(InputError, match=r"cxc_i2i\.json missing"):
        CXC.read(tmp_path, image_ids)


def test_cxc_gives_recalls_and_correlations_by_name_as_json_takes_them(sample, image_ids, scores):
    annotations = CXC.read(sample / "coco", image_ids)
    figures = CXC.evaluate(scores, annotations)
    assert figures == {
        "cxc": cxc_recalls(*scores, annotations),
        "cxc_correlations": cxc_correlations(*scores, annotations),
    }
    assert set(figures["cxc"]) == {"i2t", "t2i", "t2t", "i2i"}
    in_json = plain(figures)
    assert in_json["cxc"]["t2t"] == figures["cxc"]["t2t"].as_dict()
    assert set(in_json["cxc_correlations"]) == set(figures["cxc_correlations"]) != set()


def test_cxc_shows_a_row_of_each_model_in_both_tables_and_published_ones_on_request(sample, image_ids, scores):
    figures = CXC.evaluate(scores, CXC.read(sample / "coco", image_ids))
    both = printed(CXC.tables([("one", figures), ("other", figures)], False))
    assert [line.split()[0] for line in both.splitlines() if line.startswith(("one ", "other "))] == [
        "one",
        "other",
    ] * 2
    assert "Spearman" in both and "published" not in both
    assert printed(CXC.tables([("one", figures)], True)).count(", published") == len(PUBLISHED_CXC)
