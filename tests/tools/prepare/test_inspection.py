"""One split as a run would open it: in which ways it can be used, and what is wrong or odd about it."""

from __future__ import annotations

import numpy as np
import pytest

from lib.tools.prepare import inspection
from lib.tools.prepare.inspection import REGIONS, inspect_split, spread

IDS = [10, 11, 12]


@pytest.fixture
def data(tmp_path):
    """A whole split `dev` of three images with two captions each and their features."""
    precomp = tmp_path / "f30k" / "precomp"
    precomp.mkdir(parents=True)
    np.save(precomp / "dev_ims.npy", np.random.default_rng(0).random((3, 4, 5), np.float32))
    (precomp / "dev_caps.txt").write_text("".join(f"Caption {k} of {number} .\n" for number in IDS for k in range(2)))
    (precomp / "dev_ids.txt").write_text("".join(f"{number}\n" for number in IDS for _ in range(2)))
    return precomp.parent


def inspect(data):
    return inspect_split(data, "f30k", "dev", None)


def change(data, kind: str, place, value) -> None:
    path = data / "precomp" / f"dev_{kind}.npy"
    array = np.load(path)
    array[place] = value
    np.save(path, array)


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


def test_many_rows_are_sampled_and_not_all_read(data, monkeypatch):
    monkeypatch.setattr(inspection, "SAMPLED_ROWS", 2)
    change(data, "ims", (1, 2), 0)
    assert not inspect(data).warnings
    change(data, "ims", (2, 2), 0)
    assert inspect(data).warnings[0].startswith("1 of 2 sampled feature rows have regions of zeros (first row 2)")


def test_samples_are_spread_from_first_to_last():
    assert spread(3, 64).tolist() == [0, 1, 2]
    assert spread(101, 3).tolist() == [0, 50, 100]


def test_boxes_that_do_not_fit_the_features_are_odd(data):
    path = data / "precomp" / "dev_boxes.npy"
    np.save(path, np.zeros((3, 4, 4), np.float32))
    assert not inspect(data).warnings
    for boxes in (np.zeros((3, 3, 4), np.float32), np.array([{}], object), None):
        path.write_bytes(b"half a") if boxes is None else np.save(path, boxes)
        report = inspect(data)
        [warning] = report.warnings
        assert report.ways == [REGIONS] and warning.startswith(f"{path}: ")
