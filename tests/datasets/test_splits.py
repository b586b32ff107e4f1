"""Which captions and which feature row belong to which image, in every form the files come in."""

from __future__ import annotations

import numpy as np
import pytest

from lib.core.errors import InputError
from lib.datasets.layout import read_id_mapping
from lib.datasets.splits import image_rows, open_split
from tests.conftest import SHARED, needs_shared


def lists(index):
    return index.rows.tolist(), index.image_of_caption.tolist(), index.image_ids.tolist()


def test_one_row_per_image_without_ids():
    assert lists(image_rows(2, 6)) == ([0, 1], [0, 0, 0, 1, 1, 1], [0, 1])


def test_one_row_per_caption_without_ids_means_as_many_captions_per_image_as_the_data_set_has():
    rows, captions, ids = lists(image_rows(10, 10, captions_per_image=5))
    assert rows == [0, 5] and captions == [0] * 5 + [1] * 5 and ids == [0, 1]
    assert lists(image_rows(10, 10))[0] == list(range(10))  # one's own data: one caption per image


@pytest.mark.parametrize("n_rows", [2, 6])
@pytest.mark.parametrize("ids", [[40, 30], [40, 40, 40, 30, 30, 30]])
def test_ids_and_rows_may_each_be_per_image_or_per_caption(n_rows, ids):
    rows, captions, found = lists(image_rows(n_rows, 6, np.array(ids)))
    assert rows == ([0, 1] if n_rows == 2 else [0, 3])
    assert captions == [0, 0, 0, 1, 1, 1] and found == [40, 30]


@pytest.mark.parametrize("n_rows", [3, 6, None])
def test_ids_per_caption_allow_any_number_of_captions(n_rows):
    rows, captions, found = lists(image_rows(n_rows, 6, np.array([9, 9, 4, 7, 7, 7])))
    assert rows == ([0, 2, 3] if n_rows == 6 else [0, 1, 2])
    assert captions == [0, 0, 1, 2, 2, 2] and found == [9, 4, 7]


def test_one_caption_per_image_is_not_taken_for_five():
    assert lists(image_rows(5, 5, np.arange(5) + 10)) == ([0, 1, 2, 3, 4],) * 2 + ([10, 11, 12, 13, 14],)


def test_raw_images_take_their_ids_per_image_or_per_caption():
    for ids in ([5, 6], [5, 5, 5, 6, 6, 6]):
        assert lists(image_rows(None, 6, np.array(ids))) == ([0, 1], [0, 0, 0, 1, 1, 1], [5, 6])
    with pytest.raises(InputError, match="no ids file"):
        image_rows(None, 6)


@pytest.mark.parametrize(
    ("n_rows", "n_captions", "ids", "message"),
    [
        (4, 10, None, "10 captions are not a multiple of 4 feature rows"),
        (7, 7, None, "7 captions are not a multiple of 5 per image"),
        (20, 10, None, "10 captions are not a multiple of 20 feature rows"),
        (2, 10, [1, 2, 3], "3 ids for 10 captions and 2 feature rows"),
        (10, 10, list(range(20)), "20 ids for 10 captions and 10 feature rows"),
        (3, 10, [1] * 5 + [2] * 5, "3 feature rows for 2 images and 10 captions"),
        (5, 10, [1, 2], "5 feature rows for 2 images and 10 captions"),
        (2, 4, [1, 2, 2, 1], "id 1 comes back after other ids"),
        (2, 4, [8, 8, 8, 8], "2 feature rows for 1 images and 4 captions"),
        (2, 4, [8, 8], "id 8 comes back"),
    ],
)
def test_counts_that_do_not_fit_are_refused_with_the_numbers(n_rows, n_captions, ids, message):
    with pytest.raises(InputError, match=f"^here: {message}"):
        image_rows(n_rows, n_captions, None if ids is None else np.array(ids), captions_per_image=5, where="here")


def write_split(root, split, n_images, per_image=5, repeat=1, ids=None, n_captions=None):
    folder = root / "precomp"
    folder.mkdir(exist_ok=True)
    rows = np.arange(n_images, dtype=np.float32)[:, None, None] * np.ones((1, 2, 4), np.float32)
    np.save(folder / f"{split}_ims.npy", np.repeat(rows, repeat, 0))
    count = n_captions or n_images * per_image
    (folder / f"{split}_caps.txt").write_text("".join(f"caption {i}\n" for i in range(count)))
    if ids is not None:
        (folder / f"{split}_ids.txt").write_text("".join(f"{i}\n" for i in ids))


def test_split_finds_captions_images_and_rows(tmp_path):
    write_split(tmp_path, "test", 4, repeat=5, ids=np.repeat([8, 6, 4, 2], 5))
    split = open_split(tmp_path, "f30k", "test", img_dim=4)
    assert (split.n_images, split.n_captions, split.limited) == (4, 20, False)
    assert split.image_ids.tolist() == [8, 6, 4, 2]
    assert [split.features.row(row)[0][0, 0] for row in split.rows] == [0, 1, 2, 3]
    assert split.captions[7] == "caption 7" and split.image_of_caption[7] == 1


def test_limit_keeps_the_first_images_and_says_so(tmp_path):
    write_split(tmp_path, "test", 3, ids=[8, 6, 4], per_image=2)
    split = open_split(tmp_path, "f30k", "test", limit=2)
    assert (split.n_images, split.n_captions, split.limited) == (2, 4, True)
    assert split.image_ids.tolist() == [8, 6] and split.image_of_caption.tolist() == [0, 0, 1, 1]
    assert not open_split(tmp_path, "f30k", "test", limit=3).limited
    with pytest.raises(InputError, match="--limit 0"):
        open_split(tmp_path, "f30k", "test", limit=0)


def test_dev_is_cut_to_its_first_5000_captions(tmp_path):
    for split in ("dev", "test"):
        write_split(tmp_path, split, 1014, ids=np.arange(1014))
    dev, test = (open_split(tmp_path, "f30k", split) for split in ("dev", "test"))
    assert (dev.n_images, dev.n_captions, dev.limited) == (1000, 5000, False)
    assert len(dev.rows) == len(dev.image_ids) == 1000 and len(dev.image_of_caption) == 5000
    assert (test.n_images, test.n_captions) == (1014, 5070)


def test_dev_is_cut_between_images(tmp_path):
    write_split(tmp_path, "dev", 10, per_image=1500)
    dev = open_split(tmp_path, "f30k", "dev")
    assert (dev.n_images, dev.n_captions) == (3, 4500)


def test_dev_of_ones_own_data_is_not_cut(tmp_path):
    write_split(tmp_path, "dev", 1014)
    dev = open_split(tmp_path, "birds", "dev")
    assert (dev.n_images, dev.n_captions, dev.limited) == (1014, 5070, False)


def test_own_data_with_one_caption_an_image_opens_as_it_is(tmp_path):
    write_split(tmp_path, "train", 6, per_image=1)
    split = open_split(tmp_path, "birds", "train", img_dim=4)
    assert (split.n_images, split.n_captions) == (6, 6)
    assert split.rows.tolist() == split.image_of_caption.tolist() == list(range(6))


@pytest.mark.parametrize("rows", ["per image", "per caption"])
@pytest.mark.parametrize("data_name", ["birds", "coco", "f30k"])
def test_a_varying_number_of_captions_opens_with_an_id_for_each_caption(tmp_path, data_name, rows):
    counts = [1, 4, 2]
    write_split(tmp_path, "train", 3, ids=np.repeat([30, 10, 20], counts), n_captions=7)
    if rows == "per caption":
        features = np.load(tmp_path / "precomp" / "train_ims.npy")
        np.save(tmp_path / "precomp" / "train_ims.npy", np.repeat(features, counts, 0))
    split = open_split(tmp_path, data_name, "train")
    assert split.image_of_caption.tolist() == [0, 1, 1, 1, 1, 2, 2] and split.image_ids.tolist() == [30, 10, 20]
    assert [split.features.row(row)[0][0, 0] for row in split.rows] == [0, 1, 2]
    assert open_split(tmp_path, data_name, "train", limit=2).captions == [f"caption {i}" for i in range(5)]


def test_a_name_that_leads_out_of_the_folder_is_refused(tmp_path):
    write_split(tmp_path, "train", 2)
    with pytest.raises(InputError, match="'../x': expected coco, f30k or a plain name"):
        open_split(tmp_path, "../x", "train")


def test_raw_images_leave_the_features_alone(tmp_path):
    write_split(tmp_path, "train", 3, ids=[1, 2, 3])
    (tmp_path / "precomp" / "train_ims.npy").unlink()
    split = open_split(tmp_path, "coco", "train", need_features=False)
    assert split.features is None and split.n_images == 3


def test_mismatch_names_the_files(tmp_path):
    write_split(tmp_path, "train", 3, n_captions=10)
    with pytest.raises(InputError, match=r"precomp.train_\*: 10 captions are not a multiple of 3 feature rows"):
        open_split(tmp_path, "f30k", "train")


def test_different_images_without_ids_are_not_taken_for_one(tmp_path):
    write_split(tmp_path, "train", 10, per_image=1)
    with pytest.raises(InputError, match="first 5 rows are different images"):
        open_split(tmp_path, "f30k", "train")
    write_split(tmp_path, "train", 2, repeat=5)
    assert open_split(tmp_path, "f30k", "train").n_images == 2


@needs_shared
@pytest.mark.parametrize("split", ["dev", "test"])
def test_real_flickr30k_captions_give_1000_images_of_five(split):
    opened = open_split(SHARED / "data" / "f30k", "f30k", split, need_features=False)
    assert (opened.n_images, opened.n_captions) == (1000, 5000)
    assert np.array_equal(opened.image_of_caption, np.arange(5000) // 5)
    mapping = read_id_mapping(SHARED / "data" / "f30k")
    assert all(str(image_id) in mapping for image_id in opened.image_ids)
