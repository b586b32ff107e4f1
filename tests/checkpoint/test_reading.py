"""A folder stands for the only checkpoint in it."""

from __future__ import annotations

import pytest

from lib.checkpoint import read_checkpoint, save_checkpoint
from lib.checkpoint.reading import checkpoint_file
from tests.attack.refusals import refuses
from tests.checkpoint.released.layouts import assert_same_tensors, small_model


@pytest.mark.parametrize("name", ["model_best.pth", "weights.pth.tar", "pytorch_model.bin"])
def test_the_only_checkpoint_of_a_folder_is_read(name, tmp_path):
    save_checkpoint(tmp_path / name, small_model("vse_infty"))
    for other in ("README.md", "config.json", "vocab.txt", ".gitattributes"):
        (tmp_path / other).write_text("text")
    (tmp_path / "logs.pth").mkdir()
    assert checkpoint_file(tmp_path) == tmp_path / name
    checkpoint = read_checkpoint(tmp_path)
    assert checkpoint.path == tmp_path / name
    assert_same_tensors(checkpoint.model, small_model("vse_infty").state_dict())


def test_a_folder_of_several_checkpoints_or_none_says_what_is_there(tmp_path):
    refuses(lambda: read_checkpoint(tmp_path), str(tmp_path), "is a folder and holds no file that ends in .pth, .pt")
    for name in ("model_best.pth", "checkpoint.pth"):
        (tmp_path / name).write_bytes(b"")
    refuses(lambda: read_checkpoint(tmp_path), "is a folder and holds checkpoint.pth, model_best.pth; name one file")


def test_a_file_is_itself(tmp_path):
    assert checkpoint_file(tmp_path / "any.name") == tmp_path / "any.name"
