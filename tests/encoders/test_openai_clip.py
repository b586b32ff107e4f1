"""CLIP's tensors under OpenAI's names and under transformers': every one has its place, and shapes tell the sizes."""

from __future__ import annotations

import pytest
import torch
from transformers import CLIPConfig, CLIPModel

from lib.core.errors import InputError
from lib.encoders.openai_clip import openai_name, sizes, to_openai, to_transformers, transformers_names
from tests.conftest import SHARED, needs_shared
from tests.helpers import CLIP_IMAGE, CLIP_TEXT


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    """Those of a tiny CLIP by transformers' names."""
    text = {"bos_token_id": 38, "eos_token_id": 39}
    config = CLIPConfig(text_config=CLIP_TEXT | text, vision_config=CLIP_IMAGE, projection_dim=12)
    return {key: value for key, value in CLIPModel(config).state_dict().items() if not key.endswith("position_ids")}


def test_names_go_to_openai_and_back_with_every_value(weights):
    openai = to_openai(weights)
    assert len(openai) == len(weights) - 2 * 2 * (CLIP_IMAGE["num_hidden_layers"] + CLIP_TEXT["num_hidden_layers"])
    back = to_transformers(openai, "here")
    assert back.keys() == weights.keys() and all(torch.equal(back[key], weights[key]) for key in weights)


def test_queries_keys_and_values_are_joined_in_this_order_and_projections_transposed(weights):
    openai, layer = to_openai(weights), "vision_model.encoder.layers.3.self_attn"
    joined = torch.cat([weights[f"{layer}.{third}_proj.bias"] for third in "qkv"])
    assert torch.equal(openai["visual.transformer.resblocks.3.attn.in_proj_bias"], joined)
    assert torch.equal(openai["text_projection"], weights["text_projection.weight"].T)
    assert torch.equal(openai["visual.proj"], weights["visual_projection.weight"].T)


@pytest.mark.parametrize(
    "name", ["visual.ln_mid.weight", "transformer.resblocks.0.ln_3.weight", "transformer.resblocks.0.ln_1_weight",
             "visual.transformer.resblocks.x.ln_1.weight", "transformer.resblocks.0.attn.in_proj.weight"],
)  # fmt: skip
def test_a_tensor_that_clip_has_not_is_named(name):
    assert transformers_names(name) == []
    with pytest.raises(InputError, match=rf"here: 1 left over \(CLIP has no such tensor\): {name}"):
        to_transformers({name: torch.ones(2), "logit_scale": torch.ones(())}, "here")


@pytest.mark.parametrize("key", ["text_model.encoder.layers.0.mlp.fc3.weight", "text_model.final_norm.weight"])
def test_a_key_of_another_model_has_no_name_of_openai(key):
    assert openai_name(key) is None


def test_the_shapes_of_the_tensors_tell_the_sizes_of_both_towers(weights):
    image, text = sizes(to_openai(weights), "here")
    assert image == CLIP_IMAGE and text == CLIP_TEXT


@pytest.mark.parametrize("name", ["visual.conv1.weight", "positional_embedding", "text_projection"])
def test_a_tensor_that_tells_a_size_and_is_missing_or_flat_is_named(weights, name):
    openai = to_openai(weights)
    for change in ({}, {name: torch.ones(3)}):
        others = {key: value for key, value in openai.items() if key != name}
        with pytest.raises(InputError, match=f"here: {name} is missing or has too few axes; expected the tensors"):
            sizes(others | change, "here")


def small(shape: str) -> tuple[int, ...]:
    """A shape of the published weights with a 64th of every width: "(1536, 512)" becomes (24, 8)."""
    numbers = [int(number) for number in shape.strip("()").split(",") if number.strip()]
    return tuple(number if number % 64 else number // 64 for number in numbers)


@needs_shared
def test_every_tensor_of_the_published_weights_has_its_place_in_transformers():
    openai, ours, rows = {}, {}, 0
    for line in (SHARED / "golden" / "clip_names.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            continue
        rows += 1
        name, shape, part, key, own_shape = line.split("\t")
        tensor = openai.setdefault(name, torch.randn(small(shape)))
        if part == "transposed":
            tensor = tensor.T
        elif part != "whole":
            third = int(part.removeprefix("rows ")[0])
            tensor = tensor.chunk(3)[third]
        assert tensor.shape == small(own_shape)
        ours[key] = tensor
        assert openai_name(key) == name and key in transformers_names(name)
    assert (rows, len(openai)) == (398, 302)
    found = to_transformers(openai, "here")
    assert found.keys() == ours.keys() and all(torch.equal(found[key], ours[key]) for key in ours)
    back = to_openai(found)
    assert back.keys() == openai.keys() and all(torch.equal(back[key], openai[key]) for key in openai)
