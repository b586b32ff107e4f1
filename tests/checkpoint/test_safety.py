"""Checkpoints are files of unknown origin: what is none is refused in one line, and nothing in it runs."""

from __future__ import annotations

import pytest
import torch

from lib.checkpoint import load_model, read_checkpoint
from tests.checkpoint.released.layouts import assert_same_tensors, released_content
from tests.files.test_pytorch import Network, WritesToDisk
from tests.files.test_pytorch import refusal as refusal_of


def refusal(path) -> str:
    return refusal_of(path, read_checkpoint)


@pytest.mark.parametrize("legacy", [False, True])
def test_settings_of_a_released_file_that_would_write_to_disk_are_refused(legacy, tmp_path):
    content = released_content("vse_infty")
    content["opt"].resume = WritesToDisk(tmp_path / "ran")
    torch.save(content, tmp_path / "a.pth", _use_new_zipfile_serialization=not legacy)
    text = refusal(tmp_path / "a.pth")
    assert "posix.mkdir" in text and "could run code" in text
    assert not (tmp_path / "ran").exists()


def test_a_whole_pickled_network_is_refused(tmp_path):
    torch.save(Network(), tmp_path / "a.pth")
    assert "Network" in refusal(tmp_path / "a.pth")
    torch.save({"format": "esl-checkpoint", "version": 2, "model": Network()}, tmp_path / "b.pth")
    assert "Network" in refusal(tmp_path / "b.pth")


def test_a_released_file_that_is_cut_off_is_refused(tmp_path):
    torch.save(released_content("vse_infty"), tmp_path / "a.pth")
    data = (tmp_path / "a.pth").read_bytes()
    for keep in (len(data) // 2, len(data) - 1):
        (tmp_path / "cut.pth").write_bytes(data[:keep])
        assert "truncated or damaged" in refusal(tmp_path / "cut.pth")


def test_files_of_other_projects_are_named_by_what_they_hold(tmp_path):
    path = tmp_path / "a.pth"
    for content, expected in (
        (torch.nn.Linear(2, 2).state_dict(), "weight, bias"),
        ({"state_dict": Network().state_dict(), "epoch": 3}, "state_dict, epoch"),
        ({}, "nothing"),
        ([1, 2], "a list"),
        (torch.zeros(3), "a Tensor"),
        ({"model": [{"a": torch.zeros(1)}, {"b": torch.zeros(1)}]}, "neither ESL-H, ESL-A nor VSE∞"),
        ({"model": [1, 2]}, "expected a dict of tensors"),
        ({"model": {"a": torch.zeros(1)}}, "expected a checkpoint of this code"),
    ):
        torch.save(content, path)
        assert expected in refusal(path)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("name", ["model_best.pth.tar", "model_best.tar", "weights"])
def test_any_name_and_both_serialisations_load(legacy, name, tmp_path):
    content = released_content("esl_h")
    torch.save(content, tmp_path / name, _use_new_zipfile_serialization=not legacy)
    torch.save(content, tmp_path / "plain.pth")
    expected = read_checkpoint(tmp_path / "plain.pth")
    assert_same_tensors(load_model(read_checkpoint(tmp_path / name)).state_dict(), expected.model)
