"""Region features on disk: what is refused, and that memory follows the rows read; the regions dropped in training."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import sys

import numpy as np
import pytest
import torch

from lib.core.errors import InputError
from lib.datasets import inputs
from lib.datasets.inputs import RegionImages
from lib.datasets.regions import RegionFeatures


def save(path, array):
    np.save(path, array)
    return path


@pytest.fixture
def array():
    return np.random.default_rng(0).standard_normal((6, 4, 8)).astype(np.float32)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_rows_equal_the_array_in_its_dtype(tmp_path, array, dtype):
    array = array.astype(dtype)
    features = RegionFeatures(save(tmp_path / "x.npy", array), img_dim=8)
    assert features.shape == (6, 4, 8) and features.dtype == dtype and len(features) == 6
    row, mask = features.row(3)
    assert row.dtype == dtype and np.array_equal(row, array[3])
    assert mask.tolist() == [True] * 4
    rows, masks = features.rows([5, 0, 5])
    assert np.array_equal(rows, array[[5, 0, 5]]) and masks.shape == (3, 4)


def test_row_is_a_copy_that_may_be_changed(tmp_path, array):
    features = RegionFeatures(save(tmp_path / "x.npy", array))
    features.row(0)[0][:] = 7
    assert np.array_equal(features.row(0)[0], array[0])


def test_newer_npy_header_is_read(tmp_path, array):
    with open(tmp_path / "x.npy", "wb") as file:
        np.lib.format.write_array(file, array, version=(2, 0))
    assert np.array_equal(RegionFeatures(tmp_path / "x.npy").row(5)[0], array[5])


def test_row_outside_the_file_is_an_index_error(tmp_path, array):
    features = RegionFeatures(save(tmp_path / "x.npy", array))
    for index in (-1, 6):
        with pytest.raises(IndexError):
            features.row(index)


def test_wrong_size_names_found_and_expected(tmp_path, array):
    with pytest.raises(InputError, match="found features of size 8, expected --img_dim 2048"):
        RegionFeatures(save(tmp_path / "x.npy", array), img_dim=2048)


@pytest.mark.parametrize("dtype", [np.float64, np.int32, ">f4", object])
def test_wrong_dtype_is_refused_and_nothing_is_unpickled(tmp_path, array, dtype):
    np.save(tmp_path / "x.npy", array.astype(dtype), allow_pickle=True)
    with pytest.raises(InputError, match="x.npy: found dtype .*, expected float32 or float16"):
        RegionFeatures(tmp_path / "x.npy")


@pytest.mark.parametrize("shape", [(6, 32), (6, 4, 8, 1), (0, 4, 8), ()])
def test_wrong_rank_is_refused(tmp_path, shape):
    with pytest.raises(InputError, match=r"expected \(rows, regions, img_dim\)"):
        RegionFeatures(save(tmp_path / "x.npy", np.zeros(shape, np.float32)))


def test_fortran_order_is_refused(tmp_path, array):
    with pytest.raises(InputError, match="Fortran order"):
        RegionFeatures(save(tmp_path / "x.npy", np.asfortranarray(array)))


def test_truncated_file_names_both_sizes(tmp_path, array):
    path = save(tmp_path / "x.npy", array)
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError, match=f"truncated, {size - 1} bytes where {size} are expected"):
        RegionFeatures(path)
    for content in (path.read_bytes()[:40], path.read_bytes()[:3], b"", b"text"):
        path.write_bytes(content)
        with pytest.raises(InputError, match="no readable .npy array"):
            RegionFeatures(path)


def test_a_file_that_becomes_shorter_while_it_is_read_is_one_line_and_no_signal(tmp_path, array):
    path = save(tmp_path / "x.npy", array)
    features = RegionFeatures(path)
    features.row(0)
    os.truncate(path, path.stat().st_size - array[0].nbytes // 2)
    assert (features.row(len(array) - 2)[0] == array[-2]).all()
    with pytest.raises(InputError, match=f"x.npy, row {len(array) - 1}: the file became shorter"):
        features.row(len(array) - 1)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match="x.npy: no such file, expected an array"):
        RegionFeatures(tmp_path / "x.npy")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_or_infinity_is_found_when_its_row_is_read(tmp_path, array, value):
    array[4, 2, 5] = value
    features = RegionFeatures(save(tmp_path / "x.npy", array))
    features.rows([0, 1, 2, 3, 5])
    with pytest.raises(InputError, match="x.npy, row 4, region 2: NaN or infinity"):
        features.row(4)


def test_mask_tells_real_regions(tmp_path, array):
    mask = np.arange(4) <= np.arange(6)[:, None] % 4
    features = RegionFeatures(save(tmp_path / "x.npy", array), save(tmp_path / "m.npy", mask))
    assert np.array_equal(features.row(1)[1], mask[1])
    assert np.array_equal(features.rows([2, 0])[1], mask[[2, 0]])
    features.row(1)[1][:] = False
    assert np.array_equal(features.row(1)[1], mask[1])


def test_mask_that_does_not_fit_is_refused(tmp_path, array):
    path = save(tmp_path / "x.npy", array)
    good = np.ones((6, 4), bool)
    for mask in (good[:5], good[:, :3], good.astype(np.uint8)):
        with pytest.raises(InputError, match=r"m.npy: found .*, expected bool \(6, 4\)"):
            RegionFeatures(path, save(tmp_path / "m.npy", mask))
    good[3] = False
    with pytest.raises(InputError, match="m.npy, row 3: no real region"):
        RegionFeatures(path, save(tmp_path / "m.npy", good))
    (tmp_path / "m.npy").write_bytes(b"")
    with pytest.raises(InputError, match="m.npy: no readable .npy array"):
        RegionFeatures(path, tmp_path / "m.npy")


def test_pickled_features_open_the_file_again(tmp_path, array):
    features = RegionFeatures(save(tmp_path / "x.npy", array))
    features.row(0)
    assert np.array_equal(pickle.loads(pickle.dumps(features)).row(2)[0], array[2])


# --- Images of a split ------------------------------------------------------------------------------------------------


@pytest.fixture
def masked(tmp_path, array):
    """Features of six rows, of which row i has 1 + i % 4 real regions."""
    mask = np.arange(4) <= np.arange(6)[:, None] % 4
    return RegionFeatures(save(tmp_path / "x.npy", array.astype(np.float16)), save(tmp_path / "m.npy", mask))


def test_image_i_is_the_row_that_the_split_names_whole_in_evaluation(masked, array):
    images = RegionImages(masked, np.array([4, 1, 3]))
    assert len(images) == 3
    for image, row in enumerate([4, 1, 3]):
        features, mask = images(image)
        assert features.dtype == torch.float16 and features.tolist() == array[row].astype(np.float16).tolist()
        assert mask.tolist() == [region <= row % 4 for region in range(4)]


def test_real_regions_are_dropped_at_their_rate_and_padding_stays_padding(tmp_path):
    mask = np.arange(20_000)[None] < 15_000
    features = RegionFeatures(
        save(tmp_path / "x.npy", np.zeros((1, 20_000, 1), np.float32)), save(tmp_path / "m.npy", mask)
    )
    images = RegionImages(features, np.array([0]))
    kept = images(0, np.random.default_rng(0)).mask.numpy()
    assert not kept[15_000:].any()
    assert kept[:15_000].mean() == pytest.approx(0.8, abs=0.01)
    assert images(0).mask.sum() == 15_000


def test_dropping_depends_on_the_generator_alone_and_leaves_the_features_as_they_are(masked):
    images = RegionImages(masked, np.arange(6))
    first, again = (images(3, np.random.default_rng([3, 1])) for _ in range(2))
    assert torch.equal(first.mask, again.mask) and torch.equal(first.features, images(3).features)
    assert len({tuple(images(3, np.random.default_rng(seed)).mask.tolist()) for seed in range(40)}) > 4
    assert images(3).mask.all()


def test_image_that_would_lose_every_region_keeps_its_real_ones(masked, monkeypatch):
    monkeypatch.setattr(inputs, "SIZE_AUGMENT", 1.0)
    images = RegionImages(masked, np.arange(6))
    for image in range(6):
        assert images(image, np.random.default_rng(0)).mask.tolist() == [region <= image % 4 for region in range(4)]


# --- Memory -----------------------------------------------------------------------------------------------------------


def resident_mb():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096 / 2**20


def read_every_row(path, seed):
    """Growth of resident memory, in MiB, over reading all rows; run in a process of its own."""
    features = RegionFeatures(path)
    features.row(0)
    before, peak = resident_mb(), 0.0
    for count, index in enumerate(np.random.default_rng(seed).permutation(len(features))):
        features.row(index)
        if count % 50 == 0:
            peak = max(peak, resident_mb())
    return max(peak, resident_mb()) - before


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_resident_memory_does_not_grow_with_the_file(tmp_path):
    path, shape = tmp_path / "x.npy", (1000, 36, 2048)  # 281 MiB of holes
    header = {"descr": "<f4", "fortran_order": False, "shape": shape}
    with open(path, "wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        file.truncate(file.tell() + 4 * int(np.prod(shape)))
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(read_every_row, (path, 0)) < 16
