"""`prepare regions`: bottom-up-attention TSV, LXMERT TSV and .npz files to feature, box and mask files."""

from __future__ import annotations

import base64
import json
import tracemalloc

import numpy as np
import pytest

from lib.datasets.splits import open_split
from lib.tools.prepare.__main__ import main

DIM, BOXES = 8, 3
WIDTH, HEIGHT = 640, 480


def image(key: int, count: int = BOXES, dim: int = DIM):
    """Boxes (n, 4) and features (n, dim) that depend on the key alone."""
    rng = np.random.default_rng(key)
    low = rng.uniform(0, 200, (count, 2))
    return np.concatenate([low, low + 200], 1).astype("<f4"), rng.random((count, dim)).astype("<f4")


def encode(array: np.ndarray) -> str:
    return base64.b64encode(array.tobytes()).decode()


def bua_row(key, number: int | None = None, count: int = BOXES, **changes) -> str:
    boxes, features = image(key if number is None else number, count)
    row = {"image_id": key, "image_w": WIDTH, "image_h": HEIGHT, "num_boxes": count}
    row |= {"boxes": encode(boxes), "features": encode(features)}
    return "\t".join(str(value) for value in (row | changes).values())


def lxmert_row(key, number: int, count: int = BOXES, **changes) -> str:
    boxes, features = image(number, count)
    row = {"img_id": key, "img_h": HEIGHT, "img_w": WIDTH}
    row |= {
        name: encode(np.zeros(count, np.int64)) for name in ("objects_id", "objects_conf", "attrs_id", "attrs_conf")
    }
    row |= {"num_boxes": count, "boxes": encode(boxes), "features": encode(features)}
    return "\t".join(str(value) for value in (row | changes).values())


def write_npz(folder, key, number: int, count: int = BOXES, **changes):
    boxes, features = image(number, count)
    arrays = {"x": features, "bbox": boxes, "num_bbox": count, "image_h": HEIGHT, "image_w": WIDTH}
    info = np.array({"objects_id": [1], "image_id": key}, dtype=object)  # pickled, as in the published files
    np.savez_compressed(folder / f"{key}.npz", **({**arrays, "info": info} | changes))


def write_lines(path, rows, end="\r\n"):
    path.write_bytes("".join(row + end for row in rows).encode())
    return path


@pytest.fixture
def data(tmp_path):
    """COCO-like ids: train 10, 11, 12 (once per caption), dev 20 and test 30 (once per image)."""
    precomp = tmp_path / "coco" / "precomp"
    precomp.mkdir(parents=True)
    (precomp / "train_ids.txt").write_text("12\n12\n10\n10\n11\n11\n")
    (precomp / "train_caps.txt").write_text("a\nb\nc\nd\ne\nf\n")
    (precomp / "dev_ids.txt").write_text("20\n")
    return tmp_path / "coco"


def run(data, *sources, splits=("train",), more=()):
    options = [
        "--data_path",
        data,
        "--data_name",
        "coco",
        "--split",
        *splits,
        "--boxes",
        BOXES,
        "--img_dim",
        DIM,
        *more,
    ]
    return main(["regions", *map(str, sources), *map(str, options)])


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
    source = write_lines(tmp_path / "a.tsv", [bua_row(key) for key in (10, 99, 11, 98, 12)])
    assert run(data, source) == 0
    assert_rows(data, "train", [12, 10, 11])
    assert not (data / "precomp" / "train_mask.npy").exists()
    assert "2 images of the sources are in none of these splits" in capsys.readouterr().out


def test_lxmert_rows_have_height_before_width_and_names_as_keys(data, tmp_path, capsys):
    keys = {f"COCO_train2014_{number:012d}": number for number in (10, 11, 12)}
    wide = image(10)[0] + np.float32([250, 0, 250, 0])  # fits into 640 x 480, not into 480 x 640
    rows = [lxmert_row(key, number) for key, number in keys.items()]
    rows[0] = lxmert_row(next(iter(keys)), 10, boxes=encode(np.minimum(wide, 640)))
    assert run(data, write_lines(tmp_path / "a.tsv", rows, end="\n")) == 0
    np.testing.assert_array_equal(load(data, "train_ims.npy")[1], image(10)[1])
    assert "outside the image" not in capsys.readouterr().out
    swapped = [row.replace(f"\t{HEIGHT}\t{WIDTH}\t", f"\t{WIDTH}\t{HEIGHT}\t") for row in rows]
    run(data, write_lines(tmp_path / "b.tsv", swapped), more=["--overwrite"])
    assert "1 images have boxes outside the image" in capsys.readouterr().out


def test_npz_folder_is_read_without_its_pickled_info(data, tmp_path):
    folder = tmp_path / "npz"
    folder.mkdir()
    for number in (10, 11, 12, 99):
        write_npz(folder, f"COCO_val2014_{number:012d}" if number == 11 else number, number)
    assert run(data, folder) == 0
    assert_rows(data, "train", [12, 10, 11])


def test_one_pass_over_several_sources_writes_every_split(data, tmp_path):
    one = write_lines(tmp_path / "one.tsv", [bua_row(key) for key in (20, 10)])
    two = write_lines(tmp_path / "two.tsv", [lxmert_row(key, key) for key in (11, 12)])
    (data / "precomp" / "testall_ids.txt").write_text("11\n20\n")  # an image may be in two splits
    options = ["--data_path", str(data), "--data_name", "coco", "--boxes", "3", "--img_dim", "8"]
    assert main(["regions", str(one), str(two), *options]) == 0
    assert_rows(data, "train", [12, 10, 11])
    assert_rows(data, "dev", [20])
    assert_rows(data, "testall", [11, 20])


def test_flickr_features_are_found_by_file_name(tmp_path):
    data = tmp_path / "f30k"
    (data / "precomp").mkdir(parents=True)
    (data / "precomp" / "dev_ids.txt").write_text("1\n0\n")
    (data / "id_mapping.json").write_text(json.dumps({"0": "1000092795.jpg", "1": "36979.jpg"}))
    source = write_lines(tmp_path / "a.tsv", [bua_row("1000092795", 0), bua_row("36979.jpg", 1)])
    main(["regions", str(source), "--data_path", str(data), "--data_name", "f30k", "--boxes", "3", "--img_dim", "8"])
    assert_rows(data, "dev", [1, 0])


def test_key_that_is_an_id_and_another_image_s_name_must_be_decided(data, tmp_path, capsys):
    (data / "id_mapping.json").write_text(json.dumps({"10": "12.jpg", "11": "11.jpg", "12": "10.jpg"}))
    source = write_lines(tmp_path / "a.tsv", [bua_row(key) for key in (10, 11, 12)])
    error = failure(capsys, data, source)
    assert "line 1: 10 is the id or file name of image 10 and image 12; say --keys id or --keys file" in error
    run(data, source, more=["--keys", "file"])
    assert_rows(data, "train", [10, 12, 11])
    run(data, source, more=["--keys", "id", "--overwrite"])
    assert_rows(data, "train", [12, 10, 11])


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


def test_mask_of_an_earlier_run_goes_when_no_image_is_padded(data, tmp_path):
    run(data, write_lines(tmp_path / "a.tsv", [bua_row(10), bua_row(11, count=2), bua_row(12)]))
    run(data, write_lines(tmp_path / "b.tsv", [bua_row(key) for key in (10, 11, 12)]), more=["--overwrite"])
    assert_rows(data, "train", [12, 10, 11])
    assert not (data / "precomp" / "train_mask.npy").exists()


def test_fewer_boxes_can_be_an_error(data, tmp_path, capsys):
    source = write_lines(tmp_path / "a.tsv", [bua_row(10), bua_row(11, count=2)])
    error = failure(capsys, data, source, more=["--fewer", "error"])
    assert f"{source}, line 2: image 11 has 2 boxes, expected 3; --fewer pad" in error


BROKEN = {
    "base64": (bua_row(11, features="@@@@"), "line 2: features is broken base64"),
    "cut base64": (bua_row(11)[:-3], "line 2: features is broken base64"),
    "short row": ("11\t640\t480\t3", "line 2: 4 tab-separated columns, expected 6 (image_id image_w image_h num_boxes"),
    "short row of an unknown image": ("77\t640", "line 2: 2 tab-separated columns, expected 6"),
    "feature size": (bua_row(11, features=encode(np.zeros((BOXES, 5), "<f4"))),
                     "line 2: features holds 60 bytes, expected 96 (3 boxes x 8 float32); --img_dim 5 if that is"),
    "box size": (bua_row(11, boxes=encode(np.zeros((BOXES, 3), "<f4"))),
                 "line 2: boxes holds 36 bytes, expected 48 (3 boxes x 4 float32)"),
    "count": (bua_row(11, num_boxes="many"), "line 2: num_boxes is 'many', expected a whole number above 0"),
    "no boxes": (bua_row(11, count=0), "line 2: num_boxes is '0', expected a whole number above 0"),
    "NaN": (bua_row(11, features=encode(np.full((BOXES, DIM), np.nan, "<f4"))), "line 2: features holds NaN or inf"),
    "duplicate": (bua_row(10), "line 2: image 10 (10) was in {source}, line 1 already"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_broken_rows_are_named_with_file_and_line_and_the_run_resumes(data, tmp_path, capsys, name):
    row, message = BROKEN[name]
    source = write_lines(tmp_path / "a.tsv", [bua_row(10), row, bua_row(12)])
    error = failure(capsys, data, source)
    assert str(source) in error and message.format(source=source) in error
    assert not (data / "precomp" / "train_ims.npy").exists()
    # image 10 was written before: it isn't decoded a second time
    mended = write_lines(tmp_path / "b.tsv", [bua_row(10, features="not read again"), bua_row(11), bua_row(12)])
    assert run(data, mended) == 0
    assert "train: 1 of 3 images are there already" in capsys.readouterr().out
    assert_rows(data, "train", [12, 10, 11])


def test_missing_images_are_counted_and_another_source_adds_them(data, tmp_path, capsys):
    error = failure(capsys, data, write_lines(tmp_path / "a.tsv", [bua_row(10)]))
    assert "train lacks 2 images (12, 11)" in error and "run again with the source that holds them" in error
    assert run(data, write_lines(tmp_path / "b.tsv", [bua_row(key) for key in (12, 11)])) == 0
    assert_rows(data, "train", [12, 10, 11])


def test_source_without_any_needed_image_says_what_it_holds(data, tmp_path, capsys):
    error = failure(capsys, data, write_lines(tmp_path / "a.tsv", [bua_row("vg_77", 1)]))
    assert "train lacks 3 images (12, 10, 11): not in the sources, whose first image is 'vg_77'" in error


def test_resuming_needs_the_same_settings_or_a_restart(data, tmp_path, capsys):
    failure(capsys, data, write_lines(tmp_path / "a.tsv", [bua_row(10)]))
    source = write_lines(tmp_path / "b.tsv", [bua_row(key) for key in (10, 11, 12)])
    error = failure(capsys, data, source, more=["--dtype", "float16"])
    assert "train_ims.npy.part: made with other settings (dtype float32 there, float16 now)" in error
    assert "--restart throws unfinished ones away" in error
    assert run(data, source, more=["--dtype", "float16", "--restart"]) == 0
    assert_rows(data, "train", [12, 10, 11], "float16")
    failure(capsys, data, write_lines(tmp_path / "a.tsv", [bua_row(10)]), more=["--overwrite"])
    assert run(data, source, more=["--dtype", "float16", "--restart"]) == 0  # the finished files stay
    assert_rows(data, "train", [12, 10, 11], "float16")


def test_finished_files_are_left_alone_unless_overwrite_is_said(data, tmp_path, capsys):
    source = write_lines(tmp_path / "a.tsv", [bua_row(key) for key in (10, 11, 12)])
    run(data, source)
    before = (data / "precomp" / "train_ims.npy").stat().st_mtime_ns
    assert run(data, source) == 0
    assert "is there already, left as it is" in capsys.readouterr().out
    assert (data / "precomp" / "train_ims.npy").stat().st_mtime_ns == before
    error = failure(capsys, data, source, more=["--dtype", "float16"])
    assert "train_ims.npy: made with other settings (dtype float32 there, float16 now)" in error
    assert "--overwrite replaces finished files" in error
    (data / "precomp" / "train_ids.txt").write_text("12\n11\n10\n")
    assert "train_ims.npy: made with other settings (ids " in failure(capsys, data, source)
    (data / "precomp" / "train_ims.json").unlink()
    assert "train_ims.npy: already there, and not from this command" in failure(capsys, data, source)


def test_a_part_that_was_cut_is_not_filled_up_with_zeros(data, tmp_path, capsys):
    failure(capsys, data, write_lines(tmp_path / "a.tsv", [bua_row(10)]))
    part = data / "precomp" / "train_ims.npy.part"
    part.write_bytes(part.read_bytes()[:-4])
    source = write_lines(tmp_path / "b.tsv", [bua_row(key) for key in (10, 11, 12)])
    error = failure(capsys, data, source)
    assert "train_ims.npy.part: broken" in error and "delete train_ims.json.part to start again" in error
    (data / "precomp" / "train_ims.json.part").unlink()
    assert run(data, source) == 0
    assert_rows(data, "train", [12, 10, 11])


def test_full_disk_is_told_before_anything_is_written(data, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 10})())
    error = failure(capsys, data, write_lines(tmp_path / "a.tsv", [bua_row(10)]))
    assert "train_ims.npy: needs 0.0 GB, the disk has 0.0 GB free" in error
    assert not list((data / "precomp").glob("*part*"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": np.zeros((BOXES, 5), np.float32)}, "x is (3, 5) and bbox (3, 4), expected (3, 8) and (3, 4)"),
        ({"num_bbox": 2}, "x is (3, 8) and bbox (3, 4), expected (2, 8) and (2, 4)"),
        ({"x": np.array([{}], object)}, "not a readable .npz file"),
        ({"bbox": np.full((BOXES, 4), np.inf, np.float32)}, "bbox holds NaN or infinite values"),
    ],
)
def test_broken_npz_files_are_named(data, tmp_path, capsys, changes, message):
    folder = tmp_path / "npz"
    folder.mkdir()
    write_npz(folder, 11, 11, **changes)
    error = failure(capsys, data, folder)
    assert f"{folder / '11.npz'}: {message}" in error


def test_npz_that_lacks_a_key_or_is_no_zip_is_named(data, tmp_path, capsys):
    np.savez(tmp_path / "10.npz", x=np.zeros((BOXES, DIM), np.float32))
    assert "expected keys x, bbox, num_bbox, image_h, image_w" in failure(capsys, data, tmp_path / "10.npz")
    (tmp_path / "11.npz").write_bytes(b"half a download")
    assert "11.npz: not a readable .npz file" in failure(capsys, data, tmp_path / "11.npz")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "a\tb\tc\n",
            "line 1: 3 tab-separated columns, expected 6 (image_id image_w image_h num_boxes boxes features) or 10 (im",
        ),
        ("image_id\timage_w\timage_h\tnum_boxes\tboxes\tfeatures\n", "line 1: a header line"),
    ],
)
def test_files_of_another_format_are_refused(data, tmp_path, capsys, content, message):
    (tmp_path / "a.tsv").write_text(content)
    assert message in failure(capsys, data, tmp_path / "a.tsv")


def test_missing_source_ids_and_repeated_ids_are_named(data, tmp_path, capsys):
    assert "no such file or folder" in failure(capsys, data, tmp_path / "none.tsv")
    assert "the folder holds no .npz or .tsv file" in failure(capsys, data, data)
    source = write_lines(tmp_path / "a.tsv", [bua_row(10)])
    assert "no test_ids.txt" in failure(capsys, data, source, splits=["test"])
    (data / "precomp" / "train_ids.txt").write_text("12\n10\n12\n")
    assert "train_ids.txt: id 12 comes back after other ids" in failure(capsys, data, source)


def test_memory_stays_at_a_few_rows_whatever_the_length_of_the_source(data, tmp_path):
    dim, ids = 1024, range(1000, 1400)
    (data / "precomp" / "train_ids.txt").write_text("".join(f"{number}\n" for number in ids))
    features = encode(np.ones((BOXES, dim), "<f4"))
    source = write_lines(tmp_path / "a.tsv", [bua_row(number, features=features) for number in ids])
    assert source.stat().st_size > 6e6
    options = [
        "--data_path",
        str(data),
        "--data_name",
        "coco",
        "--split",
        "train",
        "--boxes",
        "3",
        "--img_dim",
        str(dim),
    ]
    tracemalloc.start()
    try:
        main(["regions", str(source), *options])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert load(data, "train_ims.npy").shape == (400, 3, dim)
    assert peak < 3e6
