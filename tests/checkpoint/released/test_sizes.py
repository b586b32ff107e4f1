"""The configuration of a released model comes from its weights; what its settings say must agree."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
import torch

from lib.checkpoint.released.sizes import Weights, derived_bert, derived_config
from lib.core.config import ModelConfig
from lib.core.errors import InputError
from lib.encoders.fields import BERT as FIELDS
from lib.model import build_model
from tests.checkpoint.released.layouts import BERT, IMG_DIM, KINDS, small_config

OTHER_SIZES = ("vocab_size", "hidden_size", "num_hidden_layers", "intermediate_size", "max_position_embeddings",
               "type_vocab_size")  # fmt: skip


def named(key: str) -> str:
    return f"released {key}"


def weights_of(config: ModelConfig) -> Weights:
    """Weights of a configuration, shapes alone."""
    with torch.device("meta"):
        return Weights(build_model(config).state_dict(), Path("a.pth"), named)


@functools.cache
def small_weights(kind: str) -> Weights:
    return weights_of(small_config(kind))


def derived(kind: str, opt: dict | None = None, bert: dict | None = None, changes: dict | None = None):
    """What is derived from a small model, after changes to its weights: None takes a key away."""
    similarity, _, grid = kind.partition(" ")
    weights = small_weights(kind)
    tensors = {key: tensor for key, tensor in (weights.tensors | (changes or {})).items() if tensor is not None}
    return derived_config(weights._replace(tensors=tensors), similarity, bool(grid), opt or {}, bert)


def refusal(kind: str, opt: dict | None = None, changes: dict | None = None) -> str:
    with pytest.raises(InputError) as caught:
        derived(kind, opt, None, changes)
    assert str(caught.value).startswith("a.pth: ") and "\n" not in str(caught.value)
    return str(caught.value).removeprefix("a.pth: ")


def of_shape(*shape: int) -> torch.Tensor:
    return torch.zeros(shape, device="meta")


@pytest.mark.parametrize("kind", KINDS)
def test_weights_alone_tell_the_configuration(kind):
    expected = small_config(kind)
    assert derived(kind) == expected
    assert derived(kind, {"margin": 0.2, "embed_size": None, "kernel_size": None, "img_dim": None}) == expected
    stated = {"embed_size": expected.embed_size} | expected.similarity_options | expected.image_options
    assert derived(kind, stated) == expected


def test_switches_and_image_size_come_from_the_settings():
    config = derived("vse_infty grid", {"no_imgnorm": True, "no_txtnorm": 1, "input_scale_factor": 2.0})
    assert config.similarity_options == {"no_imgnorm": True, "no_txtnorm": True}
    assert config.image_options == {"backbone_source": "tiny", "input_scale_factor": 2.0}
    config = derived("esl_h", {"no_imgnorm": False, "no_txtnorm": True})
    assert config.similarity_options == {"kernel_size": 2, "no_imgnorm": False, "no_txtnorm": True}


@pytest.mark.parametrize(
    "kind, name, value, message",
    [("esl_a", "embed_size", 512, "its opt says embed_size 512, but its weights say 256; the file was altered"),
     ("esl_h", "img_dim", 2048, f"its opt says img_dim 2048, but its weights say {IMG_DIM}; the file was altered"),
     ("esl_h", "kernel_size", 3, "its opt says kernel_size 3, but its weights say 2; the file was altered"),
     ("esl_a", "kernel_size", 3, "its opt says kernel_size 3, which does not give the level sizes "
      "256, 128, 64, 32, 16, 8, 4, 2, 1 of its weights"),
     ("vse_infty", "precomp_enc_type", "backbone",
      "its opt says precomp_enc_type backbone, but its weights say basic; the file was altered"),
     ("esl_a grid", "precomp_enc_type", "basic",
      "its opt says precomp_enc_type basic, but its weights say backbone; the file was altered"),
     ("vse_infty grid", "backbone_source", "wsl", "its opt says backbone_source 'wsl', but its backbone has "
      "1, 1, 1, 1 blocks in layer1 to layer4 and 4 channels in the first block, which is tiny")],
)  # fmt: skip
def test_settings_that_contradict_the_weights_are_an_error(kind, name, value, message):
    assert refusal(kind, {name: value}) == message


def test_a_head_has_the_kernel_size_of_its_levels():
    of_three = {"similarity.image_aggregator.weights.0": of_shape(4, 1, 3)}
    config = derived("esl_h", changes=of_three | {"text_encoder.linear.weight": of_shape(6600, 64)})
    assert config.embed_size == 6600 and config.similarity_options["kernel_size"] == 3
    levels = {f"similarity.correspondences.{k}.matrix": of_shape(6600 // 3**k, 6600 // 3**k) for k in range(9)}
    config = derived("esl_a", changes=levels | {"text_encoder.linear.weight": of_shape(6600, 64)})
    assert config.embed_size == 6600 and config.similarity_options["kernel_size"] == 3
    assert "--embed_size is 256, but an ESL head with --kernel_size 3" in refusal("esl_h", changes=of_three)


def test_level_sizes_that_no_kernel_size_gives_are_an_error():
    text = refusal("esl_a", changes={"similarity.correspondences.3.matrix": of_shape(31, 31)})
    assert text == "no kernel_size gives the level sizes 256, 128, 64, 31, 16, 8, 4, 2, 1 of its weights"


def test_a_backbone_of_no_known_shape_is_an_error():
    changes = {"image_encoder.backbone.layer3.1.conv1.weight": of_shape(16, 1024, 1, 1)}
    assert refusal("esl_a grid", changes=changes) == (
        "its backbone has 1, 1, 2, 1 blocks in layer1 to layer4 and 4 channels in the first block, which is not "
        "supported"
    )


@pytest.mark.parametrize(
    "kind, key",
    [("esl_a", "similarity.correspondences.8.matrix"), ("esl_h", "similarity.image_aggregator.weights.0"),
     ("esl_a grid", "image_encoder.backbone.layer1.0.conv1.weight"), ("vse_infty", "image_encoder.fc.weight"),
     ("vse_infty", "text_encoder.linear.weight"),
     ("vse_infty", "text_encoder.bert.embeddings.word_embeddings.weight"),
     ("vse_infty", "text_encoder.bert.encoder.layer.0.intermediate.dense.weight")],
)  # fmt: skip
def test_a_weight_that_a_size_is_read_from_is_named_as_the_file_does_when_it_is_not_there(kind, key):
    expected = f"released {key} is missing or has too few axes"
    assert refusal(kind, changes={key: None}) == expected
    assert refusal(kind, changes={key: of_shape()}) == expected


def test_attention_heads_are_of_64_unless_a_fitting_configuration_says_otherwise():
    weights = small_weights("vse_infty")
    assert derived_bert(weights) == BERT and set(BERT) == set(FIELDS)
    fitting = {**BERT, "num_attention_heads": 4, "hidden_act": "relu", "layer_norm_eps": 1e-6}
    assert derived_bert(weights, fitting) == fitting
    for name in OTHER_SIZES:
        assert derived_bert(weights, {**fitting, name: 999}) == BERT, name
    assert derived("vse_infty", bert=fitting).text_options == fitting


def test_a_hidden_size_without_heads_of_64_needs_a_configuration():
    bert = {**BERT, "hidden_size": 40, "num_attention_heads": 5}
    weights = weights_of(ModelConfig("vse_infty", "regions", "bert", 16, {}, {"img_dim": IMG_DIM}, bert))
    for given in (None, {**bert, "vocab_size": 999}):
        with pytest.raises(InputError, match="^a.pth: BERT's hidden size 40 is no multiple of 64.*--bert_path$"):
            derived_bert(weights, given)
    assert derived_bert(weights, bert) == bert
