"""One split as a run would open it: in which ways it can be used, and what is wrong or odd about it."""

from __future__ import annotations

import re

import numpy as np
import pytest

from lib.datasets.images import ImageFolder
from lib.tools.prepare import inspection
from lib.tools.prepare.inspection import RAW, REGIONS, inspect_split, spread

IDS = [10, 11, 12]


@pytest.fixture
def data(tmp_path):
    """A whole split `dev` of three images with two captions each, their features, and their image files."""
    precomp = tmp_path / "f30k" / "precomp"
    precomp.mkdir(parents=True)
    np.save(precomp / "dev_ims.npy", np.random.default_rng(0).random((3, 4, 5), np.float32))
    (precomp / "dev_caps.txt").write_text("".join(f"Caption {k} of {number} .\n" for number in IDS for k in range(2)))
    (precomp / "dev_ids.txt").write_text("".join(f"{number}\n" for number in IDS for _ in range(2)))
    (tmp_path / "images").mkdir()
    for number in IDS:
        (tmp_path / "images" / f"{number}.jpg").touch()
    return precomp.parent


def inspect(data, images: bool = True):
    folder = ImageFolder(data.parent / "images", {str(number): f"{number}.jpg" for number in IDS}, np.array(IDS))
    return inspect_split(data, "f30k", "dev", folder if images else None)


def change(data, kind: str, place, value) -> None:
    path = data / "precomp" / f"dev_{kind}.npy"
    array = np.load(path)
    array[place] = value
    np.save(path, array)


def test_a_whole_split_can_be_used_in_both_ways(data):
    report = inspect(data)
    assert report.ways == [RAW, REGIONS] and not report.errors and not report.warnings
    assert report.split.n_images == 3 and report.split.features.shape == (3, 4, 5)


def test_a_split_without_captions_is_not_there(data):
    (data / "precomp" / "dev_caps.txt").unlink()
    report = inspect(data)
    assert (report.files, report.split, report.ways, report.errors) == (None, None, [], {})


def test_without_features_or_without_images_the_other_way_is_left(data):
    assert inspect(data, images=False).ways == [REGIONS]
    (data / "precomp" / "dev_ims.npy").unlink()
    assert inspect(data).ways == [RAW]
    report = inspect(data, images=False)
    assert report.ways == [] and not report.errors and report.split.n_captions == 6


def test_an_image_that_is_missing_keeps_the_split_from_raw_images_alone(data):
    (data.parent / "images" / "11.jpg").unlink()
    report = inspect(data)
    assert report.ways == [REGIONS] and list(report.errors) == [RAW]
    assert "1 image files (11.jpg) of 3 missing" in report.errors[RAW]


def test_features_that_cannot_be_used_keep_the_split_from_regions_alone(data):
    change(data, "ims", (2, 1, 3), np.nan)
    report = inspect(data)
    assert report.ways == [RAW] and list(report.errors) == [REGIONS]
    assert "dev_ims.npy, row 2, region 1: NaN" in report.errors[REGIONS]


def test_texts_that_do_not_fit_together_are_an_error_in_both_ways(data):
    (data / "precomp" / "dev_ids.txt").write_text("10\n11\n12\n13\n")
    report = inspect(data)
    assert report.ways == [] and report.split is None and list(report.errors) == [RAW, REGIONS]


def test_regions_of_zeros_are_odd_unless_the_mask_names_them(data):
    change(data, "ims", (1, 2), 0)
    [warning] = inspect(data).warnings
    assert warning.startswith("1 of 3 sampled feature rows have regions of zeros (first row 1)")
    mask = np.ones((3, 4), bool)
    mask[1, 2] = False
    np.save(data / "precomp" / "dev_mask.npy", mask)
    assert not inspect(data).warnings


def test_captions_written_as_python_bytes_are_counted(data):
    path = data / "precomp" / "dev_caps.txt"
    lines = path.read_text().splitlines()
    lines[3:5] = ["b'a dog runs .'", 'b"a dog\'s bone ."']
    path.write_text("\n".join(lines) + "\n")
    [warning] = inspect(data).warnings
    assert warning.startswith("2 captions start with b' (first in line 4)")


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (np.zeros((3, 4, 4), np.float32), None),
        (np.zeros((3, 3, 4), np.float32), r"shape \(3, 3, 4\), expected \(3, 4, 4\); pictures can't be drawn"),
        (np.array([{}], object), "no readable .npy array of numbers, found object.*; pictures can't be drawn"),
        (b"half a", "no readable .npy array .*; pictures can't be drawn"),
    ],
)
def test_boxes_that_do_not_fit_the_features_are_odd(data, content, found):
    path = data / "precomp" / "dev_boxes.npy"
    path.write_bytes(content) if isinstance(content, bytes) else np.save(path, content)
    report = inspect(data)
    assert report.ways == [RAW, REGIONS] and len(report.warnings) == (found is not None)
    for warning in report.warnings:
        assert re.match(f"{path}: {found}", warning)


def test_many_rows_are_sampled_and_not_all_read(data, monkeypatch):
    monkeypatch.setattr(inspection, "SAMPLED_ROWS", 2)
    change(data, "ims", (1, 2), 0)
    assert not inspect(data).warnings
    change(data, "ims", (2, 2), 0)
    assert inspect(data).warnings[0].startswith("1 of 2 sampled feature rows have regions of zeros (first row 2)")


def test_samples_are_spread_from_first_to_last():
    assert spread(3, 64).tolist() == [0, 1, 2]
    assert spread(101, 3).tolist() == [0, 50, 100]
