"""Where files lie, and the line a user reads when they lie elsewhere."""

from __future__ import annotations

import json

import pytest

from lib.core.errors import InputError
from lib.datasets import layout


def make(folder, *names):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_text("x\n")
    return folder


@pytest.mark.parametrize("folder", ["precomp", "f30k_precomp", "f30k"])
def test_each_usual_folder_is_found(tmp_path, folder):
    make(tmp_path / folder, "train_caps.txt", "train_ims.npy")
    files = layout.find_split(tmp_path, "f30k", "train")
    assert files.captions == tmp_path / folder / "train_caps.txt"
    assert files.features == tmp_path / folder / "train_ims.npy"
    assert files.ids is None and files.boxes is None and files.mask is None


def test_precomp_wins_over_the_other_folders(tmp_path):
    for folder in ("coco", "coco_precomp", "precomp"):
        make(tmp_path / folder, "dev_caps.txt", "dev_ims.npy")
    assert layout.find_split(tmp_path, "coco", "dev").captions.parent.name == "precomp"


def test_optional_files_are_named_when_present(tmp_path):
    names = [f"test_{kind}" for kind in ("caps.txt", "ids.txt", "ims.npy", "boxes.npy", "mask.npy")]
    folder = make(tmp_path / "precomp", *names)
    files = layout.find_split(tmp_path, "f30k", "test")
    assert [files.captions, files.ids, files.features, files.boxes, files.mask] == [folder / name for name in names]


def test_missing_folder_names_every_place_looked_for(tmp_path):
    with pytest.raises(InputError) as error:
        layout.find_split(tmp_path, "coco", "train")
    for name in ("precomp", "coco_precomp", "coco"):
        assert str(tmp_path / name) in str(error.value)
    with pytest.raises(InputError, match="does not exist"):
        layout.find_split(tmp_path / "nowhere", "coco", "train")


def test_any_plain_name_is_that_of_ones_own_data(tmp_path):
    make(tmp_path / "birds_precomp", "dev_caps.txt", "dev_ims.npy")
    make(tmp_path / "images")
    assert layout.find_split(tmp_path, "birds", "dev").captions == tmp_path / "birds_precomp" / "dev_caps.txt"
    assert layout.image_folder(tmp_path, "birds") == tmp_path / "images"


def test_a_name_that_leads_out_of_the_folder_is_refused(tmp_path):
    make(tmp_path / "birds_precomp", "dev_caps.txt", "dev_ims.npy")
    make(tmp_path / "images")
    inside = make(tmp_path / "precomp")
    for find in (layout.precomp_folder, layout.image_folder, lambda path, name: layout.find_split(path, name, "dev")):
        with pytest.raises(InputError, match="'../birds'.*coco, f30k or a plain name"):
            find(inside, "../birds")


@pytest.mark.parametrize("split", ["val", "testall", "dev", "../dev", "..", "train\n", ""])
def test_split_that_is_not_there_lists_those_that_are(tmp_path, split):
    make(tmp_path / "precomp", "train_caps.txt", "test_caps.txt")
    make(tmp_path, "dev_caps.txt")
    with pytest.raises(InputError, match="splits there: test, train"):
        layout.find_split(tmp_path, "f30k", split)


def test_own_split_is_taken_when_its_captions_exist(tmp_path):
    make(tmp_path / "precomp", "holiday_caps.txt", "holiday_ims.npy")
    assert layout.find_split(tmp_path, "f30k", "holiday").captions.name == "holiday_caps.txt"


def test_misnamed_features_file_is_shown_beside_the_expected_name(tmp_path):
    make(tmp_path / "precomp", "train_caps.txt", "train_imgs.npy")
    with pytest.raises(InputError, match="train_ims.npy.*train_imgs.npy"):
        layout.find_split(tmp_path, "f30k", "train")
    assert layout.find_split(tmp_path, "f30k", "train", need_features=False).features is None


def test_image_folder_follows_the_data_set(tmp_path):
    with pytest.raises(InputError, match="flickr30k-images.*images"):
        layout.image_folder(tmp_path, "f30k")
    make(tmp_path / "images")
    assert layout.image_folder(tmp_path, "f30k").name == "images"
    make(tmp_path / "flickr30k-images")
    assert layout.image_folder(tmp_path, "f30k").name == "flickr30k-images"
    assert layout.image_folder(tmp_path, "coco").name == "images"


def test_id_mapping_is_checked(tmp_path):
    path = tmp_path / "id_mapping.json"
    with pytest.raises(InputError, match="id_mapping.json"):
        layout.read_id_mapping(tmp_path)
    for broken in ('["a"]', '{"1": 2}', "{"):
        path.write_text(broken)
        with pytest.raises(InputError, match="id_mapping.json"):
            layout.read_id_mapping(tmp_path)
    path.write_text(json.dumps({"7": "train2014/a.jpg"}))
    assert layout.read_id_mapping(tmp_path) == {"7": "train2014/a.jpg"}


@pytest.mark.parametrize("name", ["ids.txt", "boxes.npy", "mask.npy"])
def test_a_folder_or_a_broken_link_in_the_place_of_an_optional_file_is_refused(tmp_path, name):
    folder = make(tmp_path / "precomp", "dev_caps.txt", "dev_ims.npy")
    (folder / f"dev_{name}").mkdir()
    with pytest.raises(InputError, match=f"dev_{name}: is a folder, expected a file"):
        layout.find_split(tmp_path, "f30k", "dev")
    (folder / f"dev_{name}").rmdir()
    (folder / f"dev_{name}").symlink_to("nowhere")
    with pytest.raises(InputError, match=f"dev_{name}: is no file, or a link to none"):
        layout.find_split(tmp_path, "f30k", "dev")
