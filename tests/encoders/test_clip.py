"""CLIP's encoders against an independent forward pass of its weights under OpenAI's names."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from lib.core.errors import InputError
from lib.core.fragments import Tokens
from lib.encoders import IMAGE_ENCODERS, TEXT_ENCODERS, openai_clip
from lib.encoders.clip import load_clip, load_clip_config
from lib.files.pytorch import read_file
from tests.conftest import SHARED, needs_shared
from tests.helpers import CLIP_IMAGE, CLIP_TEXT

pytestmark = pytest.mark.usefixtures("single_thread")
D = 12


def encoders(output: str = "pooled"):
    """Both in float64 with weights away from every initial value, in evaluation mode."""
    image = IMAGE_ENCODERS["clip"].make(D, **CLIP_IMAGE, clip_output=output)
    text = TEXT_ENCODERS["clip"].make(D, **CLIP_TEXT, clip_output=output)
    for parameter in (*image.parameters(), *text.parameters()):
        parameter.data += 0.1 * torch.randn_like(parameter)
    return image.double().eval(), text.double().eval()


def tokens(*captions: list[int]) -> Tokens:
    width = max(map(len, captions))
    ids = torch.tensor([caption + [0] * (width - len(caption)) for caption in captions])
    return Tokens(ids, torch.tensor(list(map(len, captions))))


CAPTIONS = tokens([38, 5, 0, 7, 39], [38, 39], [38, 3, 4, 5, 6, 0, 8, 9, 10, 11])  # the last one was cut: no end token


def obvious_tower(weights: dict, x: torch.Tensor, prefix: str, causal: bool) -> torch.Tensor:
    """Pre-norm blocks over one sequence (L, width), one head after the other, as CLIP's paper and OpenAI's names go."""
    for layer in range(4):
        w = {name.removeprefix(f"{prefix}transformer.resblocks.{layer}."): value for name, value in weights.items()}
        y = F.layer_norm(x, x.shape[-1:], w["ln_1.weight"], w["ln_1.bias"])
        q, k, v = (y @ w["attn.in_proj_weight"].T + w["attn.in_proj_bias"]).chunk(3, -1)
        heads = []
        for h in range(x.shape[1] // 64):
            part = slice(64 * h, 64 * h + 64)
            scores = q[:, part] @ k[:, part].T / math.sqrt(64)
            if causal:
                scores = scores + torch.full_like(scores, -math.inf).triu(1)
            heads.append(scores.softmax(-1) @ v[:, part])
        x = x + torch.cat(heads, -1) @ w["attn.out_proj.weight"].T + w["attn.out_proj.bias"]
        y = F.layer_norm(x, x.shape[-1:], w["ln_2.weight"], w["ln_2.bias"])
        y = y @ w["mlp.c_fc.weight"].T + w["mlp.c_fc.bias"]
        x = x + (y * (1.702 * y).sigmoid()) @ w["mlp.c_proj.weight"].T + w["mlp.c_proj.bias"]
    return x


def obvious_image(weights: dict, image: torch.Tensor) -> torch.Tensor:
    """The class token and all patches (1 + R, D) of one image (3, H, W)."""
    patch = weights["visual.conv1.weight"].shape[-1]
    rows = []
    for y in range(0, image.shape[1], patch):
        for x in range(0, image.shape[2], patch):
            window = image[:, y : y + patch, x : x + patch]
            rows.append((weights["visual.conv1.weight"] * window).sum((1, 2, 3)))
    x = torch.stack([weights["visual.class_embedding"], *rows]) + weights["visual.positional_embedding"]
    x = F.layer_norm(x, x.shape[-1:], weights["visual.ln_pre.weight"], weights["visual.ln_pre.bias"])
    x = obvious_tower(weights, x, "visual.", causal=False)
    x = F.layer_norm(x, x.shape[-1:], weights["visual.ln_post.weight"], weights["visual.ln_post.bias"])
    return x @ weights["visual.proj"]


def obvious_text(weights: dict, ids: list[int]) -> torch.Tensor:
    """All tokens (W, D) of one caption."""
    x = weights["token_embedding.weight"][ids] + weights["positional_embedding"][: len(ids)]
    x = obvious_tower(weights, x, "", causal=True)
    x = F.layer_norm(x, x.shape[-1:], weights["ln_final.weight"], weights["ln_final.bias"])
    return x @ weights["text_projection"]


def openai_weights(*encoders) -> dict[str, torch.Tensor]:
    return openai_clip.to_openai({key: value for each in encoders for key, value in each.state_dict().items()})


@torch.no_grad()
def test_pooled_and_all_vectors_equal_the_definition_under_openais_names():
    image, text = encoders()
    weights, pixels = openai_weights(image, text), torch.randn(2, 3, 16, 16).double()
    words = [ids[:length].tolist() for ids, length in zip(CAPTIONS.ids, CAPTIONS.lengths, strict=True)]
    expected_images = torch.stack([obvious_image(weights, each) for each in pixels])
    expected_texts = [obvious_text(weights, ids) for ids in words]
    assert torch.allclose(image(pixels).features[:, 0], expected_images[:, 0], rtol=1e-10)
    ends = torch.stack([rows[place] for rows, place in zip(expected_texts, (4, 1, 0), strict=True)])
    assert torch.allclose(text(CAPTIONS).features[:, 0], ends, rtol=1e-10)
    image.tokens = text.tokens = True
    assert torch.allclose(image(pixels).features, expected_images[:, 1:], rtol=1e-10)
    encoded = text(CAPTIONS)
    for features, mask, rows in zip(encoded.features, encoded.mask, expected_texts, strict=True):
        assert torch.allclose(features[mask], rows, rtol=1e-10) and not features[~mask].any()


@torch.no_grad()
def test_a_caption_depends_on_nothing_else_in_its_batch():
    _, text = encoders()
    alone = [
        text(tokens(ids[:length].tolist())).features for ids, length in zip(CAPTIONS.ids, CAPTIONS.lengths, strict=True)
    ]
    assert torch.allclose(text(CAPTIONS).features, torch.cat(alone), rtol=1e-10)


def test_patches_are_dropped_while_training_alone_and_the_pooled_vector_never():
    image, _ = encoders("tokens")
    pixels = torch.randn(60, 3, 16, 16).double()
    assert image(pixels).mask.all() and not image.train()(pixels).mask.all()
    image, _ = encoders()
    assert torch.equal(image.train()(pixels[:2]).features, image.eval()(pixels[:2]).features)


def test_blocks_are_fixed_from_the_patches_up():
    image, text = encoders()
    tower = image.vision_model
    assert {id(p) for p in image.pretrained_parameters()} == {id(p) for p in image.parameters()}
    assert {id(p) for p in text.pretrained_parameters()} == {id(p) for p in text.parameters()}
    for count, trained in ((4, []), (3, [3]), (2, [2, 3]), (1, [1, 2, 3]), (0, [0, 1, 2, 3])):
        image.fix_blocks(count)
        layers = [number for number, layer in enumerate(tower.encoder.layers) if layer.mlp.fc1.weight.requires_grad]
        assert layers == trained
        assert tower.embeddings.class_embedding.requires_grad == (count == 0)
        assert image.visual_projection.weight.requires_grad == (count < 4)
    with pytest.raises(ValueError, match="5 fixed blocks"):
        image.fix_blocks(5)


def test_a_folder_and_a_file_of_openais_names_give_the_same_clip(tmp_path):
    image, text = (each.float() for each in encoders())
    weights = openai_weights(image, text)
    torch.save(weights | {"input_resolution": torch.tensor(16)}, tmp_path / "openai.pt")
    clip = load_clip(tmp_path / "openai.pt")
    clip.save_pretrained(tmp_path / "folder")
    for path in (tmp_path / "openai.pt", tmp_path / "folder"):
        paths = {"clip_path": str(path)}
        for table, encoder, values in ((IMAGE_ENCODERS, image, CLIP_IMAGE), (TEXT_ENCODERS, text, CLIP_TEXT)):
            part = table["clip"]
            options = part.complete(D, part.read_options({}, paths))
            assert {name: options[name] for name in values} == values
            found = part.build(D, options, paths).state_dict()
            expected = encoder.state_dict()
            assert found.keys() == expected.keys() and all(torch.equal(found[key], expected[key]) for key in found)


def test_what_is_no_clip_is_refused_in_one_line(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert", "hidden_size": 8}')
    for load in (load_clip, load_clip_config):
        with pytest.raises(InputError, match="--clip_path .*: not a CLIP model in Hugging Face form"):
            load(tmp_path)
    image, text = (each.float() for each in encoders())
    weights = openai_weights(image, text)
    weights.pop("visual.ln_pre.bias")
    torch.save(weights, tmp_path / "openai.pt")
    with pytest.raises(InputError, match="openai.pt: 1 key missing .*pre_layrnorm.bias"):
        load_clip(tmp_path / "openai.pt")
    load_clip_config(tmp_path / "openai.pt")
    with pytest.raises(InputError, match="--embed_size is 16, but CLIP projects to 12; give --embed_size 12"):
        IMAGE_ENCODERS["clip"].make(16, **CLIP_IMAGE)


def test_a_folder_that_lacks_weights_is_refused(tmp_path):
    image, text = (each.float() for each in encoders())
    torch.save(openai_weights(image, text), tmp_path / "openai.pt")
    clip = load_clip(tmp_path / "openai.pt")
    state = {key: value for key, value in clip.state_dict().items() if key != "text_projection.weight"}
    clip.save_pretrained(tmp_path / "folder", state_dict=state)
    with pytest.raises(InputError, match="--clip_path .*folder: .*text_projection.weight"):
        load_clip(tmp_path / "folder")


@needs_shared
def test_a_released_file_can_start_a_new_model():
    path = SHARED / "golden" / "clip_tiny_esl_h.pth"
    state = read_file(path)["state_dict"]
    assert torch.equal(load_clip(path).visual_projection.weight, state["clip.visual.proj"].T)
