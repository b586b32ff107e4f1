"""`prepare check`: what is there, what is wrong, what is missing."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from lib.evaluation.cxc.annotations import CSV_FILES, GALLERY_FILES, JSON_FILES
from lib.tools.prepare.__main__ import main
from tests.helpers import error_line


def make_split(data, split: str, ids: list[int], dim: int = 4):
    precomp = data / "precomp"
    precomp.mkdir(parents=True, exist_ok=True)
    rows = np.random.default_rng(0).random((len(ids), 3, dim)).astype(np.float32)
    np.save(precomp / f"{split}_ims.npy", rows)
    captions = [f"Caption {k} of {number} ." for number in ids for k in range(5)]
    (precomp / f"{split}_caps.txt").write_text("\n".join(captions) + "\n")
    (precomp / f"{split}_ids.txt").write_text("".join(f"{number}\n" for number in ids for _ in range(5)))


@pytest.fixture
def data(tmp_path):
    """A whole small Flickr30K: train 0-3, dev 10-11, test 20-21, with image files."""
    data = tmp_path / "f30k"
    ids = {"train": [0, 1, 2, 3], "dev": [10, 11], "test": [20, 21]}
    for split, numbers in ids.items():
        make_split(data, split, numbers)
    (data / "flickr30k-images").mkdir()
    numbers = [number for split in ids.values() for number in split]
    for number in numbers:
        (data / "flickr30k-images" / f"{number}00.jpg").touch()
    (data / "id_mapping.json").write_text(json.dumps({str(number): f"{number}00.jpg" for number in numbers}))
    return data


def block(out: str, split: str) -> str:
    """What is said of one split."""
    return re.search(rf"^{split}:\n((?:  .*\n)+)", out, re.MULTILINE)[1]


def run(capsys, data, data_name="f30k") -> tuple[int, str]:
    code = main(["check", str(data), "--data_name", data_name])
    return code, capsys.readouterr().out


def test_whole_data_set_can_be_trained_and_evaluated_either_way(data, capsys):
    code, out = run(capsys, data)
    assert code == 0
    assert block(out, "train").splitlines()[:2] == [
        "  4 images, 20 captions, 5 per image",
        "  features (4, 3, 4) float32, 320B",
    ]
    assert "2 images, 10 captions, 5 per image\n  features (2, 3, 4) float32" in block(out, "dev")
    assert "first caption: 'Caption 0 of 0 .' of image 0 (000.jpg)" in block(out, "train")
    assert "last caption: 'Caption 4 of 21 .' of image 21 (2100.jpg)" in block(out, "test")
    assert "training (train and dev): can run on region features and on raw images" in out
    assert "evaluation (test): can run on region features and on raw images" in out
    assert "warning" not in out and "error" not in out
    assert out.count("missing:") == 1 and "original_updown_backbone.pth" in out


def test_region_features_or_raw_images_alone_are_enough(data, capsys):
    (data / "flickr30k-images").rename(data / "elsewhere")
    code, out = run(capsys, data)
    assert code == 0 and "training (train and dev): can run on region features\n" in out
    assert "flickr30k-images (raw images)" in out
    (data / "elsewhere").rename(data / "flickr30k-images")
    for path in (data / "precomp").glob("*_ims.npy"):
        path.unlink()
    code, out = run(capsys, data)
    assert code == 0 and "evaluation (test): can run on raw images\n" in out
    assert "missing: train_ims.npy, dev_ims.npy, test_ims.npy (region features)" in out


def test_a_missing_split_means_exit_code_1_and_says_where_to_get_it(data, capsys):
    for path in (data / "precomp").glob("dev_*"):
        path.unlink()
    code, out = run(capsys, data)
    assert code == 1
    assert "missing: dev_caps.txt, dev_ids.txt (captions): `prepare captions` makes them from Karpathy's splits" in out
    assert "training (train and dev): cannot run" in out
    assert "evaluation (test): can run" in out


def test_empty_folder_lists_everything_that_is_missing(tmp_path, capsys):
    code, out = run(capsys, tmp_path, "coco")
    assert code == 1
    for name in ("testall_caps.txt", "train_ims.npy", "id_mapping.json", "images", "cxc_annots", "scan-features"):
        assert name in out


def test_coco_is_evaluated_on_testall_and_test_are_its_first_images(data, capsys):
    (data / "flickr30k-images").rename(data / "images")
    assert run(capsys, data, "coco")[0] == 1
    make_split(data, "testall", [20, 21, 0])
    code, out = run(capsys, data, "coco")
    assert code == 0
    assert "evaluation (testall): can run" in out
    assert "warning: 1 images are in train and in testall, first 0" in out
    make_split(data, "testall", [21, 20])
    assert "warning: the images of test are not the first ones of testall" in run(capsys, data, "coco")[1]


def test_nan_rows_keep_a_split_from_region_training(data, capsys):
    ims = np.load(data / "precomp" / "train_ims.npy")
    ims[3, 1, 2] = np.nan
    np.save(data / "precomp" / "train_ims.npy", ims)
    code, out = run(capsys, data)
    assert code == 0 and "training (train and dev): can run on raw images\n" in out
    assert re.search(r"error: .*train_ims.npy, row 3, region 1: NaN", out)


def test_counts_that_do_not_fit_are_errors(data, capsys):
    np.save(data / "precomp" / "test_ims.npy", np.ones((3, 3, 4), np.float32))
    (data / "precomp" / "train_ids.txt").write_text("0\n1\n2\n")
    code, out = run(capsys, data)
    assert code == 1
    assert "3 feature rows for 2 images and 10 captions" in out
    assert re.search("error: train as raw images: .*: 3 ids for 20 captions;", out)
    assert re.search("error: train as region features: .*: 3 ids for 20 captions and 4 feature rows;", out)
    assert block(out, "train") == "  does not fit together, see below\n"


def test_images_that_are_missing_or_unknown_are_counted(data, capsys):
    (data / "flickr30k-images" / "1000.jpg").unlink()
    mapping = json.loads((data / "id_mapping.json").read_text())
    del mapping["2"]
    (data / "id_mapping.json").write_text(json.dumps(mapping))
    code, out = run(capsys, data)
    assert code == 0
    assert re.search(r"dev as raw images: .*flickr30k-images: 1 image files \(1000.jpg\) of 2 missing", out)
    assert re.search(r"train as raw images: .*: 1 image ids \(2\) of 4 not in the id mapping", out)
    assert "training (train and dev): can run on region features\n" in out


def test_image_in_two_splits_is_a_warning(data, capsys):
    make_split(data, "dev", [10, 2])
    code, out = run(capsys, data)
    assert code == 0 and "warning: 1 images are in train and in dev, first 2" in out


def test_an_interrupted_run_of_regions_is_a_warning(data, capsys):
    (data / "precomp" / "train_ims.json.part").write_text("{}")
    code, out = run(capsys, data)
    assert code == 0 and "train_ims.json.part" in out


@pytest.fixture
def own(data):
    """The same images under a name of its own, with one caption per image in dev and 1 to 3 in the others."""
    own = data.rename(data.with_name("birds"))
    (own / "flickr30k-images").rename(own / "images")
    for split, ids in {"train": [0, 1, 1, 2, 2, 2, 3], "dev": [10, 11], "test": [20, 21, 21]}.items():
        (own / "precomp" / f"{split}_ims.npy").unlink()
        (own / "precomp" / f"{split}_ids.txt").write_text("".join(f"{number}\n" for number in ids))
        (own / "precomp" / f"{split}_caps.txt").write_text("".join(f"A bird, {number} .\n" for number in ids))
    return own


def test_own_data_runs_on_its_images_and_lacks_nothing(own, capsys):
    code, out = run(capsys, own, "birds")
    assert code == 0
    assert "4 images, 7 captions, 1 to 3 per image" in block(out, "train")
    assert "2 images, 2 captions, 1 per image" in block(out, "dev")
    assert "training (train and dev): can run on raw images\nevaluation (test): can run on raw images\n" in out
    assert "missing" not in out and "warning" not in out and "error" not in out


def test_images_outside_of_the_folder_count_where_they_are_allowed(own, capsys):
    mapping = json.loads((own / "id_mapping.json").read_text())
    (own / "id_mapping.json").write_text(json.dumps({key: f"../images/{name}" for key, name in mapping.items()}))
    assert "outside of" in run(capsys, own, "birds")[1]
    assert main(["check", str(own), "--data_name", "birds", "--allow_outside_images"]) == 0


def test_what_own_data_lacks_comes_from_its_owner(own, capsys):
    (own / "images").rename(own / "elsewhere")
    np.save(own / "precomp" / "train_ims.npy", np.ones((4, 3, 4), np.float32))
    (own / "precomp" / "test_caps.txt").unlink()
    code, out = run(capsys, own, "birds")
    assert code == 1
    assert re.search(r"missing: .*birds/images \(raw images\): your images, or a link to their folder", out)
    assert "missing: dev_ims.npy, test_ims.npy (region features): `python -m lib.tools.extract`" in out
    assert "missing: test_caps.txt, test_ids.txt (captions): `prepare own`" in out
    for foreign in ("Flickr30K", "COCO", "Karpathy", "Kaggle", "VSE"):
        assert foreign not in out


def test_annotations_of_cxc_are_found_in_either_form(data, capsys):
    (data / "flickr30k-images").rename(data / "images")
    folder = data / "cxc_annots"
    folder.mkdir()
    for form in (JSON_FILES, CSV_FILES.values()):
        for name in (*GALLERY_FILES, *form):
            assert "cxc_annots (CxC annotations): `prepare cxc`" in run(capsys, data, "coco")[1]
            (folder / name).touch()
        assert "cxc_annots" not in run(capsys, data, "coco")[1]
        for path in folder.iterdir():
            path.unlink()


def test_a_missing_folder_and_an_impossible_name_are_bad_input(tmp_path, capsys):
    for folder, name, words in ((tmp_path / "none", "f30k", "none: no such folder"), (tmp_path, "a/b", "--data_name")):
        assert words in error_line(main, ["check", folder, "--data_name", name], capsys)
