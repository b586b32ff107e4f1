"""A file that stands for another one is named by every reader."""

from __future__ import annotations

import gzip
import io
import pickle

import numpy as np
import pytest
from PIL import Image

from lib.core.errors import InputError
from lib.files.images import read_image
from lib.files.npy import map_array
from lib.files.reading import read_ids, read_json, read_lines
from lib.files.word_vectors import read_word_vectors

STAND_INS = {
    "Git LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12\n",
    "xet pointer": b"# xet version 0\nfilesize = 3\n",
    "gzip": gzip.compress(b"a man\n"),
    "pickle": pickle.dumps({"word2idx": {"a": 1}}, 2),
    "web page": b"\n<!DOCTYPE HTML><html><title>Quota exceeded</title>",
}
READERS = [read_json, read_lines, read_ids, map_array, read_image, lambda path: read_word_vectors(path, {}, 2)]


def test_every_reader_names_a_file_that_stands_for_another(tmp_path):
    for name, content in STAND_INS.items():
        path = tmp_path / "file"
        path.write_bytes(content)
        for read in READERS:
            with pytest.raises(InputError, match=name) as error:
                read(path)
            assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_images_of_other_kinds_are_named_with_the_formats_that_are_read(tmp_path):
    gif = io.BytesIO()
    Image.new("RGB", (4, 4)).save(gif, "GIF")
    kinds = {
        "GIF": gif.getvalue(),
        "AVIF": b"\0\0\0\x20ftypavif\0\0\0\0",
        "HEIC": b"\0\0\0\x18ftypheic\0\0\0\0",
        "JPEG 2000": b"\0\0\0\x0cjP  \r\n\x87\n",
        "PSD": b"8BPS\0\1",
    }
    for kind, content in kinds.items():
        (tmp_path / "a.jpg").write_bytes(content)
        with pytest.raises(InputError, match=f"is {kind}; .*JPEG, PNG, BMP, TIFF, WEBP"):
            read_image(tmp_path / "a.jpg")


def test_texts_that_merely_mention_a_kind_are_read(tmp_path):
    lines = ["<person> holds a GIF", "# xet", "version 2", "html"]
    (tmp_path / "captions.txt").write_text("\n".join(lines))
    assert read_lines(tmp_path / "captions.txt") == lines
    np.save(tmp_path / "a.npy", np.arange(3))
    assert map_array(tmp_path / "a.npy").tolist() == [0, 1, 2]
