"""`prepare regions`: bottom-up-attention TSV, LXMERT TSV and .npz files to feature, box and mask files."""

from __future__ import annotations

import json
import tracemalloc

import numpy as np
import pytest

from lib.datasets.splits import open_split
from lib.tools.prepare.__main__ import main
from tests.tools.prepare.region_files import (
    BOXES,
    DIM,
    HEIGHT,
    WIDTH,
    bua_row,
    encode,
    image,
    lxmert_row,
    write_lines,
    write_npz,
)


@pytest.fixture
def data(tmp_path):
    """COCO-like ids: train 10, 11, 12 (once per caption), dev 20 and test 30 (once per image)."""
    precomp = tmp_path / "coco" / "precomp"
    precomp.mkdir(parents=True)
    (precomp / "train_ids.txt").write_text("12\n12\n10\n10\n11\n11\n")
    (precomp / "train_caps.txt").write_text("a\nb\nc\nd\ne\nf\n")
    (precomp / "dev_ids.txt").write_text("20\n")
    return tmp_path / "coco"


def run(data, *sources, splits=("train",), dim=DIM, more=()):
    split = ("--split", *splits) if splits else ()
    flags = ("--data_path", data, "--data_name", data.name, *split, "--boxes", BOXES, "--img_dim", dim, *more)
    return main(["regions", *map(str, (*sources, *flags))])


def tsv(path, *keys):
    """A file of these images in bottom-up-attention's form."""
    return write_lines(path, [bua_row(key) for key in keys])


def failure(capsys, *arguments, **options) -> str:
    """The one line that a failing run prints."""
    with pytest.raises(SystemExit, match="2"):
        run(*arguments, **options)
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(error) == 1
    return error[0]


def load(data, name):
    return np.load(data / "precomp" / name, allow_pickle=False)


def assert_rows(data, split, numbers, dtype="float32"):
    ims, boxes = load(data, f"{split}_ims.npy"), load(data, f"{split}_boxes.npy")
    assert ims.dtype == dtype and boxes.dtype == np.float32
    np.testing.assert_array_equal(ims, np.stack([image(number)[1] for number in numbers]).astype(dtype))
    np.testing.assert_array_equal(boxes, np.stack([image(number)[0] for number in numbers]))
    left = [path.name for path in (data / "precomp").iterdir() if "part" in path.name or "tmp" in path.name]
    assert left == []


def test_rows_follow_the_ids_file_whatever_the_order_of_the_tsv(data, tmp_path, capsys):
    source = tsv(tmp_path / "a.tsv", 10, 99, 11, 98, 12)
    assert run(data, source) == 0
    assert_rows(data, "train", [12, 10, 11])
    assert not (data / "precomp" / "train_mask.npy").exists()
    assert "2 images of the sources are in none of these splits" in capsys.readouterr().out


def test_npz_folder_is_read_without_its_pickled_info(data, tmp_path):
    folder = tmp_path / "npz"
    folder.mkdir()
    for number in (10, 11, 12, 99):
        write_npz(folder, f"COCO_val2014_{number:012d}" if number == 11 else number, number)
    assert run(data, folder) == 0
    assert_rows(data, "train", [12, 10, 11])


def test_one_pass_over_several_sources_writes_every_split(data, tmp_path):
    one = tsv(tmp_path / "one.tsv", 20, 10)
    two = write_lines(tmp_path / "two.tsv", [lxmert_row(key, key) for key in (11, 12)])
    (data / "precomp" / "testall_ids.txt").write_text("11\n20\n")  # an image may be in two splits
    assert run(data, one, two, splits=()) == 0
    assert_rows(data, "train", [12, 10, 11])
    assert_rows(data, "dev", [20])
    assert_rows(data, "testall", [11, 20])


def test_flickr_features_are_found_by_file_name(tmp_path):
    data = tmp_path / "f30k"
    (data / "precomp").mkdir(parents=True)
    (data / "precomp" / "dev_ids.txt").write_text("1\n0\n")
    (data / "id_mapping.json").write_text(json.dumps({"0": "1000092795.jpg", "1": "36979.jpg"}))
    source = write_lines(tmp_path / "a.tsv", [bua_row("1000092795", 0), bua_row("36979.jpg", 1)])
    run(data, source, splits=())
    assert_rows(data, "dev", [1, 0])


def test_float16_rounds_and_refuses_what_does_not_fit(data, tmp_path, capsys):
    rows = [bua_row(key) for key in (10, 11, 12)]
    run(data, write_lines(tmp_path / "a.tsv", rows), more=["--dtype", "float16"])
    assert_rows(data, "train", [12, 10, 11], "float16")
    rows[1] = bua_row(11, features=encode(np.full((BOXES, DIM), 1e5, "<f4")))
    source = write_lines(tmp_path / "b.tsv", rows)
    error = failure(capsys, data, source, more=["--dtype", "float16", "--overwrite"])
    assert "line 2: image 11 has features too large for float16" in error


def test_more_boxes_are_cut_to_the_first_and_fewer_are_masked(data, tmp_path):
    source = write_lines(tmp_path / "a.tsv", [bua_row(10, count=5), bua_row(11, count=2), bua_row(12)])
    assert run(data, source) == 0
    ims, mask = load(data, "train_ims.npy"), load(data, "train_mask.npy")
    np.testing.assert_array_equal(ims[1], image(10, 5)[1][:BOXES])
    np.testing.assert_array_equal(ims[2, :2], image(11, 2)[1])
    assert not ims[2, 2].any() and not load(data, "train_boxes.npy")[2, 2].any()
    assert mask.tolist() == [[True] * 3, [True] * 3, [True, True, False]]
    split = open_split(data, "coco", "train", img_dim=DIM)  # the loader honours the mask
    assert split.features.row(2)[1].tolist() == [True, True, False]
    assert split.image_ids.tolist() == [12, 10, 11]


def test_fewer_boxes_can_be_an_error(data, tmp_path, capsys):
    source = write_lines(tmp_path / "a.tsv", [bua_row(10), bua_row(11, count=2)])
    error = failure(capsys, data, source, more=["--fewer", "error"])
    assert f"{source}, line 2: image 11 has 2 boxes, expected 3; --fewer pad" in error


def test_a_part_that_was_cut_is_not_filled_up_with_zeros(data, tmp_path, capsys):
    failure(capsys, data, tsv(tmp_path / "a.tsv", 10))
    part = data / "precomp" / "train_ims.npy.part"
    part.write_bytes(part.read_bytes()[:-4])
    source = tsv(tmp_path / "b.tsv", 10, 11, 12)
    error = failure(capsys, data, source)
    assert "train_ims.npy.part: broken" in error and "delete train_ims.json.part to start again" in error
    (data / "precomp" / "train_ims.json.part").unlink()
    assert run(data, source) == 0
    assert_rows(data, "train", [12, 10, 11])


def test_full_disk_is_told_before_anything_is_written(data, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 10})())
    error = failure(capsys, data, tsv(tmp_path / "a.tsv", 10))
    assert "train_ims.npy: needs 0.0 GB, the disk has 0.0 GB free" in error
    assert not list((data / "precomp").glob("*part*"))


def test_lxmert_rows_have_height_before_width_and_names_as_keys(data, tmp_path, capsys):
    wide = encode(np.minimum(image(10)[0] + np.float32([250, 0, 250, 0]), 640))  # in 640 x 480, not in 480 x 640
    rows = [lxmert_row(f"COCO_train2014_{number:012d}", number) for number in (11, 12)]
    for turned, outside in ({}, False), ({"img_h": WIDTH, "img_w": HEIGHT}, True):
        source = write_lines(tmp_path / "a.tsv", [lxmert_row("10", 10, boxes=wide, **turned), *rows], end="\n")
        assert run(data, source, more=["--overwrite"]) == 0
        np.testing.assert_array_equal(load(data, "train_ims.npy"), np.stack([image(n)[1] for n in (12, 10, 11)]))
        assert ("1 images have boxes outside the image" in capsys.readouterr().out) is outside


def test_a_key_that_is_an_id_and_another_image_s_name_is_read_as_the_flag_says(data, tmp_path, capsys):
    (data / "id_mapping.json").write_text(json.dumps({"10": "12.jpg", "11": "11.jpg", "12": "10.jpg"}))
    source = tsv(tmp_path / "a.tsv", 10, 11, 12)
    assert f"{source}, line 1: 10 " in (error := failure(capsys, data, source)) and "--keys" in error
    for keys, numbers in (("file", [10, 12, 11]), ("id", [12, 10, 11])):
        run(data, source, more=["--keys", keys, "--overwrite"])
        assert_rows(data, "train", numbers)


def test_mask_of_an_earlier_run_goes_when_no_image_is_padded(data, tmp_path):
    run(data, write_lines(tmp_path / "a.tsv", [bua_row(10), bua_row(11, count=2), bua_row(12)]))
    assert (data / "precomp" / "train_mask.npy").exists()
    run(data, tsv(tmp_path / "b.tsv", 10, 11, 12), more=["--overwrite"])
    assert_rows(data, "train", [12, 10, 11])
    assert not (data / "precomp" / "train_mask.npy").exists()


def test_what_is_broken_or_missing_is_named_and_another_source_completes_the_run(data, tmp_path, capsys):
    source = tmp_path / "a.tsv"
    for row, words in (
        (bua_row(11, features="@@@@"), f"{source}, line 2: "),
        ("77\t640", f"{source}, line 2: "),  # of an image that no split needs
        (bua_row(10), f"line 2: image 10 (10) was in {source}, line 1 "),
        (bua_row("vg_77", 1), "train lacks 2 images (12, 11)"),
    ):
        assert words in failure(capsys, data, write_lines(source, [bua_row(10), row]), more=["--restart"])
        assert not (data / "precomp" / "train_ims.npy").exists()
    # image 10 was written before: it isn't decoded a second time
    mended = write_lines(tmp_path / "b.tsv", [bua_row(10, features="not read again"), bua_row(11), bua_row(12)])
    assert run(data, mended) == 0
    assert "train: 1 of 3 images are there already" in capsys.readouterr().out
    assert_rows(data, "train", [12, 10, 11])
    error = failure(capsys, data, write_lines(source, [bua_row("vg_77", 1)]), more=["--overwrite"])
    assert "train lacks 3 images (12, 10, 11)" in error and "'vg_77'" in error


def test_resuming_needs_the_same_settings_or_a_restart(data, tmp_path, capsys):
    half, source = ["--dtype", "float16"], tsv(tmp_path / "b.tsv", 10, 11, 12)
    for more in ([], ["--overwrite"]):  # the second time the finished files stay
        failure(capsys, data, tsv(tmp_path / "a.tsv", 10), more=more)
        if not more:
            error = failure(capsys, data, source, more=half)
            assert all(words in error for words in ("train_ims.npy.part: ", "float32", "float16", "--restart"))
        assert run(data, source, more=[*half, "--restart"]) == 0
        assert_rows(data, "train", [12, 10, 11], "float16")


def test_finished_files_are_left_alone_unless_overwrite_is_said(data, tmp_path, capsys):
    source, file = tsv(tmp_path / "a.tsv", 10, 11, 12), data / "precomp" / "train_ims.npy"
    run(data, source)
    before = file.stat().st_mtime_ns
    assert run(data, source) == 0 and file.stat().st_mtime_ns == before
    error = failure(capsys, data, source, more=["--dtype", "float16"])
    assert all(words in error for words in ("train_ims.npy: ", "float32", "float16", "--overwrite"))
    (data / "precomp" / "train_ids.txt").write_text("12\n11\n10\n")
    assert "train_ims.npy: made with other settings (ids " in failure(capsys, data, source)
    (data / "precomp" / "train_ims.json").unlink()
    assert "train_ims.npy: already there" in failure(capsys, data, source)


def test_memory_stays_at_a_few_rows_whatever_the_length_of_the_source(data, tmp_path):
    dim, ids = 1024, range(1000, 1400)
    (data / "precomp" / "train_ids.txt").write_text("".join(f"{number}\n" for number in ids))
    features = encode(np.ones((BOXES, dim), "<f4"))
    source = write_lines(tmp_path / "a.tsv", [bua_row(number, features=features) for number in ids])
    assert source.stat().st_size > 6e6
    run(data, source, dim=dim)  # whatever is imported at first use
    tracemalloc.start()
    try:
        run(data, source, dim=dim, more=["--overwrite"])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert load(data, "train_ims.npy").shape == (400, 3, dim)
    assert peak < 3e6
