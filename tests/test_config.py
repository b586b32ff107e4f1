"""ModelConfig and the argument groups of the scripts."""

from __future__ import annotations

import argparse
import dataclasses

import pytest

from lib.config import (
    ModelConfig,
    add_data_arguments,
    add_machine_arguments,
    add_model_arguments,
    add_training_arguments,
)
from lib.errors import InputError


@pytest.fixture
def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    for add in (add_data_arguments, add_model_arguments, add_training_arguments, add_machine_arguments):
        add(parser)
    return parser


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"similarity": "clip"}, "--similarity is 'clip', expected one of esl_a, esl_h, vse_infty"),
        ({"precomp_enc_type": "selfattention"}, "--precomp_enc_type is 'selfattention'"),
        ({"backbone_source": "vit"}, "--backbone_source is 'vit'"),
        ({"embed_size": 255}, "--embed_size is 255, .* needs at least 256"),
        ({"embed_size": 512, "kernel_size": 3}, "needs at least 6561"),
        ({"kernel_size": 1}, "--kernel_size is 1"),
        ({"similarity": "vse_infty", "embed_size": 1}, "--embed_size is 1"),
        ({"img_dim": 0}, "--img_dim is 0"),
        ({"input_scale_factor": 0.0}, "--input_scale_factor is 0"),
    ],
)
def test_values_that_no_network_can_have_are_refused_with_their_flag(changes, message):
    with pytest.raises(InputError, match=message):
        ModelConfig(**changes)


def test_the_pooled_head_needs_no_256_dimensions():
    assert ModelConfig(similarity="vse_infty", embed_size=64).embed_size == 64


def test_a_configuration_survives_its_dict_and_a_newer_one_is_refused():
    config = ModelConfig(similarity="esl_h", img_dim=64, no_imgnorm=True, bert={"hidden_size": 8})
    assert ModelConfig.from_dict(config.as_dict()) == config
    with pytest.raises(InputError, match="unknown entries patches"):
        ModelConfig.from_dict(config.as_dict() | {"patches": 3})


def test_a_configuration_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        ModelConfig().embed_size = 256


def test_defaults_are_those_of_the_reference_runs(parser):
    args = parser.parse_args([])
    expected = {
        "similarity": "esl_a", "embed_size": 512, "kernel_size": 2, "img_dim": 2048, "precomp_enc_type": "basic",
        "backbone_source": "detector", "bert_path": "bert-base-uncased", "batch_size": 128, "learning_rate": 5e-4,
        "num_epochs": 30, "lr_update": 15, "optim": "adam", "margin": 0.2, "grad_clip": 2.0, "max_violation": False,
        "vse_mean_warmup_epochs": 1, "embedding_warmup_epochs": 1, "backbone_warmup_epochs": 0, "val_split": "dev",
        "backbone_lr_factor": 0.01, "accumulate": 1, "no_imgnorm": False, "no_txtnorm": False,
        "reset_start_epoch": False,
    }  # fmt: skip
    assert {name: getattr(args, name) for name in expected} == expected
    config = ModelConfig(**{f.name: getattr(args, f.name) for f in dataclasses.fields(ModelConfig) if f.name != "bert"})
    assert config == ModelConfig()


@pytest.mark.parametrize(
    "flags",
    [
        ["--batch_size", "0"],
        ["--batch_size", "1.5"],
        ["--learning_rate", "0"],
        ["--workers", "-1"],
        ["--margin", "-0.1"],
        ["--optim", "lamb"],
        ["--precision", "fp8"],
        ["--data_name", "flickr"],
    ],
)
def test_numbers_out_of_range_and_unknown_choices_are_refused(parser, flags, capsys):
    with pytest.raises(SystemExit) as stop:
        parser.parse_args(flags)
    assert stop.value.code == 2
    assert flags[0] in capsys.readouterr().err
