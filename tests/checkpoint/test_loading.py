"""A model takes the weights of a checkpoint whole or not at all; a run goes on only with the model it was asked for."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from lib.checkpoint import Checkpoint, load_for, load_model
from lib.checkpoint.loading import check_complete
from lib.core.errors import InputError
from tests.checkpoint.released.layouts import BERT, KINDS, assert_same_tensors, small_config, small_model


def checkpoint_of(kind: str, origin: str = "ours", **weights) -> Checkpoint:
    """A checkpoint of a small model with changes to its weights, or to a weight's absence (None)."""
    model = small_model(kind)
    tensors = model.state_dict() | {key.replace("__", "."): tensor for key, tensor in weights.items()}
    tensors = {key: tensor for key, tensor in tensors.items() if tensor is not None}
    return Checkpoint(model.config, tensors, path=Path("a.pth"), origin=origin)


def message(function, *args) -> str:
    with pytest.raises(InputError) as caught:
        function(*args)
    assert str(caught.value).startswith("a.pth") and "\n" not in str(caught.value)
    return str(caught.value)


def altered(config, **options):
    """A configuration with options of its parts changed: text__num_attention_heads=2 for one of its text_options."""
    for name, value in options.items():
        part, _, option = name.partition("__")
        given = getattr(config, f"{part}_options")
        config = dataclasses.replace(config, **{f"{part}_options": {**given, option: value}})
    return config


# ---- all of the weights ----


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_is_rebuilt_with_all_weights_of_its_checkpoint(kind):
    checkpoint = checkpoint_of(kind)
    check_complete(checkpoint)
    model = load_model(checkpoint)
    assert model.config == checkpoint.config
    assert_same_tensors(model.state_dict(), checkpoint.model)


@pytest.mark.parametrize("function", [load_model, check_complete, lambda c: load_for(c.config, c)])
@pytest.mark.parametrize("origin", ["ours", "released"])
def test_missing_left_over_and_misshapen_weights_are_named_as_the_file_names_them(origin, function):
    checkpoint = checkpoint_of(
        "esl_a", origin, text_encoder__linear__bias=None, similarity__log_scale=None,
        mystery__weight=torch.zeros(2), image_encoder__fc__weight=torch.zeros(3, 5),
    )  # fmt: skip
    what, bias, scale, weight = {
        "ours": ("ESL-A", "text_encoder.linear.bias", "similarity.log_scale", "image_encoder.fc.weight"),
        "released": (
            "released ESL-A", "txt_enc: linear.bias", "sim_vec: sims.calculator_1.temp_scale.weight",
            "img_enc: fc.weight",
        ),
    }[origin]  # fmt: skip
    assert message(function, checkpoint) == (
        f"a.pth: not the weights of {what}, region features, BERT, embed_size 256: 2 keys missing ({bias}, {scale}); "
        f"1 key left over (mystery.weight); 1 key of another shape ({weight} (3, 5), expected (256, 24))"
    )


def test_a_configuration_that_gives_no_network_is_one_clear_error():
    for function in (load_model, check_complete):
        for options, found in (
            ({"text__num_attention_heads": 3}, "its configuration gives no network (The hidden size (64) is not a "),
            ({"similarity__spin": 3}, "ESL-H: spin is none of kernel_size, no_imgnorm, no_txtnorm"),
            ({"text__auto_map": "x"}, "BERT: auto_map is none of vocab_size, hidden_size, "),
            (
                {"text__num_hidden_layers": 10**9},
                "BERT: num_hidden_layers is 1000000000, expected a whole number from 1 ",
            ),
            ({"image__img_dim": 0}, "--img_dim is 0, expected a whole number from 1 to "),
            ({"similarity__kernel_size": 1}, "--kernel_size is 1, expected a whole number from 2 to "),
        ):
            checkpoint = checkpoint_of("esl_h")
            checkpoint.config = altered(checkpoint.config, **options)
            assert message(function, checkpoint).startswith(f"a.pth: {found}")


def test_a_check_needs_no_memory_for_the_network():
    config = altered(dataclasses.replace(small_config("vse_infty"), embed_size=60_000), image__img_dim=1_000_000)
    checkpoint = Checkpoint(config, {}, path=Path("a.pth"))  # of 240 GB of weights and more
    for function in (check_complete, load_model):
        assert "keys missing" in message(function, checkpoint)


# ---- a run that goes on ----


def test_a_run_goes_on_with_the_weights_of_its_checkpoint():
    model = load_for(small_config("esl_a"), checkpoint_of("esl_a"))
    assert model.config == small_config("esl_a")
    assert_same_tensors(model.state_dict(), small_model("esl_a").state_dict())


@pytest.mark.parametrize(
    "held, asked, differs",
    [("esl_a", "esl_h", None), ("esl_a", "vse_infty", None), ("esl_a", "esl_a grid", "image_encoder"),
     ("vse_infty grid", "vse_infty", "image_encoder")],
)  # fmt: skip
def test_going_on_with_another_part_or_size_says_what_is_held_and_what_was_asked_for(held, asked, differs):
    def words(config) -> str:
        encoder = f", {differs} {getattr(config, differs)}" if differs else ""
        return f"similarity {config.similarity}, embed_size {config.embed_size}{encoder}"

    checkpoint, config = checkpoint_of(held), small_config(asked)
    assert message(load_for, config, checkpoint) == (
        f"a.pth holds {words(checkpoint.config)}, but {words(config)} was asked for; give the flags that it was "
        "trained with"
    )


@pytest.mark.parametrize(
    "kind, option, before, now, name",
    [("esl_a", "similarity__no_imgnorm", False, True, "no_imgnorm"),
     ("esl_h", "similarity__no_txtnorm", False, True, "no_txtnorm"),
     ("vse_infty", "image__img_dim", 24, 25, "img_dim"),
     ("vse_infty grid", "image__backbone_source", "tiny", "wsl", "backbone_source"),
     ("vse_infty", "text__num_attention_heads", 1, 2, "BERT num_attention_heads"),
     ("vse_infty", "text__hidden_act", "gelu", "relu", "BERT hidden_act"),
     ("vse_infty", "text__layer_norm_eps", 1e-12, 1e-6, "BERT layer_norm_eps")],
)  # fmt: skip
def test_going_on_with_another_option_says_which_it_was_and_is(kind, option, before, now, name):
    checkpoint = checkpoint_of(kind)
    similarity, size = checkpoint.config.similarity, checkpoint.config.embed_size
    assert message(load_for, altered(checkpoint.config, **{option: now}), checkpoint) == (
        f"a.pth holds similarity {similarity}, embed_size {size}, {name} {before}, but similarity {similarity}, "
        f"embed_size {size}, {name} {now} was asked for; give the flags that it was trained with"
    )


def test_another_kernel_size_is_another_model():
    checkpoint = Checkpoint(
        dataclasses.replace(small_config("esl_h"), embed_size=6600), {}, path=Path("a.pth")
    )  # refused by its configuration, before any weight is looked at
    asked = altered(checkpoint.config, similarity__kernel_size=3)
    assert "kernel_size 2, but similarity esl_h, embed_size 6600, kernel_size 3 was" in message(
        load_for, asked, checkpoint
    )


def test_a_run_may_go_on_with_another_dropout_which_is_then_its_own():
    checkpoint = checkpoint_of("vse_infty")
    asked = altered(checkpoint.config, text__hidden_dropout_prob=0.3, text__attention_probs_dropout_prob=0.0)
    model = load_for(asked, checkpoint)
    assert model.config.text_options == BERT | {"hidden_dropout_prob": 0.3, "attention_probs_dropout_prob": 0.0}
    dropouts = {m.p for m in model.text_encoder.modules() if isinstance(m, torch.nn.Dropout)}
    assert 0.3 in dropouts and 0.1 not in dropouts
    assert_same_tensors(model.state_dict(), checkpoint.model)
