"""Reading the official CxC files row by row: what is no such row is named with its line."""

from __future__ import annotations

import pytest

from lib.errors import InputError
from lib.evaluation.cxc_csv import read_pairs
from tests.evaluation.cxc_files import caption_name, image_name

ROWS = {
    "sis": [
        "image1,image2,agg_score,sampling_method",
        f"{image_name(100)},{image_name(101)},2.5,i2i_csim",
        f"{image_name(101)},{image_name(100)},2.4,i2i_csim",
    ],
    "sts": ["caption1,caption2,agg_score,sampling_method", f"{caption_name(1)},{caption_name(11)},3.0,c2c_isim"],
    "sits": ["caption,image,agg_score,sampling_method", f"{caption_name(1)},{image_name(100)},4.75,c2i_original"],
}
BROKEN = {
    "short row": (f"{image_name(1)},{image_name(2)},1.0", "line 3: 3 columns, expected 4"),
    "bad id": (
        f"{image_name(1)},{caption_name(2)},1.0,x",
        "line 3: image2 is 'COCO_val2014:sentid:2', expected",
    ),
    "bad score": (
        f"{image_name(1)},{image_name(2)},no,x",
        "line 3: agg_score is 'no', expected a number from 0 to 5",
    ),
    "nan": (f"{image_name(1)},{image_name(2)},nan,x", "line 3: agg_score is 'nan'"),
    "too high": (f"{image_name(1)},{image_name(2)},5.1,x", "line 3: agg_score is '5.1'"),
    "duplicate": (ROWS["sis"][1], f"line 3: {image_name(100)} and {image_name(101)} were rated in line 2 already"),
    "quote": (f'"{image_name(1)}', "line 4: not CSV text"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_csv_rows_are_named_with_their_line(tmp_path, case):
    row, message = BROKEN[case]
    path = tmp_path / "sis_test.csv"
    path.write_text("\n".join([*ROWS["sis"][:2], row]) + "\n")
    with pytest.raises(InputError) as caught:
        list(read_pairs(path, "sis"))
    assert str(caught.value).startswith(f"{path}, {message}")


def test_the_header_must_be_that_of_the_kind(tmp_path):
    path = tmp_path / "x.csv"
    for kind, rows in ROWS.items():
        path.write_text("\r\n".join(rows) + "\r\n")
        assert len(list(read_pairs(path, kind))) == len(rows) - 1
    with pytest.raises(InputError, match="line 1: header is 'caption,image,.*, expected image1,image2,agg_score"):
        list(read_pairs(path, "sis"))
    path.write_text("a,b\n")
    with pytest.raises(InputError, match="line 1: header is 'a,b', expected caption,image"):
        list(read_pairs(path, "sits"))
