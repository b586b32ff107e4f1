"""Reading the official CxC files row by row: what is no such row is named with its line."""

from __future__ import annotations

import pytest

from lib.core.errors import InputError
from lib.evaluation.cxc.csv_files import RatedPair, read_pairs
from tests.evaluation.cxc.cxc_files import caption_name, image_name

IMAGE, OTHER, CAPTION = image_name(100), image_name(101), caption_name(11)
ROWS = {
    "sis": ["image1,image2,agg_score,sampling_method", f"{IMAGE},{OTHER},2.5,i2i_csim", f"{OTHER},{IMAGE},0,i2i_csim"],
    "sts": ["caption1,caption2,agg_score,sampling_method", f"{caption_name(2)},{CAPTION},5,c2c_isim"],
    "sits": ["caption,image,agg_score,sampling_method", f"{CAPTION},{IMAGE},4.75,c2i_original"],
}
PAIRS = {
    "sis": [RatedPair(100, 101, 2.5, "i2i_csim"), RatedPair(101, 100, 0.0, "i2i_csim")],
    "sts": [RatedPair(2, 11, 5.0, "c2c_isim")],
    "sits": [RatedPair(11, 100, 4.75, "c2i_original")],
}
BROKEN = {
    "short row": (f"{OTHER},{IMAGE},1.0", "line 3: 3 columns, expected 4"),
    "caption for image": (f"{IMAGE},{CAPTION},1.0,x", f"line 3: image2 is '{CAPTION}', expected something like COCO_"),
    "bare number": (f"{IMAGE},101,1.0,x", "line 3: image2 is '101', expected something like COCO_val2014_0000002058"),
    "no number": (f"{OTHER},{IMAGE},good,x", "line 3: agg_score is 'good', expected a number from 0 to 5"),
    "nan": (f"{OTHER},{IMAGE},nan,x", "line 3: agg_score is 'nan'"),
    "too low": (f"{OTHER},{IMAGE},-0.1,x", "line 3: agg_score is '-0.1'"),
    "too high": (f"{OTHER},{IMAGE},5.1,x", "line 3: agg_score is '5.1'"),
    "duplicate": (ROWS["sis"][1], f"line 3: {IMAGE} and {OTHER} were rated in line 2 already"),
    "quote": (f'"{IMAGE}', "line 4: not CSV text"),
}


@pytest.mark.parametrize("kind", ROWS)
@pytest.mark.parametrize(("mark", "end"), [("", "\n"), ("\ufeff", "\r\n"), ("", "\n\n")])
def test_ids_ratings_and_sampling_are_read_however_lines_end(tmp_path, kind, mark, end):
    path = tmp_path / "x.csv"
    path.write_text(mark + "".join(row + end for row in ROWS[kind]), encoding="utf-8", newline="")
    assert list(read_pairs(path, kind)) == PAIRS[kind]


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
    for text, found in (("\n".join(ROWS["sits"]), ROWS["sits"][0]), ("a,b\n", "a,b"), ("", "")):
        path.write_text(text)
        with pytest.raises(InputError, match=f"line 1: header is '{found}', expected image1,image2,agg_score,sampling"):
            list(read_pairs(path, "sis"))


def test_a_file_that_is_missing_or_no_text_is_named(tmp_path):
    with pytest.raises(InputError, match="x.csv: no such file, expected an official CxC CSV file"):
        list(read_pairs(tmp_path / "x.csv", "sis"))
    (tmp_path / "x.csv").write_bytes("\n".join(ROWS["sis"]).encode() + b"\n\xff\n")
    with pytest.raises(InputError, match="x.csv, line .*: not CSV text"):
        list(read_pairs(tmp_path / "x.csv", "sis"))
