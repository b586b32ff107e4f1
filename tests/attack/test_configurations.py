"""Configurations from files: every value has a type and bounds; an absurd one is refused before memory is taken."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest
import torch

from lib.checkpoint import read_checkpoint
from lib.checkpoint.native import sealed
from lib.core.config import ModelConfig
from lib.core.errors import InputError
from lib.encoders import IMAGE_ENCODERS, TEXT_ENCODERS
from lib.encoders.vision_transformers import read_vit_options
from lib.model import complete
from lib.similarity import HEADS
from tests.attack.refusals import one_line, refuses
from tests.checkpoint.released.layouts import released_content, small_model
from tests.helpers import BERT, CLIP_IMAGE, CLIP_TEXT, SWIN, VIT

PROCESSOR = {"input_size": 16, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
DROPOUT = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
REST = {"hidden_act": "gelu", "type_vocab_size": 2, "layer_norm_eps": 1e-12} | DROPOUT
PARTS = {  # a table's row with values that it can have, and the size of the joint space
    "esl_a": (HEADS["esl_a"], {"kernel_size": 2}, 256),
    "regions": (IMAGE_ENCODERS["regions"], {"img_dim": 32}, 256),
    "grid": (IMAGE_ENCODERS["grid"], {"input_scale_factor": 1.0}, 256),
    "clip images": (IMAGE_ENCODERS["clip"], CLIP_IMAGE, 12),
    "vit": (IMAGE_ENCODERS["vit"], VIT | PROCESSOR, 256),
    "swin": (IMAGE_ENCODERS["swin"], SWIN | PROCESSOR, 256),
    "bert": (TEXT_ENCODERS["bert"], BERT | REST, 256),
    "bigru": (TEXT_ENCODERS["bigru"], {"vocab_size": 40, "word_dim": 8, "num_layers": 1}, 256),
    "clip texts": (TEXT_ENCODERS["clip"], CLIP_TEXT, 12),
}
STRANGE = {
    "huge": 10**12, "beyond integers": 10**400, "negative": -1, "nan": math.nan, "infinite": math.inf, "text": "x",
    "steering": "\x1b[2J", "bytes": b"\xff", "list": [1, "x"], "deep list": [[[[]]]], "object": {"a": 1},
    "tensor": torch.ones(3), "complex": 1j,
}  # fmt: skip


@pytest.mark.parametrize("kind", STRANGE)
@pytest.mark.parametrize("name", PARTS)
def test_a_value_that_no_part_can_have_is_refused_in_each_of_its_places(name, kind):
    part, values, size = PARTS[name]
    whole = part.complete(size, values)
    for place in whole:
        refuses(lambda: part.complete(size, whole | {place: STRANGE[kind]}), place)  # noqa: B023


@pytest.mark.parametrize(
    "place", ["auto_map", "trust_remote_code", "quantization_config", "num_labels", "_name", "a\x1b"]
)
@pytest.mark.parametrize("name", PARTS)
def test_a_value_that_no_part_knows_never_reaches_its_network(name, place):
    part, values, size = PARTS[name]
    refuses(lambda: part.complete(size, values | {place: 1}), "is none of")


@pytest.mark.parametrize(
    "size", [0, 1, -5, 99999999999, 2**70, 256.0, True, "256", None, math.nan, [256], torch.tensor(256)]
)
def test_a_joint_space_of_no_size_is_refused(size):
    refuses(lambda: complete(ModelConfig(embed_size=size)), "embed_size", "a whole number from 2 to 65536")


@pytest.mark.parametrize("field", ["similarity", "image_encoder", "text_encoder"])
@pytest.mark.parametrize("name", ["", "esl", "__class__", "esl_a\x1b[2J", "x" * 10_000])
def test_a_part_that_no_table_has_is_refused_with_those_that_it_has(field, name):
    refuses(lambda: complete(dataclasses.replace(ModelConfig(), **{field: name})), field, "expected one of")


# ---- checkpoints ----


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
    """The content of a checkpoint of ours."""
    from lib.checkpoint import save_checkpoint

    path = tmp_path_factory.mktemp("ours") / "a.pth"
    save_checkpoint(path, small_model("vse_infty"))
    return torch.load(path, weights_only=True)


@pytest.mark.parametrize(
    ("part", "place", "value"),
    [
        ("image_options", "img_dim", 10**12),
        ("image_options", "img_dim", "wide"),
        ("image_options", "new", 1),
        ("text_options", "num_hidden_layers", 10**9),
        ("text_options", "hidden_size", 2**40),
        ("text_options", "vocab_size", -1),
        ("text_options", "hidden_act", "eval"),
        ("text_options", "hidden_dropout_prob", math.nan),
        ("text_options", "num_labels", 10**9),
        ("text_options", "layer_norm_eps", "small"),
        ("similarity_options", "no_imgnorm", 1),
        ("similarity_options", "spin", True),
    ],
)
def test_a_checkpoint_with_such_a_configuration_is_refused_by_its_name(ours, tmp_path, part, place, value):
    config = ours["config"] | {part: ours["config"][part] | {place: value}}
    torch.save(sealed(ours | {"config": config}), tmp_path / "a.pth")
    refuses(lambda: read_checkpoint(tmp_path / "a.pth"), "a.pth", place)


@pytest.mark.parametrize("kind", STRANGE)
@pytest.mark.parametrize("option", ["embed_size", "img_dim", "precomp_enc_type", "no_imgnorm", "val_split", "epoch"])
def test_whatever_a_released_file_says_of_itself_is_one_line_or_a_checkpoint(tmp_path, option, kind):
    content = released_content("vse_infty")
    setattr(content["opt"], option, STRANGE[kind])
    if option == "epoch":
        content["epoch"] = STRANGE[kind]
    try:
        torch.save(content, tmp_path / "a.pth")
        assert read_checkpoint(tmp_path / "a.pth").config.embed_size == 16
    except InputError as error:
        one_line(error, "a.pth")


# ---- what an image processor says ----


@pytest.mark.parametrize(
    "change",
    [{"size": 10**9}, {"size": -1}, {"size": "big"}, {"size": {"height": 1e9}}, {"size": None}, {"size": []},
     {"size": {}}, {"image_mean": [0.5]}, {"image_mean": "x"}, {"image_mean": [math.nan] * 3}, {"image_std": [0, 0, 0]},
     {"image_std": [1e999] * 3}, {"image_std": None}, {"image_mean": [[0.5] * 3]}, {"image_mean": 10**400}],
)  # fmt: skip
def test_an_image_processor_that_no_image_goes_through_is_refused(tmp_path, change):
    processor = {"size": 16, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (tmp_path / "config.json").write_text(json.dumps(VIT | {"model_type": "vit"}))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    vit = IMAGE_ENCODERS["vit"]
    assert vit.complete(256, read_vit_options({}, {"backbone_path": tmp_path}))["input_size"] == 16
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor | change))
    refuses(lambda: vit.complete(256, read_vit_options({}, {"backbone_path": tmp_path})))
