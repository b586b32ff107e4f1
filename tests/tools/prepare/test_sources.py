"""Published region features: which files are read, what each kind holds, and what is wrong with a broken one."""

from __future__ import annotations

import numpy as np
import pytest

from lib.core.errors import InputError
from lib.tools.prepare import sources
from lib.tools.prepare.sources import find_files, read_records
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


def read(path, file_format=None) -> dict:
    """Key → decoded regions of a file."""
    return {record.key: record.decode() for record in read_records(path, file_format, DIM)}


def failure(path, file_format=None) -> str:
    with pytest.raises(InputError) as caught:
        read(path, file_format)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- What is read -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["bua", "lxmert", "npz"])
def test_each_form_gives_the_size_of_the_image_its_boxes_and_its_features(tmp_path, form):
    if form == "npz":
        write_npz(tmp_path, 10, 10, count=5)
        path = tmp_path / "10.npz"
    else:
        row = bua_row(10, count=5) if form == "bua" else lxmert_row(10, 10, count=5)
        path = write_lines(tmp_path / "a.tsv", [row])
    regions, (boxes, features) = read(path)["10"], image(10, count=5)
    assert (regions.width, regions.height) == (WIDTH, HEIGHT)
    np.testing.assert_array_equal(regions.boxes, boxes)
    np.testing.assert_array_equal(regions.features, features)
    assert regions.boxes.dtype == regions.features.dtype == np.float32


def test_records_come_in_the_order_of_the_file_with_their_lines_and_blank_lines_are_skipped(tmp_path):
    rows = [bua_row(12), "", lxmert_row("COCO_val2014_000000000010", 10), ""]
    path = write_lines(tmp_path / "a.tsv", rows)
    records = list(read_records(path, None, DIM))
    assert [(record.key, record.where) for record in records] == [
        ("12", f"{path}, line 1"),
        ("COCO_val2014_000000000010", f"{path}, line 3"),
    ]
    assert [record.size for record in records] == [len(rows[0]) + 2, len(rows[2]) + 2]  # both with their \r\n


def test_a_record_that_nobody_wants_is_not_decoded(tmp_path):
    path = write_lines(tmp_path / "a.tsv", [bua_row(10, features="no base64"), bua_row(11)])
    first, second = read_records(path, None, DIM)
    np.testing.assert_array_equal(second.decode().features, image(11)[1])
    with pytest.raises(InputError, match="line 1: features is broken base64"):
        first.decode()


# --- Which files ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file_format", "names"),
    [(None, ["a.npz", "b.npz"]), ("npz", ["a.npz", "b.npz"]), ("bua-tsv", ["c.tsv", "c.tsv.0", "c.tsv.1"])],
)
def test_a_folder_stands_for_its_npz_files_or_else_its_tsv_files(tmp_path, file_format, names):
    for name in ("b.npz", "a.npz", "c.tsv.1", "c.tsv", "c.tsv.0", "readme.txt"):
        (tmp_path / name).touch()
    single = tmp_path / "readme.txt"
    assert find_files([single, tmp_path], file_format) == [single, *(tmp_path / name for name in names)]


@pytest.mark.parametrize(
    ("name", "file_format", "message"),
    [
        ("none.tsv", None, "none.tsv: no such file or folder; expected region features as .tsv or .npz"),
        ("", None, "the folder holds no .npz or .tsv file"),
        ("", "npz", "the folder holds no npz file"),
    ],
)
def test_a_path_without_region_features_is_named(tmp_path, name, file_format, message):
    with pytest.raises(InputError, match=message):
        find_files([tmp_path / name], file_format)


# --- What is broken ---------------------------------------------------------------------------------------------------

BROKEN = {
    "base64": (bua_row(11, features="@@@@"), "features is broken base64"),
    "cut base64": (bua_row(11)[:-3], "features is broken base64"),
    "short row": ("11\t640\t480\t3", "4 tab-separated columns, expected 6 (image_id image_w image_h num_boxes"),
    "feature size": (bua_row(11, features=encode(np.zeros((BOXES, 5), "<f4"))),
                     "features holds 60 bytes, expected 96 (3 boxes x 8 float32); --img_dim 5 if that is"),
    "box size": (bua_row(11, boxes=encode(np.zeros((BOXES, 3), "<f4"))),
                 "boxes holds 36 bytes, expected 48 (3 boxes x 4 float32)"),
    "count": (bua_row(11, num_boxes="many"), "num_boxes is 'many', expected a whole number above 0"),
    "no boxes": (bua_row(11, count=0), "num_boxes is '0', expected a whole number above 0"),
    "no width": (lxmert_row(11, 11, img_w="-1"), "img_w is '-1', expected a whole number above 0"),
    "NaN": (bua_row(11, features=encode(np.full((BOXES, DIM), np.nan, "<f4"))), "features holds NaN or inf"),
    "infinite box": (lxmert_row(11, 11, boxes=encode(np.full((BOXES, 4), np.inf, "<f4"))), "boxes holds NaN or inf"),
    "header": ("image_id\timage_w\timage_h\tnum_boxes\tboxes\tfeatures", "a header line"),
    "another format": ("a\tb\tc",
                       "3 tab-separated columns, expected 6 (image_id image_w image_h num_boxes boxes features) or 10"),
}  # fmt: skip


def test_broken_rows_are_named_with_file_and_line(tmp_path):
    path = tmp_path / "a.tsv"
    for row, message in BROKEN.values():
        write_lines(path, [bua_row(10), row, bua_row(12)])
        assert failure(path).startswith(f"{path}, line 2: {message}")


def test_a_tsv_of_another_kind_an_empty_one_and_one_that_is_no_text_are_named(tmp_path, monkeypatch):
    path = write_lines(tmp_path / "a.tsv", [bua_row(10)])
    assert f"{path}, line 1: 6 tab-separated columns, expected 10 (img_id img_h img_w" in failure(path, "lxmert-tsv")
    path.write_bytes(b"")
    assert failure(path).startswith(f"{path}: is empty")
    monkeypatch.setattr(sources, "LONGEST_LINE", 16)
    path.write_bytes(b"\x00" * 20)
    assert failure(path).startswith(f"{path}, line 1: too long")
    assert "b.tsv: no such file" in failure(tmp_path / "b.tsv")


def test_broken_npz_files_are_named(tmp_path):
    path = tmp_path / "11.npz"
    for changes, message in (
        ({"x": np.zeros((BOXES, 5), np.float32)}, "x is (3, 5) and bbox (3, 4), expected (3, 8) and (3, 4)"),
        ({"num_bbox": 2}, "x is (3, 8) and bbox (3, 4), expected (2, 8) and (2, 4)"),
        ({"x": np.array([{}], object)}, "x: "),
        ({"bbox": np.full((BOXES, 4), np.inf, np.float32)}, "bbox holds NaN or infinite values"),
    ):
        write_npz(tmp_path, 11, 11, **changes)
        assert failure(path).startswith(f"{path}: {message}")
    np.savez(path, x=np.zeros((BOXES, DIM), np.float32))
    assert "x, bbox, num_bbox, image_h, image_w" in failure(path)
    path.write_bytes(b"half a download")
    assert failure(path).startswith(f"{path}: ")
