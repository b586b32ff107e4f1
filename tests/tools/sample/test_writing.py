"""What is written where: the layout of the real data, and the same bytes for the same seed."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lib.core.errors import InputError
from lib.tools.sample.pictures import REGIONS, region_features
from lib.tools.sample.writing import SampleConfig, write_sample
from tests.tools.sample.conftest import SMALL, lines

IMAGE_FOLDERS = {"coco": "images", "f30k": "flickr30k-images"}


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.parametrize(
    ("dataset", "split", "images", "repeat"),
    [
        ("coco", "train", 6, 1),
        ("coco", "dev", 2, 5),
        ("coco", "test", 3, 5),
        ("coco", "testall", 15, 5),
        ("f30k", "train", 6, 1),
        ("f30k", "dev", 2, 5),
        ("f30k", "test", 3, 5),
    ],
)
def test_every_split_has_its_files_in_the_layout_of_the_real_data(small, dataset, split, images, repeat):
    precomp = small / dataset / "precomp"
    features = np.load(precomp / f"{split}_ims.npy", mmap_mode="r", allow_pickle=False)
    boxes = np.load(precomp / f"{split}_boxes.npy", allow_pickle=False)
    assert features.shape == (images * repeat, REGIONS, 16) and features.dtype == np.float32
    assert boxes.shape == (images * repeat, REGIONS, 4)
    assert len(lines(precomp / f"{split}_caps.txt")) == 5 * images
    ids = lines(precomp / f"{split}_ids.txt")
    assert len(ids) == images * repeat and len(set(ids)) == images
    assert np.array_equal(features[::repeat], features[repeat - 1 :: repeat])
    mapping = json.loads((small / dataset / "id_mapping.json").read_text())
    for image_id in ids:
        with Image.open(small / dataset / IMAGE_FOLDERS[dataset] / mapping[image_id]) as image:
            assert image.format == "JPEG" and abs(image.width - 160) <= 8 and abs(image.height - 120) <= 8


def test_no_image_is_in_two_splits_except_that_test_of_coco_is_the_first_fold_of_testall(small):
    for dataset in ("coco", "f30k"):
        precomp = small / dataset / "precomp"
        ids = {split: set(lines(precomp / f"{split}_ids.txt")) for split in ("train", "dev", "test")}
        assert not (ids["train"] & ids["dev"] or ids["train"] & ids["test"] or ids["dev"] & ids["test"])
    precomp = small / "coco" / "precomp"
    for kind in ("ids", "caps"):
        test, testall = (lines(precomp / f"{split}_{kind}.txt") for split in ("test", "testall"))
        assert test == testall[: len(testall) // 5]
    for kind in ("ims", "boxes"):
        test, testall = (np.load(precomp / f"{split}_{kind}.npy") for split in ("test", "testall"))
        assert np.array_equal(test, testall[: len(testall) // 5])


def test_the_same_seed_writes_the_same_bytes_and_another_seed_does_not(small, tmp_path):
    write_sample(tmp_path / "again", SMALL)
    assert digests(tmp_path / "again") == digests(small)
    write_sample(tmp_path / "other", SampleConfig(6, 2, 3, img_dim=16, seed=6), ["f30k"])
    other = digests(tmp_path / "other")
    for name in ("f30k/precomp/train_ims.npy", "f30k/precomp/train_caps.txt", "bert/model.safetensors"):
        assert other[name] != digests(small)[name]


def test_the_two_datasets_hold_different_scenes_and_one_alone_is_the_same_as_beside_the_other(small, tmp_path):
    captions = [(small / dataset / "precomp" / "train_caps.txt").read_text() for dataset in ("coco", "f30k")]
    assert captions[0] != captions[1]
    write_sample(tmp_path, SMALL, ["f30k"])
    assert digests(tmp_path / "f30k") == digests(small / "f30k")
    assert not (tmp_path / "coco").exists()


def test_a_larger_data_set_begins_with_the_smaller_one(small, tmp_path):
    write_sample(tmp_path, SampleConfig(images=8, dev_images=2, test_images=3, img_dim=16, seed=5), ["f30k"])
    small, large = small / "f30k" / "precomp", tmp_path / "f30k" / "precomp"
    assert lines(large / "train_caps.txt")[:30] == lines(small / "train_caps.txt")
    assert np.array_equal(np.load(large / "train_ims.npy")[:6], np.load(small / "train_ims.npy"))


def test_one_row_per_image_stores_each_image_once_in_every_split(tmp_path):
    write_sample(tmp_path, SampleConfig(2, 1, 2, img_dim=8, one_row_per_image=True), ["f30k"])
    precomp = tmp_path / "f30k" / "precomp"
    assert np.load(precomp / "test_ims.npy").shape == (2, REGIONS, 8)
    assert len(lines(precomp / "test_ids.txt")) == 2 and len(lines(precomp / "test_caps.txt")) == 10


def test_features_can_be_recomputed_from_the_stored_image_and_boxes(small):
    precomp = small / "coco" / "precomp"
    mapping = json.loads((small / "coco" / "id_mapping.json").read_text())
    first = lines(precomp / "dev_ids.txt")[0]
    with Image.open(small / "coco" / "images" / mapping[first]) as image:
        again = region_features(image, np.load(precomp / "dev_boxes.npy")[0], 16)
    stored = np.load(precomp / "dev_ims.npy")[0]
    assert np.array_equal(again, stored)
    assert stored.min() >= 0 and stored.std() > 0.1


@pytest.mark.parametrize("name", ["coco", "f30k", "bert", "clip"])
def test_files_that_are_not_sample_data_are_never_overwritten(tmp_path, name):
    mine = tmp_path / name / "config.json"
    mine.parent.mkdir()
    mine.write_text("mine")
    with pytest.raises(InputError, match="not sample data"):
        write_sample(tmp_path, SMALL)
    assert mine.read_text() == "mine" and not list(tmp_path.rglob("*.jpg"))
