"""Released VSE∞ BiGRU files: told by their word vectors, read strictly, written again bit for bit."""

from __future__ import annotations

import argparse
import ast
import json
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch

from lib.checkpoint import convert, load_model, read_checkpoint, save_checkpoint
from lib.checkpoint.loading import check_complete
from lib.checkpoint.released.vse import TWINS
from lib.core.config import ModelConfig
from lib.core.errors import InputError
from lib.core.fragments import Fragments, Tokens
from lib.datasets.captions import TokenisedCaptions
from lib.files.pytorch import read_file
from lib.inference.input_spec import input_spec
from lib.model import build_model
from tests.conftest import SHARED, needs_shared

pytestmark = pytest.mark.usefixtures("single_thread")

TEXT = {"vocab_size": 30, "word_dim": 6, "num_layers": 1}
KINDS = ("region", "grid")


def small_config(kind: str, similarity: str = "vse_infty", embed_size: int = 16) -> ModelConfig:
    images = {"img_dim": 12} if kind == "region" else {"backbone_source": "tiny", "input_scale_factor": 1.0}
    encoder = "regions" if kind == "region" else "grid"
    norms = {"no_imgnorm": False, "no_txtnorm": False}
    return ModelConfig(similarity, encoder, "bigru", embed_size, norms, images, dict(TEXT))


def small_model(kind: str, **changes):
    model = build_model(small_config(kind, **changes))
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.copy_(torch.rand(tensor.shape) + 0.1 if tensor.is_floating_point() else torch.tensor(7))
    return model.eval()


def gru_names(name: str) -> list[str]:
    parts = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    return [f"{name}.{part}_l0{direction}" for direction in ("", "_reverse") for part in parts]


TEXT_KEYS = {"embed.weight", *gru_names("rnn"), *gru_names("gpool.gru"), "gpool.linear.weight"}


@pytest.fixture
def written(tmp_path):
    """Writes a small model in the released layout, after a change to the file's content; returns path and model."""

    def writer(kind: str, change=lambda content: None) -> tuple[Path, torch.nn.Module]:
        model = small_model(kind)
        save_checkpoint(
            tmp_path / "ours.pth", model, epoch=3, best_rsum=99.5, settings={"margin": 0.3, "vocab_path": None}
        )
        convert(tmp_path / "ours.pth", tmp_path / "released.pth", "released_bigru")
        content = read_file(tmp_path / "released.pth")
        change(content)
        torch.save(content, tmp_path / "released.pth")
        return tmp_path / "released.pth", model

    return writer


@pytest.mark.parametrize("kind", KINDS)
def test_keys_are_those_of_the_branch_with_module_in_grid_files_alone(kind, written):
    path, _ = written(kind)
    content = read_file(path)
    image, text = content["model"]
    prefix = "module." if kind == "grid" else ""
    assert set(text) == {f"{prefix}{key}" for key in TEXT_KEYS}
    assert all(key.startswith(prefix) for key in image) and ("fc.weight" in image) == (kind == "region")
    pool = "image_encoder.gpool" if kind == "grid" else "gpool"
    assert {f"{prefix}{key}" for key in (*gru_names(f"{pool}.gru"), f"{pool}.linear.weight")} <= set(image)
    if kind == "grid":
        assert image["module.backbone.resnet.fc.weight"].shape == (1000, 2048)
        assert torch.equal(image["module.backbone.resnet.conv1.weight"], image["module.backbone.base.0.weight"])
    opt = vars(content["opt"])
    assert (opt["vocab_size"], opt["word_dim"], opt["num_layers"], opt["drop"]) == (30, 6, 1, True)
    assert opt["margin"] == 0.3 and None not in opt.values()


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_tells_what_it_is_and_keeps_every_bit_both_ways(kind, written, tmp_path):
    path, model = written(kind)
    checkpoint = read_checkpoint(path)
    assert checkpoint.config == small_config(kind) and checkpoint.origin == "released_bigru"
    features = "region features" if kind == "region" else "grid features (tiny)"
    assert checkpoint.description == f"released VSE∞, {features}, BiGRU, embed_size 16"
    assert_same(load_model(checkpoint).state_dict(), model.state_dict())
    convert(path, tmp_path / "again.pth", "ours")
    convert(tmp_path / "again.pth", tmp_path / "third.pth", "released_bigru")
    assert_same_files(path, tmp_path / "third.pth")


def test_sizes_come_from_the_weights_and_a_contradicting_opt_is_refused(written):
    for name, value in (("vocab_size", 29), ("word_dim", 7), ("num_layers", 2), ("embed_size", 32)):
        path, _ = written("region", lambda content, name=name, value=value: setattr(content["opt"], name, value))
        with pytest.raises(InputError, match=f"its opt says {name} {value}, but its weights say"):
            read_checkpoint(path)

    def bare(content):
        content["opt"] = argparse.Namespace()

    assert read_checkpoint(written("region", bare)[0]).config == small_config("region")


def test_a_key_too_many_or_too_few_is_named(written):
    path, _ = written("region", lambda content: content["model"][1].update({"linear.weight": torch.ones(2)}))
    with pytest.raises(InputError, match="1 left over .*txt_enc: linear.weight"):
        read_checkpoint(path)
    path, _ = written("region", lambda content: content["model"][1].pop("rnn.bias_hh_l0"))
    with pytest.raises(InputError, match="1 key missing .*txt_enc: rnn.bias_hh_l0"):
        load_model(read_checkpoint(path))


@pytest.mark.parametrize("target", ["released", "released_bigru"])
def test_a_model_that_no_released_layout_has_is_refused(target, tmp_path):
    kind = {"similarity": "vse_infty"} if target == "released" else {"similarity": "esl_a", "embed_size": 256}
    model = build_model(ModelConfig(text_encoder="bigru", image_options={"img_dim": 12}, text_options=TEXT, **kind))
    save_checkpoint(tmp_path / "ours.pth", model)
    with pytest.raises(InputError, match="the released layout has no place for"):
        convert(tmp_path / "ours.pth", tmp_path / "released.pth", target)


def assert_same(a: dict, b: dict) -> None:
    assert set(a) == set(b), sorted(set(a) ^ set(b))
    assert all(a[key].dtype == b[key].dtype and torch.equal(a[key], b[key]) for key in a)


def assert_same_files(first: Path, second: Path) -> None:
    a, b = read_file(first), read_file(second)
    assert {key: a[key] for key in a if key != "model"} == {key: b[key] for key in b if key != "model"}
    for one, other in zip(a["model"], b["model"], strict=True):
        assert_same(one, other)


@needs_shared
def test_the_released_checkpoint_gives_its_embeddings_and_scores_for_its_captions(tmp_path):
    folder = SHARED / "golden"
    source, paths = folder / "bigru_region.pth", {"vocab_path": folder / "bigru_vocab" / "f30k_precomp_vocab.json"}
    checkpoint = read_checkpoint(source, paths)
    model, expected = load_model(checkpoint).eval(), np.load(folder / "bigru_region_io.npz")
    texts = json.loads((folder / "bigru_region_captions.json").read_text())
    captions = TokenisedCaptions(texts, input_spec(checkpoint.config, paths).tokeniser)
    tokens = Tokens.padded([captions.ids(index) for index in range(len(captions))])
    assert tokens.ids.numpy().tolist() == expected["captions"].tolist()
    assert tokens.lengths.tolist() == expected["cap_lens"].tolist()
    for dtype, suffix in ((torch.float32, ""), (torch.float64, "_f64")):
        model = model.to(dtype)
        images = Fragments.full(torch.from_numpy(expected["images"]).to(dtype))
        with torch.no_grad():
            found = {
                "img_emb": model.similarity.embed_images(model.image_encoder(images)),
                "cap_emb": model.similarity.embed_captions(model.text_encoder(tokens)),
                "sims": model(images, tokens),
            }
        for name, value in found.items():
            reference = expected[f"{name}{suffix}"]
            assert np.abs(value.numpy() - reference).max() <= 1e-6 * np.abs(reference).max(), (name, dtype)
    convert(source, tmp_path / "ours.pth", "ours")
    convert(tmp_path / "ours.pth", tmp_path / "again.pth", "released_bigru")
    assert_same_files(source, tmp_path / "again.pth")


@needs_shared
@pytest.mark.parametrize("kind", KINDS)
def test_full_size_key_lists_map_completely_both_ways(kind, tmp_path, repeating_tensors):
    parts = (OrderedDict(), OrderedDict())
    lines = (SHARED / "golden" / f"keys_vse_bigru_{kind}.txt").read_text(encoding="utf-8").splitlines()
    for line in lines:
        if not line.startswith("#"):
            part, _, key, shape, dtype = line.split("\t")
            parts[int(part)][key] = torch.zeros((), dtype=getattr(torch, dtype)).expand(ast.literal_eval(shape))
    if kind == "grid":
        assert sum("backbone.resnet" in key for key in parts[0]) > 600 and len(TWINS) == 6
    content = {"epoch": 1, "model": list(parts), "best_rsum": 1.0, "opt": argparse.Namespace(margin=0.2), "Eiters": 5}
    torch.save(content, tmp_path / "full.pth")
    checkpoint = read_checkpoint(tmp_path / "full.pth")
    check_complete(checkpoint)
    assert checkpoint.config.embed_size == 1024
    assert checkpoint.config.text_options == {"vocab_size": 8482, "word_dim": 300, "num_layers": 1}
    convert(tmp_path / "full.pth", tmp_path / "again.pth", "released_bigru")
    again = read_file(tmp_path / "again.pth")["model"]
    for one, other in zip(parts, again, strict=True):
        assert {key: (x.shape, x.dtype) for key, x in one.items()} == {k: (x.shape, x.dtype) for k, x in other.items()}
