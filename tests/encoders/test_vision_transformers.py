"""ViT and Swin as grid encoders: what comes out of them, which layers train, and what a folder must hold."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from transformers import SwinConfig, SwinModel, ViTConfig, ViTModel

from lib.core.errors import InputError
from lib.encoders import IMAGE_ENCODERS
from lib.encoders.grid import GridEncoder
from tests import helpers
from tests.helpers import content

pytestmark = pytest.mark.usefixtures("single_thread")
KINDS = {"vit": (ViTConfig, ViTModel, helpers.VIT), "swin": (SwinConfig, SwinModel, helpers.SWIN)}
PROCESSOR = {"size": {"height": 16, "width": 16}, "image_mean": [0.1, 0.2, 0.3], "image_std": [0.5, 0.25, 1.0]}


def saved(folder, name: str, processor: dict | None = PROCESSOR):
    """A tiny random model in Hugging Face form; returns it."""
    config, model, values = KINDS[name]
    model = model(config(**values), add_pooling_layer=False).eval()
    model.save_pretrained(folder)
    if processor is not None:
        (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return model


def encoder_of(folder, name: str, **given) -> tuple[GridEncoder, dict]:
    part, paths = IMAGE_ENCODERS[name], {"backbone_path": folder}
    options = part.complete(6, part.read_options(given, paths))
    return part.build(6, options, paths).eval(), options


@pytest.mark.parametrize("name", KINDS)
@torch.no_grad()
def test_fragments_are_the_patches_of_the_last_hidden_state_projected(name, tmp_path):
    model = saved(tmp_path, name)
    encoder, options = encoder_of(tmp_path, name)
    assert options["input_size"] == 16 and {key: options[key] for key in KINDS[name][2]} == KINDS[name][2]
    images = torch.randn(2, 3, 16, 16)
    hidden = model(pixel_values=images).last_hidden_state
    hidden = hidden[:, 1:] if name == "vit" else hidden
    encoded = encoder(images)
    assert encoded.features.shape == (2, 16 if name == "vit" else 4, 6) and encoded.real.all()
    assert torch.allclose(encoded.features, encoder.fc(hidden), atol=1e-6)
    again = IMAGE_ENCODERS[name].build(6, options, None)
    assert again.state_dict().keys() == encoder.state_dict().keys()


@torch.no_grad()
def test_positions_are_interpolated_where_the_resolution_differs(tmp_path):
    model = saved(tmp_path, "vit", PROCESSOR | {"size": 24})
    encoder, options = encoder_of(tmp_path, "vit")
    assert options["input_size"] == 24 and options["image_size"] == 16
    images = torch.randn(1, 3, 24, 24)
    hidden = model(pixel_values=images, interpolate_pos_encoding=True).last_hidden_state
    assert torch.allclose(encoder(images).features, encoder.fc(hidden[:, 1:]), atol=1e-6)
    encoder, options = encoder_of(tmp_path, "vit", input_size=32)
    assert options["input_size"] == 32 and encoder(torch.randn(1, 3, 32, 32)).features.shape == (1, 64, 6)
    saved(tmp_path, "swin", PROCESSOR)
    assert encoder_of(tmp_path, "swin", input_size=32)[0](torch.randn(1, 3, 32, 32)).features.shape == (1, 16, 6)


@pytest.mark.parametrize("name", KINDS)
def test_a_quarter_of_the_layers_is_unfrozen_after_another_from_the_top(name, tmp_path):
    saved(tmp_path, name)
    encoder, _ = encoder_of(tmp_path, name)
    model = encoder.backbone.model
    layers = model.layers if name == "vit" else model.encoder.layers
    assert {id(p) for p in encoder.pretrained_parameters()} == {id(p) for p in model.parameters()}
    for count, trained in ((4, []), (3, [3]), (2, [2, 3]), (1, [1, 2, 3]), (0, [0, 1, 2, 3])):
        encoder.fix_blocks(count)
        assert [n for n, layer in enumerate(layers) if all(p.requires_grad for p in layer.parameters())] == trained
        assert [n for n, layer in enumerate(layers) if any(p.requires_grad for p in layer.parameters())] == trained
        assert all(p.requires_grad == (count == 0) for p in model.embeddings.parameters())
        assert model.layernorm.weight.requires_grad == (count < 4) and encoder.fc.weight.requires_grad


def test_images_are_resized_antialiased_and_normalised_as_the_processor_says(tmp_path):
    saved(tmp_path, "vit", PROCESSOR | {"size": {"shortest_edge": 4}})
    options = IMAGE_ENCODERS["vit"].read_options({}, {"backbone_path": tmp_path})
    transform = IMAGE_ENCODERS["vit"].transform(options)
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255  # antialiased: grey everywhere inside
    pixels = transform(stripes)
    expected = (0.5 - torch.tensor(PROCESSOR["image_mean"])) / torch.tensor(PROCESSOR["image_std"])
    assert pixels.shape == (3, 4, 4) and torch.allclose(pixels[:, 1, 1], expected, atol=0.05)
    assert transform(stripes, np.random.default_rng(0)).shape == (3, 4, 4)


def test_what_a_folder_lacks_is_one_line(tmp_path):
    part = IMAGE_ENCODERS["vit"]
    with pytest.raises(InputError, match="--image_encoder vit needs --backbone_path, a folder or a hub name"):
        part.read_options({}, {"backbone_path": None})
    saved(tmp_path, "swin")
    with pytest.raises(InputError, match="not a ViT model in Hugging Face form .*model_type is swin, expected vit"):
        part.read_options({}, {"backbone_path": tmp_path})
    saved(tmp_path, "vit", PROCESSOR | {"image_std": None})
    with pytest.raises(InputError, match="no usable size, image_mean and image_std"):
        part.read_options({}, {"backbone_path": tmp_path})
    with pytest.raises(InputError, match="--input_size is 18, expected a multiple of the patches' 4 pixels"):
        part.make(6, **helpers.VIT, input_size=18)
    with pytest.raises(InputError, match="name it with --backbone_path"):
        part.make(6)


@pytest.mark.parametrize("name", KINDS)
def test_a_model_trains_from_a_folder_and_is_evaluated_without_it(name, sample, tmp_path, capsys):
    saved(tmp_path, name)
    flags = ("--image_encoder", name, "--backbone_path", tmp_path, "--similarity", "vse_infty", "--embed_size", 16)
    helpers.train(sample, tmp_path / "run", *flags, "--num_epochs", 2)
    state = content(tmp_path / "run" / "checkpoint.pth")
    assert [group["name"] for group in state["optimizer"]["param_groups"]] == ["head", "text", "backbone"]
    start = KINDS[name][1].from_pretrained(tmp_path, add_pooling_layer=False).state_dict()
    trained = {key: state["model"][f"image_encoder.backbone.model.{key}"] for key in start}
    moved = [key for key in start if not torch.equal(start[key], trained[key])]
    assert "embeddings.patch_embeddings.projection.weight" in moved  # the second epoch thaws everything
    helpers.evaluate(sample, tmp_path / "run" / "model_best.pth")
    assert f"VSE∞, {IMAGE_ENCODERS[name].label}, BERT" in capsys.readouterr().out
