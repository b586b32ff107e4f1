"""Released files of CLIP-based ESL: told by their keys, read strictly and safely, written again bit for bit."""

from __future__ import annotations

import ast
import pickle
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from lib.checkpoint import convert, load_model, read_checkpoint, save_checkpoint
from lib.checkpoint.loading import check_complete
from lib.core.config import ModelConfig
from lib.core.errors import InputError
from lib.core.fragments import Tokens
from lib.files.pytorch import AllConfig, read_file
from lib.model import build_model, complete
from tests.conftest import SHARED, needs_shared
from tests.helpers import CLIP_IMAGE, CLIP_TEXT

pytestmark = pytest.mark.usefixtures("single_thread")

CHANGES = {"projection_dim": 256, "num_hidden_layers": 2, "clip_output": "pooled"}
IMAGE, TEXT = CLIP_IMAGE | CHANGES, CLIP_TEXT | CHANGES | {"cut_end": True}


def small_config(kind: str = "h", **changes) -> ModelConfig:
    return complete(ModelConfig(f"esl_clip_{kind}", "clip", "clip", 256, {}, IMAGE | changes, TEXT | changes))


@pytest.fixture
def written(tmp_path):
    """Writes a small model in the released layout, after a change to the file's content; returns path and model."""

    def writer(kind: str = "h", change=lambda content: None) -> tuple[Path, torch.nn.Module]:
        model = build_model(small_config(kind))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.1)
        save_checkpoint(tmp_path / "ours.pth", model, epoch=3, settings={"margin": 0.3})
        convert(tmp_path / "ours.pth", tmp_path / "released.pth", "released_clip")
        content = read_file(tmp_path / "released.pth")
        change(content)
        torch.save(content | {"config": None}, tmp_path / "changed.pth")
        return tmp_path / "released.pth", model

    return writer


@pytest.mark.parametrize("kind", ["h", "a"])
def test_a_file_tells_what_it_is_and_keeps_every_bit_both_ways(kind, written, tmp_path):
    path, model = written(kind)
    checkpoint = read_checkpoint(path)
    assert checkpoint.config == small_config(kind) and checkpoint.origin == "released_clip" and checkpoint.epoch == 3
    label = f"CLIP-based ESL-{kind.upper()}"
    assert checkpoint.description == f"released {label}, CLIP images (pooled), CLIP, embed_size 256"
    found, expected = load_model(checkpoint).state_dict(), model.state_dict()
    assert found.keys() == expected.keys() and all(torch.equal(found[key], expected[key]) for key in expected)
    convert(path, tmp_path / "again.pth", "ours")
    convert(tmp_path / "again.pth", tmp_path / "third.pth", "released_clip")
    assert_same_files(path, tmp_path / "third.pth")


def test_the_settings_are_an_instance_of_the_original_codes_class(written, monkeypatch):
    path, _ = written()
    with zipfile.ZipFile(path) as archive:
        pickled = archive.read(next(name for name in archive.namelist() if name.endswith("data.pkl")))
    assert b"config.all_config" in pickled and b"lib.files.pytorch" not in pickled
    module = type(sys)("config.all_config")
    module.AllConfig = type("AllConfig", (), {"__module__": "config.all_config"})
    monkeypatch.setitem(sys.modules, "config", type(sys)("config"))
    monkeypatch.setitem(sys.modules, "config.all_config", module)
    content = torch.load(path, weights_only=False, pickle_module=pickle)  # as the original code does
    settings = content["config"]
    assert type(settings) is module.AllConfig
    assert (settings.embed_dim, settings.kernel_size, settings.input_res, settings.clip_arch) == (
        256,
        2,
        16,
        "ViT-B/16",
    )
    assert AllConfig.__module__ == "lib.files.pytorch"


def test_a_key_too_many_or_too_few_is_named(written, tmp_path):
    written(change=lambda content: content["state_dict"].update({"clip.visual.bias": torch.ones(2)}))
    with pytest.raises(InputError, match="1 left over .*visual.bias"):
        read_checkpoint(tmp_path / "changed.pth")
    name = "clip.transformer.resblocks.1.attn.in_proj_bias"
    written(change=lambda content: content["state_dict"].pop(name))
    with pytest.raises(InputError, match=f"3 keys missing .*state_dict: {name}"):
        load_model(read_checkpoint(tmp_path / "changed.pth"))
    written(change=lambda content: content["state_dict"].pop("clip.visual.conv1.weight"))
    with pytest.raises(InputError, match="visual.conv1.weight is missing"):
        read_checkpoint(tmp_path / "changed.pth")


def test_the_optimizer_is_left_alone(written, tmp_path):
    state = {0: {"step": 3, "exp_avg": torch.ones(2)}}
    written(change=lambda content: content.update(optimizer={"state": state, "param_groups": [{"params": [0]}]}))
    assert read_checkpoint(tmp_path / "changed.pth").optimizer is None


@pytest.mark.parametrize(
    ("config", "what"),
    [
        (small_config(clip_output="tokens"), "--clip_output tokens"),
        (ModelConfig("vse_infty", "clip", "clip", 256, {}, IMAGE, TEXT), "similarity.image_pool"),
    ],
)
def test_a_model_that_the_released_layout_has_not_is_refused(config, what, tmp_path):
    save_checkpoint(tmp_path / "ours.pth", build_model(config))
    with pytest.raises(InputError, match=f"the released layout has no place for .*{what}"):
        convert(tmp_path / "ours.pth", tmp_path / "released.pth", "released_clip")


def assert_same_files(first: Path, second: Path) -> None:
    a, b = read_file(first), read_file(second)
    assert a["epoch"] == b["epoch"] and vars(a["config"]) == vars(b["config"])
    a, b = a["state_dict"], b["state_dict"]
    assert set(a) == set(b) and all(a[key].dtype == b[key].dtype and torch.equal(a[key], b[key]) for key in a)


@needs_shared
@pytest.mark.parametrize("kind", ["h", "a"])
def test_the_released_checkpoints_give_their_features_and_scores(kind, tmp_path):
    source = SHARED / "golden" / f"clip_tiny_esl_{kind}.pth"
    checkpoint, expected = read_checkpoint(source), np.load(SHARED / "golden" / f"clip_tiny_esl_{kind}_io.npz")
    model = load_model(checkpoint).eval()
    captions = torch.from_numpy(expected["captions"])
    tokens = Tokens(captions, torch.full((len(captions),), captions.shape[1]))
    for dtype, suffix, tolerance in ((torch.float32, "", 1e-5), (torch.float64, "_f64", 1e-9)):
        model = model.to(dtype)
        images = torch.from_numpy(expected["images"]).to(dtype)
        with torch.no_grad():
            found = {
                "image_features": model.image_encoder(images).features[:, 0],
                "text_features": model.text_encoder(tokens).features[:, 0],
                "sims": model(images, tokens),
            }
        for name, value in found.items():
            reference = expected[f"{name}{suffix}"]
            error = np.abs(value.numpy() - reference).max() / np.abs(reference).max()
            assert error <= tolerance, (name, dtype, error)
    convert(source, tmp_path / "ours.pth", "ours")
    convert(tmp_path / "ours.pth", tmp_path / "again.pth", "released_clip")
    assert_same_files(source, tmp_path / "again.pth")


@needs_shared
@pytest.mark.parametrize("kind", ["h", "a"])
def test_full_size_key_lists_map_completely_both_ways(kind, tmp_path, repeating_tensors):
    state = {}
    for line in (SHARED / "golden" / f"keys_esl_clip_{kind}.txt").read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            key, shape, dtype = line.split("\t")
            state[key] = torch.zeros((), dtype=getattr(torch, dtype)).expand(ast.literal_eval(shape))
    assert len(state) == 331
    torch.save({"epoch": 1, "state_dict": state, "config": None}, tmp_path / "full.pth")
    checkpoint = read_checkpoint(tmp_path / "full.pth")
    check_complete(checkpoint)
    config = checkpoint.config
    assert config.embed_size == 512 and config.image_options["image_size"] == 224
    assert (config.image_options["num_attention_heads"], config.text_options["num_attention_heads"]) == (12, 8)
    convert(tmp_path / "full.pth", tmp_path / "again.pth", "released_clip")
    again = read_file(tmp_path / "again.pth")["state_dict"]
    assert {key: (x.shape, x.dtype) for key, x in state.items()} == {k: (x.shape, x.dtype) for k, x in again.items()}
