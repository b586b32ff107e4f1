"""Which names are known data sets, what sets them apart, and that any other plain name is one's own data."""

from __future__ import annotations

import pytest

from lib.core.errors import InputError
from lib.datasets import DATA_SETS, data_set, known_name


@pytest.mark.parametrize("name", DATA_SETS)
def test_a_known_name_is_its_row_with_five_captions_an_image_and_a_dev_of_5000(name):
    row = data_set(name)
    assert row is DATA_SETS[name]
    assert (row.captions_per_image, row.dev_captions, row.published) == (5, 5000, True)


def test_coco_is_evaluated_on_all_test_images_and_their_five_folds():
    coco = data_set("coco")
    assert (coco.evaluated, coco.folds, coco.protocols) == ("testall", {"testall": 5}, ("cxc", "eccv"))
    assert coco.splits == ("train", "dev", "test", "testall")


@pytest.mark.parametrize("name", ["birds", "my-data_2.1", "cocoa", "f30k2", "precomp_coco", "Vögel", "7"])
def test_any_other_plain_name_is_ones_own_data_and_keeps_its_name(name):
    row = data_set(name)
    assert row.label == name and row.images == "images"
    assert (row.splits, row.evaluated) == (("train", "dev", "test"), "test")


def test_own_data_has_nothing_of_the_published_data_sets():
    row = data_set("birds")
    assert (row.captions_per_image, row.dev_captions, row.folds, row.protocols) == (1, None, {}, ())
    assert not row.published


@pytest.mark.parametrize("name", ["../x", "x/y", "/x", "..", ".x", "-x", "x y", "x\n", "x\0", "x\\y", ""])
def test_a_name_that_is_no_part_of_a_file_name_is_refused_in_one_line(name):
    with pytest.raises(InputError, match="expected coco, f30k or a plain name for your own data") as error:
        data_set(name)
    assert str(error.value).startswith("--data_name '") and "\n" not in str(error.value)


def test_other_spellings_of_a_known_data_set_mean_it_and_a_note_says_so(capsys):
    spellings = {
        "coco": ("coco_precomp", "COCO", "MS-COCO", "mscoco", "ms_coco_precomp"),
        "f30k": ("f30k_precomp", "F30K", "flickr30k", "Flickr30K", "flickr_30k"),
    }
    for known, names in spellings.items():
        for name in names:
            assert known_name(name) == known and data_set(name) is DATA_SETS[known]
            assert capsys.readouterr().err.startswith(f"note: {name} means {known};")
    for name in (*spellings, "birds", "cocoa"):
        assert known_name(name) == name
    assert capsys.readouterr().err == ""
