"""A checkpoint as safetensors: any program reads the weights, and this one the whole model."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lib.checkpoint import convert, load_model, read_checkpoint, save_checkpoint
from lib.checkpoint.native import FORMAT
from tests.attack.refusals import refuses
from tests.checkpoint.released.layouts import KINDS, assert_same_tensors, small_model


@pytest.fixture
def exported(tmp_path):
    save_checkpoint(tmp_path / "ours.pth", small_model("vse_infty"), epoch=3, best_rsum=400.5, chosen_on="dev",
                    settings={"margin": 0.2, "pair": (1, 2)}, extras={"img_enc.unused": torch.ones(2)})  # fmt: skip
    convert(tmp_path / "ours.pth", tmp_path / "a.safetensors", "safetensors")
    return tmp_path / "a.safetensors"


def metadata(path) -> dict:
    with safe_open(path, "pt") as file:
        return file.metadata()


@pytest.mark.parametrize("kind", KINDS)
def test_every_model_comes_back_bit_for_bit(kind, tmp_path):
    save_checkpoint(tmp_path / "ours.pth", small_model(kind))
    convert(tmp_path / "ours.pth", tmp_path / "a.safetensors", "safetensors")
    convert(tmp_path / "a.safetensors", tmp_path / "again.pth", "ours")
    expected = small_model(kind)
    for path in ("a.safetensors", "again.pth"):
        loaded = load_model(read_checkpoint(tmp_path / path))
        assert loaded.config == expected.config
        assert_same_tensors(loaded.state_dict(), expected.state_dict())


def test_other_programs_find_the_weights_under_our_names_and_the_configuration_as_json(exported):
    assert_same_tensors(load_file(exported), small_model("vse_infty").state_dict())
    assert metadata(exported)["format"] == "pt"
    said = json.loads(metadata(exported)[FORMAT])
    assert said["config"]["similarity"] == "vse_infty" and said["config"]["embed_size"] == 16


def test_what_is_known_of_the_model_is_kept_and_the_state_of_its_training_is_not(exported):
    checkpoint = read_checkpoint(exported)
    assert (checkpoint.epoch, checkpoint.best_rsum, checkpoint.chosen_on) == (3, 400.5, "dev")
    assert checkpoint.settings == {"margin": 0.2, "pair": [1, 2]}
    assert checkpoint.optimizer is None and checkpoint.extras == {} and checkpoint.position == {}


def test_any_change_is_noticed(exported):
    weights, texts = load_file(exported), metadata(exported)
    name = "text_encoder.linear.bias"
    save_file(weights | {name: weights[name] + 1}, exported, texts)
    refuses(lambda: read_checkpoint(exported), f"not as it was written (model.{name})")
    save_file(weights, exported, texts | {FORMAT: texts[FORMAT].replace("400.5", "500.5")})
    refuses(lambda: read_checkpoint(exported), "not as it was written (the values beside the tensors)")
    for damaged in ("{", "[]", "[" * 100_000, "{}", "9" * 5000, "null"):
        save_file(weights, exported, texts | {FORMAT: damaged})
        refuses(lambda: read_checkpoint(exported), "its metadata is damaged")


def test_weights_without_a_configuration_are_no_checkpoint(exported):
    save_file(load_file(exported), exported, {"format": "pt"})
    refuses(lambda: read_checkpoint(exported), "expected a checkpoint")
