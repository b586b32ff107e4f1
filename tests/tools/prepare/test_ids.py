"""Which images a split needs, and which of them a key of a feature source means."""

from __future__ import annotations

import pytest

from lib.core.errors import InputError
from lib.tools.prepare.ids import ImageKeys, needed_ids

FLICKR = {"0": "1000092795.jpg", "1": "folder/36979.JPG", "2": "dog.jpeg"}


@pytest.fixture
def data(tmp_path):
    precomp = tmp_path / "coco" / "precomp"
    precomp.mkdir(parents=True)
    (precomp / "train_ids.txt").write_text("12\n12\n10\n11\n11\n")  # once per caption
    (precomp / "dev_ids.txt").write_text("20\n3\n")  # once per image
    return precomp.parent


def test_images_are_needed_once_in_the_order_of_the_ids_file(data):
    assert needed_ids(data, "coco") == {"dev": [20, 3], "train": [12, 10, 11]}
    assert needed_ids(data, "coco", ["train"]) == {"train": [12, 10, 11]}


def test_a_split_without_ids_is_named_with_what_writes_them(data):
    with pytest.raises(InputError, match="precomp: no test_ids.txt, which says which images to take; `prepare"):
        needed_ids(data, "coco", ["train", "test"])
    for path in (data / "precomp").iterdir():
        path.unlink()
    with pytest.raises(InputError, match=r"no \{split\}_ids.txt"):
        needed_ids(data, "coco")


def test_an_id_that_comes_back_after_others_is_refused(data):
    (data / "precomp" / "train_ids.txt").write_text("12\n10\n12\n")
    with pytest.raises(InputError, match="train_ids.txt: id 12 comes back after other ids"):
        needed_ids(data, "coco", ["train"])


@pytest.mark.parametrize(
    ("key", "image_id"),
    [
        ("391895", 391895),
        ("000000391895", 391895),
        ("COCO_val2014_000000391895", 391895),
        ("val2014/COCO_val2014_000000391895.jpg", 391895),
        (" 67 ", 67),
        ("68", None),
        ("vg_67", None),
        ("9" * 40, None),
    ],
)
def test_coco_images_are_found_by_their_number_however_it_is_written(key, image_id):
    assert ImageKeys([391895, 67], {}).find(key, "here") == image_id


@pytest.mark.parametrize(
    ("key", "image_id"), [("1000092795", 0), ("36979.jpg", 1), ("dog", 2), ("dog.JPG", 2), ("1", 1), ("3", None)]
)
def test_flickr_images_are_found_by_file_name_and_by_id(key, image_id):
    assert ImageKeys([0, 1, 2], FLICKR).find(key, "here") == image_id


def test_an_image_that_no_split_needs_is_not_found():
    assert ImageKeys([1], FLICKR).find("1000092795", "here") is None


def test_a_key_that_is_the_id_of_one_image_and_the_name_of_another_must_be_decided():
    names = {"10": "12.jpg", "11": "11.jpg", "12": "10.jpg", "13": "14.jpg"}
    both = ImageKeys([10, 11, 12], names)
    with pytest.raises(InputError, match="line 1: 10 is the id or file name of image 10 and image 12; choose --keys"):
        both.find("10", "line 1")
    assert both.find("11", "line 1") == 11 and both.find("14", "line 1") is None
    assert ImageKeys([10, 11, 12], names, "id").find("10", "") == 10
    assert ImageKeys([10, 11, 12], names, "file").find("10", "") == 12
