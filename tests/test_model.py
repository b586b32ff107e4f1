"""MatchingModel as a whole: built from a configuration, and blind to padding and to the rest of the batch."""

from __future__ import annotations

import dataclasses
import os

import numpy as np
import pytest
import torch

from lib import model as module
from lib.core.config import ModelConfig
from lib.core.errors import InputError
from lib.core.fragments import Fragments, Tokens
from lib.encoders.bert import bert_values, load_bert_config
from lib.encoders.fields import BERT as FIELDS
from lib.inference.input_spec import input_spec
from lib.model import build_model, check_memory, complete, describe, image_part, text_part
from lib.training.losses import HingeTriplet
from tests.helpers import BERT, HEADS, small_batch, small_config

pytestmark = pytest.mark.usefixtures("single_thread")


def double(config):
    """The model of a configuration in float64, in training mode with dropout off."""
    return build_model(config).double().train()


def outcome(model, images, captions: Tokens, keep=slice(None)) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Scores of the pairs in `keep`, and the gradients of their loss."""
    model.zero_grad()
    scores = model(images, captions)[:, keep]
    weights = torch.linspace(-1, 1, scores.numel(), dtype=scores.dtype).reshape(scores.shape)
    (scores * weights).sum().backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return scores.detach(), found


def assert_same(found, expected, tolerance: float = 1e-6) -> None:
    assert (found[0] - expected[0]).abs().max() <= tolerance
    assert found[1].keys() == expected[1].keys()
    largest = max(gradient.abs().max() for gradient in expected[1].values())
    for name, gradient in expected[1].items():
        assert (found[1][name] - gradient).abs().max() <= tolerance * max(gradient.abs().max(), 1e-3 * largest), name


def first(captions: Tokens, count: int) -> Tokens:
    return Tokens(captions.ids[:count], captions.lengths[:count])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("similarity", HEADS)
def test_padding_words_and_regions_change_no_score_and_no_gradient(similarity, dtype):
    model = build_model(small_config(similarity, dropout=0.0)).to(dtype).train()
    images, captions = small_batch()
    images = images.to(dtype)
    expected = outcome(model, images, captions)
    features = torch.cat([images.features, torch.randn(7, 3, 16, dtype=dtype)], 1)
    mask = torch.cat([images.mask, torch.zeros(7, 3, dtype=torch.bool)], 1)
    padded = Tokens(torch.cat([captions.ids, torch.full((7, 4), 5)], 1), captions.lengths)  # whatever stands there
    tolerance = 1e-6 if dtype == torch.float64 else 1e-4  # of gradients; scores in float32 stay within 1e-6 of theirs
    found = outcome(model, Fragments(features, mask), padded)
    assert_same(found, expected, tolerance)
    assert (found[0] - expected[0]).abs().max() <= 1e-6 * expected[0].abs().max().clamp(min=1)


@pytest.mark.parametrize("similarity", HEADS)
def test_other_captions_in_the_batch_change_no_score_and_no_gradient(similarity):
    model = double(small_config(similarity, dropout=0.0))
    images, captions = small_batch()
    images, width = images.to(torch.float64), captions.ids.shape[1] + 3
    longer = torch.randint(1, BERT["vocab_size"], (4, width))
    ids = torch.cat([torch.nn.functional.pad(captions.ids, (0, 3)), longer])
    together = Tokens(ids, np.append(captions.lengths, [width] * 4))
    assert_same(outcome(model, images, together, keep=slice(7)), outcome(model, images, captions))


@pytest.mark.parametrize("similarity", HEADS)
def test_other_images_in_the_batch_change_no_score_in_evaluation(similarity):
    model = build_model(small_config(similarity)).eval()
    images, captions = small_batch()
    with torch.no_grad():
        whole, some = model(images, captions), model(images.select(slice(3)), captions)
    torch.testing.assert_close(some, whole[:3], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("similarity", HEADS)
def test_zero_features_give_finite_scores_and_gradients(similarity):
    model = build_model(small_config(similarity)).train()
    images, captions = small_batch()
    images.features[:2] = 0
    with torch.no_grad():  # so that a zero region becomes a zero fragment
        model.image_encoder.mlp.output.weight.zero_()
        model.image_encoder.mlp.output.bias.zero_()
    loss = HingeTriplet()(model(images, captions), hardest=False)
    loss.backward()
    assert loss.isfinite() and all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("grid", [False, True])
@pytest.mark.parametrize("similarity", HEADS)
def test_the_model_scores_all_pairs_of_regions_or_raw_images_with_captions(similarity, grid):
    model = build_model(small_config(similarity, grid)).eval()
    images, captions = small_batch(grid)
    captions = first(captions, 5)
    scores = model(images, captions)
    assert scores.shape == (7, 5) and scores.isfinite().all()
    separately = model.similarity(model.image_encoder(images), model.text_encoder(captions))
    assert torch.equal(scores, separately)


# ---- building ----


def test_bert_fills_the_configuration_and_the_configuration_rebuilds_the_network(sample):
    config = dataclasses.replace(small_config(), text_options={})
    model = build_model(config, {"bert_path": sample / "bert"})
    assert model.config.text_options == bert_values(load_bert_config(sample / "bert"))
    rebuilt = build_model(model.config)
    assert rebuilt.config == model.config
    assert {k: v.shape for k, v in rebuilt.state_dict().items()} == {k: v.shape for k, v in model.state_dict().items()}
    rebuilt.load_state_dict(model.state_dict())
    images, captions = small_batch()
    assert torch.equal(rebuilt.eval()(images, captions), model.eval()(images, captions))


def test_the_weights_of_bert_are_those_of_the_folder_and_random_without_paths(sample):
    from safetensors.torch import load_file

    weights = load_file(sample / "bert" / "model.safetensors")
    model = build_model(dataclasses.replace(small_config(), text_options={}), {"bert_path": sample / "bert"})
    state = model.text_encoder.bert.state_dict()
    assert weights.keys() == state.keys()
    assert all(torch.equal(value, weights[name]) for name, value in state.items())
    random = build_model(model.config).text_encoder.bert.state_dict()
    name = "embeddings.word_embeddings.weight"
    assert random[name].shape == weights[name].shape and not torch.equal(random[name], weights[name])


def test_the_same_seed_builds_the_same_weights():
    states = []
    for _ in range(2):
        torch.manual_seed(3)
        states.append(build_model(small_config()).state_dict())
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_a_bert_without_weights_or_configuration_is_one_line_that_names_its_folder(sample, tmp_path):
    config = dataclasses.replace(small_config(), text_options={})
    for file in ("config.json", "model.safetensors"):
        bert = tmp_path / file
        bert.mkdir()
        for source in (sample / "bert").iterdir():
            if source.name != file:
                os.symlink(source, bert / source.name)
        with pytest.raises(InputError, match=f"--bert_path {bert}") as error:
            build_model(config, {"bert_path": bert})
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"similarity": "clip"}, "--similarity is 'clip', expected one of esl_a, esl_h, vse_infty"),
        ({"image_encoder": "selfattention"}, "--image_encoder is 'selfattention', expected one of regions, grid"),
        ({"text_encoder": "gru"}, "--text_encoder is 'gru', expected one of bert"),
        (
            {"image_encoder": "grid", "image_options": {"backbone_source": "vit"}},
            "--backbone_source is vit, expected one of detector, wsl",
        ),
        ({"embed_size": 255}, "--embed_size is 255, .* needs at least 256"),
        ({"embed_size": 512, "similarity_options": {"kernel_size": 3}}, "needs at least 6561"),
        ({"similarity_options": {"kernel_size": 1}}, "--kernel_size is 1"),
        ({"similarity": "vse_infty", "embed_size": 1}, "--embed_size is 1"),
        ({"image_encoder": "grid", "image_options": {"input_scale_factor": 0.0}}, "--input_scale_factor is 0"),
    ],
)
def test_values_that_no_network_can_have_are_refused_with_their_flag(changes, message):
    bert = {"text_options": small_config().text_options}
    with pytest.raises(InputError, match=message):
        build_model(ModelConfig(**({"embed_size": 256} | bert | changes)))


def test_a_complete_configuration_has_the_options_of_its_parts_and_those_of_no_other():
    head = {"no_imgnorm": False, "no_txtnorm": False}
    assert complete(ModelConfig()) == ModelConfig(
        similarity_options={"kernel_size": 2} | head, image_options={"img_dim": 2048}
    )
    assert complete(ModelConfig("vse_infty", "grid")) == ModelConfig(
        "vse_infty", "grid", similarity_options=head,
        image_options={"backbone_source": "detector", "input_scale_factor": 1.0},
    )  # fmt: skip
    config = small_config("esl_h", img_dim=64, no_imgnorm=True)
    assert complete(config) == config


def test_what_only_the_files_tell_is_read_where_paths_are_given_alone(sample):
    config = complete(ModelConfig(), {"bert_path": sample / "bert", "backbone_path": None})
    assert set(config.text_options) == set(FIELDS)
    assert config.text_options["num_attention_heads"] == 2 and config.text_options["hidden_size"] == 128
    with pytest.raises(InputError, match="--bert_path nowhere"):
        complete(ModelConfig(), {"bert_path": "nowhere/at/all"})


# ---- what its encoders read ----


@pytest.mark.parametrize("grid", [False, True])
def test_the_encoders_read_word_pieces_and_regions_of_their_size_or_squares_of_pixels(sample, grid):
    config = ModelConfig(image_encoder="grid" if grid else "regions", image_options={} if grid else {"img_dim": 24})
    paths = {"bert_path": sample / "bert"}
    tokeniser, img_dim, transform = input_spec(complete(config, paths), paths)
    ids, words = tokeniser.split(["a red circle"])[0]
    assert len(ids) == len(words) == 3 and tokeniser.max_length == 512
    if grid:
        pixels = torch.zeros(40, 30, 3, dtype=torch.uint8).numpy()
        assert img_dim is None and transform(pixels, None).shape == (3, 256, 256)
    else:
        assert img_dim == 24 and transform is None


def test_a_tokeniser_with_more_entries_than_the_models_bert_is_refused(sample):
    paths = {"bert_path": sample / "bert"}
    config = complete(ModelConfig(), paths)
    smaller = config.text_options | {"vocab_size": config.text_options["vocab_size"] - 1}
    with pytest.raises(InputError, match=f"--bert_path {sample / 'bert'}: the tokenizer has .* entries"):
        input_spec(dataclasses.replace(config, text_options=smaller), paths)


def test_a_network_is_described_as_published_figures_are_looked_up():
    assert describe(small_config("esl_a")) == "ESL-A, region features, BERT"
    assert describe(small_config("esl_h", grid=True)) == "ESL-H, grid features (tiny), BERT"
    assert describe(complete(ModelConfig("vse_infty", "grid"))) == "VSE∞, grid features (detector), BERT"


def test_the_rows_of_a_configuration_are_those_of_the_tables():
    config = small_config(grid=True)
    assert image_part(config) is module.IMAGE_ENCODERS["grid"] and text_part(config) is module.TEXT_ENCODERS["bert"]


def test_weights_that_do_not_fit_into_memory_are_refused_before_they_are_made(monkeypatch):
    config = small_config("esl_a")
    size = sum(tensor.nbytes for tensor in build_model(config).state_dict().values())
    for free, fits in ((None, True), (size, True), (size - 1, False)):
        monkeypatch.setattr(module, "free_memory", lambda free=free: free)
        if fits:
            check_memory(config)
        else:
            with pytest.raises(InputError, match="the weights of ESL-A, region features, BERT, embed_size 256, take "):
                check_memory(config)
