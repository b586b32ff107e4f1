"""Text files of the layout: written whole, never in place of something else unasked, one caption a line."""

from __future__ import annotations

import json

import pytest

from lib.core.errors import InputError
from lib.tools.prepare.outputs import Image, Target, as_json, as_lines, one_line

IMAGES = [Image(7, "a/7.jpg", ["A dog .", "Two dogs ."], [70, 71]), Image(3, "3.jpg", ["A café ."], [30])]


@pytest.fixture
def target(tmp_path) -> Target:
    return Target(tmp_path / "coco", "coco")


def texts(folder) -> dict[str, str]:
    return {path.name: path.read_bytes().decode() for path in folder.rglob("*") if path.is_file()}


def test_a_split_is_written_with_one_line_per_caption_in_every_file(target):
    target.write_splits(IMAGES, {"train": IMAGES[1:], "testall": IMAGES})
    assert json.loads((target.data_path / "id_mapping.json").read_text()) == {"7": "a/7.jpg", "3": "3.jpg"}
    assert texts(target.data_path / "precomp") == {
        "train_caps.txt": "A café .\n",
        "train_ids.txt": "3\n",
        "testall_caps.txt": "A dog .\nTwo dogs .\nA café .\n",
        "testall_ids.txt": "7\n7\n3\n",
        "testall_capids.txt": "70\n71\n30\n",
    }


def test_texts_go_where_captions_and_features_lie_already(target):
    assert target.precomp == target.data_path / "precomp"
    (target.data_path / "coco_precomp").mkdir(parents=True)
    assert target.precomp == target.data_path / "coco_precomp"


def test_what_is_there_with_the_same_text_is_left_alone(target, capsys):
    files = {target.data_path / name: f"{name}\n" for name in ("a", "b")}
    assert target.write(files) == list(files)
    before = (target.data_path / "a").stat().st_mtime_ns
    (target.data_path / "b").unlink()
    assert target.write(files) == [target.data_path / "b"]
    assert (target.data_path / "a").stat().st_mtime_ns == before
    assert "wrote 1 files under" in (out := capsys.readouterr().out) and "1 held the same already" in out


def test_nothing_is_written_when_one_file_holds_something_else_unless_overwrite_is_said(target):
    target.data_path.mkdir()
    (target.data_path / "b").write_bytes(b"x\r\n")  # the same text with other ends of lines is another file
    files = {target.data_path / name: "x\n" for name in ("a", "b")}
    with pytest.raises(InputError, match=f"^{target.data_path / 'b'}: there already with other content; --overwrite"):
        target.write(files)
    assert texts(target.data_path) == {"b": "x\r\n"}
    Target(target.data_path, "coco", overwrite=True).write(files)
    assert texts(target.data_path) == {"a": "x\n", "b": "x\n"}


def test_features_of_a_split_whose_ids_changed_are_warned_about(target, capsys):
    target.precomp.mkdir(parents=True)
    (target.precomp / "train_ims.npy").touch()
    target.write_splits(IMAGES, {"train": IMAGES, "dev": IMAGES})
    assert capsys.readouterr().out.count("warning: ") == 1
    target.write_splits(IMAGES, {"train": IMAGES, "dev": IMAGES})
    assert "warning" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("  two\nlines,\t a\r\n", "two lines, a"),
        ("null\x00 delete\x7f next\x85line\x0b", "null delete next line"),
        ("line\u2028and\u2029paragraph\ufeff", "line and paragraph"),
        ("“Café”\u00a0– 犬", "“Café” – 犬"),
        (" \n ", ""),
    ],
)
def test_text_becomes_one_line_without_control_characters(text, line):
    assert one_line(text) == line


def test_json_has_one_key_a_line_and_letters_as_they_are():
    mapping = {7: "café", 3: ["a", {"b": None}], "x": 'a "b"'}
    text = as_json(mapping)
    assert json.loads(text) == {str(key): value for key, value in mapping.items()}
    assert len(text.splitlines()) == 3 and "café" in text
    assert as_json({}) == "{}\n" and as_lines([]) == ""
