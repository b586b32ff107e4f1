from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from lib.checkpoint import load_into, load_model, read_checkpoint, save_checkpoint
from lib.errors import InputError
from tests.checkpoint.layouts import KINDS, assert_same_tensors, small_model


@pytest.fixture
def saved(tmp_path):
    """A checkpoint of a small ESL-A model, and how to save it again after altering its content."""
    path = tmp_path / "checkpoint.pth"
    save_checkpoint(path, small_model("esl_a"), epoch=3)

    def alter(change):
        content = torch.load(path, weights_only=True)
        change(content)
        torch.save(content, path)
        return path

    return alter


def message(function, *args) -> str:
    with pytest.raises(InputError) as caught:
        function(*args)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_model_loads_with_the_same_weights_and_configuration(kind, tmp_path):
    model = small_model(kind)
    save_checkpoint(tmp_path / "a.pth", model, epoch=4, step=99, best_rsum=420.5)
    checkpoint = read_checkpoint(tmp_path / "a.pth")
    loaded = load_model(checkpoint)
    assert loaded.config == model.config
    assert_same_tensors(loaded.state_dict(), model.state_dict())
    assert (checkpoint.epoch, checkpoint.step, checkpoint.best_rsum) == (4, 99, 420.5)
    assert checkpoint.origin == "ours" and checkpoint.optimizer is None


def test_the_file_is_one_dict_that_weights_only_accepts(tmp_path):
    settings = {
        "data_path": Path("data/f30k"),
        "lr": np.float64(5e-4),
        "steps": np.int64(3),
        "device": torch.device("cpu"),
    }
    save_checkpoint(tmp_path / "a.pth", small_model("vse_infty"), settings=settings)
    content = torch.load(tmp_path / "a.pth", weights_only=True)
    assert content["format"] == "esl-checkpoint" and content["version"] == 1
    assert content["settings"] == {"data_path": "data/f30k", "lr": 5e-4, "steps": 3, "device": "cpu"}
    assert type(content["settings"]["lr"]) is float and type(content["settings"]["steps"]) is int


def test_an_optimizer_goes_on_from_the_file_as_if_it_had_never_stopped(tmp_path):
    def step(model, optimizer):
        optimizer.zero_grad()
        sum((p.float() ** 2).sum() for p in model.similarity.parameters()).backward()
        optimizer.step()

    model = small_model("vse_infty")
    optimizer = torch.optim.AdamW(model.similarity.parameters(), lr=1e-2)
    step(model, optimizer)
    save_checkpoint(tmp_path / "a.pth", model, optimizer=optimizer)
    checkpoint = read_checkpoint(tmp_path / "a.pth")
    resumed = small_model("vse_infty", seed=1)
    load_into(resumed, checkpoint)
    again = torch.optim.AdamW(resumed.similarity.parameters(), lr=1e-2)
    again.load_state_dict(checkpoint.optimizer)
    step(model, optimizer)
    step(resumed, again)
    assert_same_tensors(resumed.state_dict(), model.state_dict())


def test_a_failed_write_leaves_the_old_file_whole(tmp_path, monkeypatch):
    path = tmp_path / "a.pth"
    save_checkpoint(path, small_model("vse_infty"), epoch=1)

    def half_written(content, file):
        Path(file).write_bytes(b"half")
        raise RuntimeError("PytorchStreamWriter failed writing file data/1: file write failed")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", half_written)
        text = message(lambda: save_checkpoint(path, small_model("vse_infty"), epoch=2))
    assert str(path) in text and "disk full" in text
    assert read_checkpoint(path).epoch == 1
    assert [file.name for file in tmp_path.iterdir()] == ["a.pth"]


def test_missing_left_over_and_misshapen_weights_are_named(saved):
    def change(content):
        weights = content["model"]
        del weights["text_encoder.linear.bias"]
        weights["mystery.weight"] = torch.zeros(2)
        weights["image_encoder.fc.weight"] = torch.zeros(3, 5)

    text = message(load_model, read_checkpoint(saved(change)))
    assert "1 key missing (text_encoder.linear.bias)" in text
    assert "1 key left over (mystery.weight)" in text
    assert "1 key of another shape (image_encoder.fc.weight (3, 5), expected (256, 24))" in text


def test_a_model_is_not_touched_when_the_weights_do_not_fit(saved):
    path = saved(lambda content: content["model"].pop("similarity.log_scale"))
    model = small_model("esl_a", seed=1)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    assert "similarity.log_scale" in message(load_into, model, read_checkpoint(path))
    assert_same_tensors(model.state_dict(), before)


def test_resuming_with_another_head_or_size_says_what_was_saved_and_what_was_asked_for(saved):
    checkpoint = read_checkpoint(saved(lambda content: None))
    text = message(load_into, small_model("esl_h"), checkpoint)
    assert "holds esl_a with embed_size 256, but --similarity esl_h with embed_size 256 was asked for" in text
    text = message(load_into, small_model("vse_infty"), checkpoint)
    assert "holds esl_a with embed_size 256, but --similarity vse_infty with embed_size 16" in text
    model = small_model("esl_a")
    for change in ({"no_imgnorm": True}, {"bert": {**model.config.bert, "num_attention_heads": 2}}):
        model.config = dataclasses.replace(small_model("esl_a").config, **change)
        text = message(load_into, model, checkpoint)
        assert "no_imgnorm True" in text or "BERT num_attention_heads 2" in text


def test_resuming_the_same_network_fills_it(saved):
    model = small_model("esl_a", seed=1)
    load_into(model, read_checkpoint(saved(lambda content: None)))
    assert_same_tensors(model.state_dict(), small_model("esl_a").state_dict())


def test_files_of_a_newer_version_or_with_missing_entries_are_refused(saved):
    assert "version 2" in message(read_checkpoint, saved(lambda content: content.update(version=2)))
    assert "newer version" in message(
        read_checkpoint, saved(lambda content: (content.update(version=1), content["config"].update(shape="round")))
    )
    assert "settings, " not in message(read_checkpoint, saved(lambda content: content.pop("epoch")))
    assert "epoch, settings missing" in message(read_checkpoint, saved(lambda content: content.pop("settings")))
    assert "config, epoch" in message(read_checkpoint, saved(lambda content: content.update(config=[1])))


def test_a_configuration_with_nonsense_is_one_clear_error(saved):
    path = saved(lambda content: content["config"].update(embed_size="wide"))
    assert str(path) in message(read_checkpoint, path)
    path = saved(lambda content: content["config"].update(embed_size=256, bert={"hidden_size": 63}))
    assert "gives no network" in message(load_model, read_checkpoint(path))
