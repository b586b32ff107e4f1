"""Features and boxes of single images, from a file of one image or from rows of a split's file."""

from __future__ import annotations

import re

import numpy as np
import pytest

from lib.core.errors import InputError
from lib.tools.score.single import SingleImages

N, R, D = 3, 4, 6


@pytest.fixture
def features() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((N, R, D)).astype(np.float32)


@pytest.fixture
def boxes() -> np.ndarray:
    corner = np.random.default_rng(1).random((N, R, 2))
    return np.concatenate([corner, corner + 1], 2)


def opened(path, array=None) -> SingleImages:
    """The images of a file, after `array` was saved there."""
    if array is not None:
        np.save(path, array)
    return SingleImages(path, D, "model.pth")


def refused(message: str):
    return pytest.raises(InputError, match=re.escape(message))


def test_a_file_of_one_image_has_all_its_regions_and_no_rows(tmp_path, features):
    for dtype in (np.float32, np.float16):
        source = opened(tmp_path / "one.npy", features[1].astype(dtype))
        assert source.shape == (R, D) and source.choose(None) == [0]
        found, mask = source.read(0)
        np.testing.assert_array_equal(found, features[1].astype(dtype))
        assert mask.dtype == bool and mask.shape == (R,) and mask.all()
        found[:] = 0  # a copy
        assert source.read(0)[0].any()
    with refused(f"one.npy: holds the regions of one image, shape {R, D}"):
        source.choose([0])


def test_rows_of_a_split_s_file_come_with_the_mask_beside_it(tmp_path, features):
    mask = np.random.default_rng(2).random((N, R)) < 0.5
    mask[:, 0] = True
    np.save(tmp_path / "test_mask.npy", mask)
    source = opened(tmp_path / "test_ims.npy", features)
    assert source.choose([2, 0]) == [2, 0]
    for row in (2, 0):
        found, real = source.read(row)
        np.testing.assert_array_equal(found, features[row])
        np.testing.assert_array_equal(real, mask[row])
    other = opened(tmp_path / "others.npy", features)  # no split's file, so no mask is beside it
    assert other.read(2)[1].all()


def test_a_file_of_several_rows_asks_which_and_one_of_a_single_row_does_not(tmp_path, features):
    source = opened(tmp_path / "a.npy", features)
    with refused("a.npy: holds 3 rows; say which with --row, 0 to 2"):
        source.choose(None)
    for row in (3, -1):
        with refused(f"a.npy: has no row {row}; expected --row 0 to 2"):
            source.choose([0, row])
    assert opened(tmp_path / "b.npy", features[:1]).choose(None) == [0]


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((R, D + 1), np.float32), f"found features of size {D + 1}, but model.pth was trained on features of"),
        (np.zeros(D, np.float32), f"found shape ({D},), expected (R, {D}) or (N, R, {D})"),
        (np.zeros((2, 2, R, D), np.float32), f"found shape (2, 2, {R}, {D})"),
        (np.zeros((0, D), np.float32), f"found shape (0, {D})"),
        (np.array([["a"]]), "no readable .npy array of numbers, found <U1; save it with numpy.save"),
        (np.zeros((N, R, D), np.int64), "found dtype int64, expected float32 or float16"),
    ],
)
def test_arrays_of_another_form_are_refused(tmp_path, array, message):
    with refused(f"{tmp_path}/a.npy: {message}"):
        opened(tmp_path / "a.npy", array)


def test_features_that_are_no_finite_floats_are_found_when_they_are_read(tmp_path, features):
    with refused("i.npy: found dtype int64, expected float32 or float16"):
        opened(tmp_path / "i.npy", features[0].astype(int)).read(0)
    features[1, 3, 1] = np.nan
    with refused("n.npy, region 3: NaN or infinity; extract its features again"):
        opened(tmp_path / "n.npy", features[1]).read(0)
    source = opened(tmp_path / "m.npy", features)
    assert np.isfinite(source.read(0)[0]).all()
    with refused("m.npy, row 1, region 3: NaN or infinity"):
        source.read(1)


def test_files_that_are_not_there_or_no_array_are_refused(tmp_path, features):
    (tmp_path / "text.npy").write_text("no array")
    np.savez(tmp_path / "archive.npz", features)
    np.save(tmp_path / "pickled.npy", {"a": 1}, allow_pickle=True)
    np.save(tmp_path / "cut.npy", features)
    (tmp_path / "cut.npy").write_bytes((tmp_path / "cut.npy").read_bytes()[:-1])
    for name, message in (
        ("none.npy", "no such file"),
        ("text.npy", "no readable .npy array (the magic string is not correct"),
        ("archive.npz", "no readable .npy array (the magic string is not correct"),
        ("pickled.npy", "no readable .npy array of numbers, found object"),
        ("cut.npy", "truncated, "),
    ):
        with refused(f"{tmp_path / name}: {message}"):
            opened(tmp_path / name)


def test_boxes_come_from_the_file_beside_the_features_unless_another_is_named(tmp_path, features, boxes):
    source = opened(tmp_path / "test_ims.npy", features)
    assert source.boxes(1) is None
    np.save(tmp_path / "test_boxes.npy", boxes)
    np.testing.assert_array_equal(source.boxes(1), boxes[1])
    np.save(tmp_path / "other.npy", boxes[1] + 1)  # of every image
    np.testing.assert_array_equal(source.boxes(0, tmp_path / "other.npy"), boxes[1] + 1)
    assert opened(tmp_path / "one.npy", features[0]).boxes(0) is None
    np.testing.assert_array_equal(opened(tmp_path / "one.npy").boxes(0, tmp_path / "other.npy"), boxes[1] + 1)


def test_boxes_that_do_not_fit_or_are_none_are_refused(tmp_path, features, boxes):
    source, path = opened(tmp_path / "test_ims.npy", features), tmp_path / "b.npy"
    for wrong in (boxes[:2], boxes[:, :3], boxes[..., :3], boxes[0, 0]):
        np.save(path, wrong)
        with refused(f"b.npy: found shape {wrong.shape}, expected {N, R, 4} as the features have"):
            source.boxes(0, path)
    for place, value in ((0, np.nan), (2, -1.0), (3, np.inf)):
        np.save(path, boxes)
        assert source.boxes(2, path) is not None
        broken = boxes.copy()
        broken[2, 1, place] = value
        np.save(path, broken)
        with refused("b.npy: a box has NaN or ends before it begins; expected x1 y1 x2 y2 in pixels"):
            source.boxes(2, path)
        np.testing.assert_array_equal(source.boxes(1, path), boxes[1])
