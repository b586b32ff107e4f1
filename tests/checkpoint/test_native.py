"""Our format holds a model and its training, and whatever a file of it lacks or has too much is said in one line."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch

from lib.checkpoint import load_for, load_model, read_checkpoint, save_checkpoint
from lib.checkpoint.native import sealed
from lib.core.errors import InputError
from tests.checkpoint.released.layouts import BERT, IMG_DIM, KINDS, assert_same_tensors, small_model


@pytest.fixture(scope="module")
def content(tmp_path_factory) -> dict:
    """What a checkpoint of a small model holds."""
    path = tmp_path_factory.mktemp("ours") / "checkpoint.pth"
    save_checkpoint(path, small_model("vse_infty"), epoch=3)
    return torch.load(path, weights_only=True)


@pytest.fixture
def saved(content, tmp_path):
    """Writes a checkpoint of a small model after a change to its content; returns its path."""

    def alter(change):
        altered = copy.deepcopy(content)
        change(altered)
        torch.save(sealed(altered), tmp_path / "checkpoint.pth")
        return tmp_path / "checkpoint.pth"

    return alter


def refusal(path, function=read_checkpoint) -> str:
    """The message with which a file is refused, without its path in front."""
    with pytest.raises(InputError) as caught:
        function(path)
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)
    return str(caught.value).removeprefix(f"{path}: ")


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_model_loads_with_the_same_weights_and_configuration(kind, tmp_path):
    model = small_model(kind)
    save_checkpoint(tmp_path / "a.pth", model, epoch=4, step=99, best_rsum=420.5)
    checkpoint = read_checkpoint(tmp_path / "a.pth")
    loaded = load_model(checkpoint)
    assert loaded.config == model.config
    assert_same_tensors(loaded.state_dict(), model.state_dict())
    assert (checkpoint.epoch, checkpoint.step, checkpoint.best_rsum) == (4, 99, 420.5)
    assert checkpoint.origin == "ours" and checkpoint.optimizer is None and checkpoint.extras == {}


def test_the_file_is_one_dict_that_weights_only_accepts(tmp_path):
    settings = {
        "data_path": Path("data/f30k"),
        "lr": np.float64(5e-4),
        "steps": np.int64(3),
        "device": torch.device("cpu"),
    }
    extras, criterion = {"img_enc.mlp.bns.1.weight": torch.ones(16)}, {"scale": torch.nn.Parameter(torch.ones(2))}
    state = {"settings": settings, "extras": extras, "criterion": criterion}
    save_checkpoint(tmp_path / "a.pth", small_model("vse_infty"), **state)
    content = torch.load(tmp_path / "a.pth", weights_only=True)
    assert content["format"] == "esl-checkpoint" and content["version"] == 4
    assert content["config"] == {
        "similarity": "vse_infty", "image_encoder": "regions", "text_encoder": "bert", "embed_size": 16,
        "similarity_options": {"no_imgnorm": False, "no_txtnorm": False}, "image_options": {"img_dim": IMG_DIM},
        "text_options": BERT,
    }  # fmt: skip
    assert content["settings"] == {"data_path": "data/f30k", "lr": 5e-4, "steps": 3, "device": "cpu"}
    assert type(content["settings"]["lr"]) is float and type(content["settings"]["steps"]) is int
    assert_same_tensors(content["extras"], extras)
    checkpoint = read_checkpoint(tmp_path / "a.pth")
    assert_same_tensors(checkpoint.extras, extras)
    assert_same_tensors(checkpoint.criterion, criterion)


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
    resumed = load_for(model.config, checkpoint)
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
        text = refusal(path, lambda path: save_checkpoint(path, small_model("vse_infty"), epoch=2))
    assert "disk full" in text
    assert read_checkpoint(path).epoch == 1
    assert [file.name for file in tmp_path.iterdir()] == ["a.pth"]


@pytest.mark.parametrize("version", [5, 1000, None, "4", 4.0])
def test_a_version_that_is_not_known_is_a_reason_to_update(version, saved):
    path = saved(lambda content: content.update(version=version))
    assert refusal(path) == f"its format is of version {version}, expected 4; update this code"


@pytest.mark.parametrize("version", [-1, 0, 1, 2, 3, True])
def test_a_version_before_the_first_released_one_is_named(version, saved):
    text = refusal(saved(lambda content: content.update(version=version)))
    assert f"version {version}," in text and "version 4 is the first" in text


@pytest.mark.parametrize(
    "name",
    ["config", "model", "optimizer", "criterion", "epoch", "step", "best_rsum", "best_step", "position", "settings",
     "extras", "chosen_on"],
)  # fmt: skip
def test_an_entry_that_is_missing_or_of_a_wrong_type_is_named_and_no_other(name, saved):
    expected = f"{name} missing or of a wrong type; the file was altered, save it again"
    assert refusal(saved(lambda content: content.pop(name))) == expected
    assert refusal(saved(lambda content: content.update({name: {1} if name == "chosen_on" else "text"}))) == expected


def test_all_entries_that_are_missing_are_named(saved):
    def change(content):
        del content["settings"], content["epoch"]
        content["config"] = [1]

    assert refusal(saved(change)).startswith("config, epoch, settings missing or of a wrong type; ")


def test_an_entry_of_the_configuration_that_no_model_has_is_named_as_such(saved):
    for name in ("precomp_enc_type", "shape"):
        path = saved(lambda content: content["config"].update({name: "round"}))  # noqa: B023
        assert refusal(path) == f"its configuration has entries of no model ({name}); the file was altered"
    path = saved(lambda content: content["config"].update({"a\nb": 1, 7: 2}))
    assert refusal(path) == "its configuration has entries of no model (7, a?b); the file was altered"


def test_a_configuration_with_nonsense_is_one_clear_error(saved):
    for change, message in (
        ({"embed_size": "wide"}, "embed_size of its configuration is wide; the file was altered"),
        ({"embed_size": True}, "embed_size of its configuration is True; the file was altered"),
        ({"similarity": ["esl_a"]}, "similarity of its configuration is ['esl_a']; the file was altered"),
        ({"text_options": None}, "text_options of its configuration is None; the file was altered"),
        ({"similarity": "esl_b"}, "--similarity is 'esl_b', expected one of esl_a, esl_h, vse_infty"),
        ({"image_encoder": "basic"}, "--image_encoder is 'basic', expected one of regions, grid"),
        ({"embed_size": 1}, "--embed_size is 1, expected a whole number from 2 to 65536"),
        ({"image_options": {"img_dim": 0}}, "--img_dim is 0, expected a whole number from 1"),
        ({"image_options": {"img_dim": "wide"}}, "--img_dim is wide, expected a whole number from 1"),
        ({"similarity": "esl_a"}, "--embed_size is 16, but an ESL head with --kernel_size 2 needs at least 256 "),
    ):
        path = saved(lambda content: content["config"].update(change))  # noqa: B023
        assert refusal(path).startswith(message)
    for factor in (float("nan"), float("inf"), -1.0, "wide"):
        grid = {"image_encoder": "grid", "image_options": {"backbone_source": "tiny", "input_scale_factor": factor}}
        path = saved(lambda content: content["config"].update(grid))  # noqa: B023
        assert refusal(path).startswith(f"--input_scale_factor is {factor}, expected a finite number ")


def test_weights_that_are_no_tensors_are_named(saved):
    path = saved(lambda content: content["model"].update({"text_encoder.linear.bias": [1.0]}))
    assert refusal(path) == (
        "model holds 'text_encoder.linear.bias', which is no ordinary tensor; expected a state dict"
    )
    for name in ("extras", "criterion"):
        path = saved(lambda content: content[name].update(a=3))  # noqa: B023
        assert refusal(path) == f"{name} holds 'a', which is no ordinary tensor; expected a state dict"
