"""The flags of the scripts: they, their choices and their options come from the tables."""

from __future__ import annotations

import argparse
import re

import pytest

from lib.commands.flags import (
    add_data_arguments,
    add_image_arguments,
    add_machine_arguments,
    add_model_arguments,
    add_path_arguments,
    add_training_arguments,
    check_training,
    given_options,
    image_limits,
    loss_options,
    machine_paths,
    model_config,
)
from lib.console.parser import Parser
from lib.core import machine
from lib.core.config import ImageEncoderPart, ModelConfig, Option, Part, TextEncoderPart
from lib.core.errors import InputError
from lib.datasets import DATA_SETS
from lib.encoders import IMAGE_ENCODERS, TEXT_ENCODERS
from lib.files.images import DEFAULT_LIMITS, ImageLimits
from lib.model import complete
from lib.similarity import HEADS
from lib.training import LOSSES, OPTIMIZERS

PARTS = {"similarity": HEADS, "image_encoder": IMAGE_ENCODERS, "text_encoder": TEXT_ENCODERS}


def parser() -> argparse.ArgumentParser:
    """All flags of train.py, with the rows that the tables have now."""
    whole = Parser(prog="train")
    for add in (
        add_data_arguments, add_model_arguments, add_path_arguments, add_training_arguments, add_machine_arguments
    ):  # fmt: skip
        add(whole)
    return whole


def parse(*flags) -> argparse.Namespace:
    return parser().parse_args([str(flag) for flag in flags])


def config_of(*flags) -> ModelConfig:
    return model_config(parse(*flags))


def flags_in(text: str) -> list[str]:
    """The flags that a help text explains."""
    return re.findall(r"^  --(\w+)", text, re.MULTILINE)


def build(*_):
    return "built"


# ---- flags from tables ----


def test_every_option_of_every_row_has_one_flag_and_the_rows_that_share_it_share_the_flag():
    options = {name for table in (*PARTS.values(), LOSSES) for part in table.values() for name in part.options}
    flags = flags_in(parser().format_help())
    assert options and all(flags.count(name) == 1 for name in options)
    assert len(flags) == len(set(flags))


@pytest.mark.parametrize(("flag", "table"), [*PARTS.items(), ("loss", LOSSES), ("optim", OPTIMIZERS)])
def test_the_choices_of_a_flag_are_the_rows_of_its_table(flag, table):
    assert f"--{flag} {{{','.join(table)}}}" in parser().format_help()
    for name in table:
        assert getattr(parse(f"--{flag}", name), flag) == name
    with pytest.raises(InputError, match=f"--{flag}.*'other'"):
        parse(f"--{flag}", "other")


def test_the_help_names_the_known_data_sets_and_any_other_name_is_taken():
    assert f"{', '.join(DATA_SETS)}, or a name for your own data" in " ".join(parser().format_help().split())
    assert parse("--data_name", "my-pictures").data_name == "my-pictures"


def test_the_help_tells_the_default_of_every_option():
    text = " ".join(parser().format_help().split())
    for part in [part for table in (*PARTS.values(), LOSSES) for part in table.values()]:
        for name, option in part.options.items():
            assert " ".join(option.help.split()) in text, name
            assert option.default in (False, None) or f"(default: {option.default})" in text, name


NEW = {
    "sharpness": Option(3.0, "how sharp, at most 100 % of it"),
    "rounds": Option(4, "how often"),
    "shape": Option("flat", "which", choices=("flat", "round")),
    "mirrored": Option(False, "turn it over"),
}


@pytest.mark.parametrize(
    ("flag", "table", "part"),
    [
        ("similarity", HEADS, Part("New head", build, NEW)),
        ("image_encoder", IMAGE_ENCODERS, ImageEncoderPart("new images", build, NEW)),
        ("text_encoder", TEXT_ENCODERS, TextEncoderPart("new texts", build, NEW)),
    ],
)
def test_a_new_row_brings_its_name_and_its_options_as_flags(monkeypatch, capsys, flag, table, part):
    options = f"{flag.removesuffix('_encoder')}_options"
    monkeypatch.setitem(table, "new", part)
    assert set(NEW) <= set(flags_in(parser().format_help()))
    assert getattr(config_of(f"--{flag}", "new"), options) == {
        "sharpness": 3.0, "rounds": 4, "shape": "flat", "mirrored": False
    }  # fmt: skip
    given = ("--sharpness", 0.5, "--rounds", 7, "--shape", "round", "--mirrored")
    config = config_of(f"--{flag}", "new", *given)
    assert getattr(config, flag) == "new" and capsys.readouterr().err == ""
    assert getattr(config, options) == {"sharpness": 0.5, "rounds": 7, "shape": "round", "mirrored": True}
    with pytest.raises(InputError, match="--shape.*'square'"):
        parse("--shape", "square")
    with pytest.raises(InputError, match="--rounds.*'many'"):
        parse("--rounds", "many")

    config = config_of(*given)  # and without the row
    assert config == config_of() and not any(name in NEW for name in getattr(config, options))
    notes = capsys.readouterr().err.splitlines()
    labels = "ESL-A, region features, BERT"
    assert notes == [f"note: --{name} has no effect on {labels}" for name in sorted(NEW)]


def test_a_new_loss_or_optimizer_is_a_choice_and_the_options_of_a_loss_are_flags(monkeypatch):
    monkeypatch.setitem(LOSSES, "new", Part("new loss", build, {"temperature": Option(0.05, "how soft")}))
    monkeypatch.setitem(OPTIMIZERS, "new", build)
    args = parse("--loss", "new", "--temperature", 0.5, "--optim", "new")
    assert (args.loss, args.optim) == ("new", "new")
    assert given_options(LOSSES["new"], args) == {"temperature": 0.5}
    assert given_options(LOSSES["new"], parse("--loss", "new")) == {"temperature": 0.05}


# ---- from flags to a configuration ----


def test_defaults_are_those_of_the_reference_runs():
    args = parse()
    config = model_config(args)
    given_options(LOSSES[args.loss], args)
    expected = {
        "similarity": "esl_a", "image_encoder": "regions", "text_encoder": "bert", "embed_size": 512, "kernel_size": 2,
        "img_dim": 2048, "bert_path": "bert-base-uncased", "batch_size": 128, "learning_rate": 5e-4,
        "num_epochs": 30, "lr_update": 15, "optim": "adam", "loss": "hinge", "margin": 0.2, "grad_clip": 2.0,
        "weight_decay": 1e-4,
        "max_violation": False, "vse_mean_warmup_epochs": 1, "embedding_warmup_epochs": 1, "backbone_warmup_epochs": 0,
        "val_split": "dev", "backbone_lr_factor": 0.01, "accumulate": 1, "no_imgnorm": False, "no_txtnorm": False,
        "reset_start_epoch": False, "precision": "float32", "kernels": "auto", "score_memory": None, "seed": 0,
    }  # fmt: skip
    assert {name: getattr(args, name) for name in expected} == expected
    assert complete(config) == complete(ModelConfig())
    grid = config_of("--image_encoder", "grid")
    assert grid.image_options == {"backbone_source": "detector", "input_scale_factor": 1.0}


def test_flags_reach_the_options_of_the_part_that_has_them():
    flags = ("--similarity", "esl_h", "--embed_size", 6561, "--kernel_size", 3, "--no_txtnorm", "--img_dim", 64)
    assert config_of(*flags) == ModelConfig(
        "esl_h", "regions", "bert", 6561, {"kernel_size": 3, "no_imgnorm": False, "no_txtnorm": True}, {"img_dim": 64}
    )
    flags = ("--similarity", "vse_infty", "--image_encoder", "grid", "--backbone_source", "wsl", "--no_imgnorm",
             "--input_scale_factor", 2)  # fmt: skip
    assert config_of(*flags) == ModelConfig(
        "vse_infty", "grid", "bert", 512, {"no_imgnorm": True, "no_txtnorm": False},
        {"backbone_source": "wsl", "input_scale_factor": 2.0},
    )  # fmt: skip


def test_the_values_of_options_that_were_not_given_become_those_of_the_flags_for_the_settings_of_a_run():
    args = parse("--similarity", "vse_infty", "--no_imgnorm")
    model_config(args)
    given_options(LOSSES["hinge"], args)
    assert (args.no_imgnorm, args.no_txtnorm, args.img_dim, args.margin) == (True, False, 2048, 0.2)


@pytest.mark.parametrize(
    ("flags", "name", "labels"),
    [
        (("--similarity", "vse_infty", "--kernel_size", 3), "kernel_size", "VSE∞, region features, BERT"),
        (("--backbone_source", "wsl"), "backbone_source", "ESL-A, region features, BERT"),
        (("--input_scale_factor", 0.5), "input_scale_factor", "ESL-A, region features, BERT"),
        (("--image_encoder", "grid", "--img_dim", 64), "img_dim", "ESL-A, grid features, BERT"),
        (("--word_dim", 200), "word_dim", "ESL-A, region features, BERT"),
    ],
)
def test_a_flag_of_a_part_that_was_not_chosen_has_no_effect_and_that_is_one_line(flags, name, labels, capsys):
    given = config_of(*flags)
    assert capsys.readouterr().err == f"note: --{name} has no effect on {labels}\n"
    assert given == config_of(*flags[: flags.index(f"--{name}")])
    assert capsys.readouterr().err == ""  # nothing is said of a default


@pytest.mark.parametrize(("alias", "name"), [("basic", "regions"), ("backbone", "grid")])
def test_precomp_enc_type_names_an_image_encoder_as_vse_infinity_does(alias, name, capsys):
    args = parse("--precomp_enc_type", alias)
    assert model_config(args) == config_of("--image_encoder", name)
    assert args.image_encoder == name and capsys.readouterr() == ("", "")


def test_another_precomp_enc_type_is_refused_with_the_ones_there_are():
    with pytest.raises(InputError, match="--precomp_enc_type.*'selfattention'.*basic.*backbone"):
        parse("--precomp_enc_type", "selfattention")


def test_the_files_of_this_machine_are_given_by_their_flags():
    given = {
        "bert_path": "somewhere",
        "clip_path": "elsewhere",
        "backbone_path": "weights.pth",
        "word_vectors": "glove.txt",
    }
    flags = [part for name, value in given.items() for part in (f"--{name}", value)]
    assert machine_paths(parse(*flags)) == {**given, "vocab_path": None}
    absent = {"backbone_path": None, "word_vectors": None, "vocab_path": None}
    hub = {"bert_path": "bert-base-uncased", "clip_path": "openai/clip-vit-base-patch16"}
    assert machine_paths(parse()) == {**hub, **absent}


def test_the_vocabulary_of_a_data_set_lies_beside_it_unless_a_file_is_named(tmp_path):
    flags = ("--data_path", tmp_path / "coco", "--data_name", "coco")
    assert machine_paths(parse(*flags))["vocab_path"] == tmp_path / "vocab" / "coco_precomp_vocab.json"
    own = tmp_path / "own.json"
    assert machine_paths(parse(*flags, "--vocab_path", own))["vocab_path"] == own


# ---- numbers ----


@pytest.mark.parametrize(
    "flags",
    [
        ["--batch_size", "0"],
        ["--batch_size", "1.5"],
        ["--learning_rate", "0"],
        ["--learning_rate", "nan"],
        ["--workers", "-1"],
        ["--margin", "-0.1"],
        ["--score_memory", "0"],
        ["--img_dim", "0"],
        ["--embed_size", "0"],
        ["--kernel_size", "two"],
        ["--input_scale_factor", "0"],
        ["--precision", "fp8"],
        ["--kernels", "triton"],
        ["--backbone_source", "vit"],
    ],
)
def test_numbers_out_of_range_and_unknown_choices_are_refused(flags):
    with pytest.raises(InputError, match=f"argument {flags[0]}: .*{re.escape(flags[1])}.*; see train --help"):
        parse(*flags)


def test_zero_is_a_number_of_workers_steps_and_epochs_of_warm_up():
    names = ("workers", "val_step", "vse_mean_warmup_epochs", "embedding_warmup_epochs", "backbone_warmup_epochs",
             "lr_update", "seed", "grad_clip", "margin", "backbone_lr_factor")  # fmt: skip
    args = parse(*(text for name in names for text in (f"--{name}", 0)))
    assert [getattr(args, name) for name in names] == [0] * len(names)


def test_workers_follow_the_cores_of_the_process_up_to_eight_and_are_never_more(monkeypatch, capsys):
    for cores, default in ((1, 1), (2, 2), (64, 8)):
        monkeypatch.setattr(machine.os, "sched_getaffinity", lambda pid, cores=cores: set(range(cores)), raising=False)
        assert parse().workers == default
        assert capsys.readouterr().err == ""
        assert parse("--workers", 65).workers == cores
        assert capsys.readouterr().err.startswith(f"note: --workers 65: this process may use {cores} cores")


def test_evaluation_asks_for_no_weights_of_a_backbone():
    evaluation = Parser()
    add_path_arguments(evaluation, evaluation=True)
    assert flags_in(evaluation.format_help()) == ["bert_path", "clip_path", "vocab_path"]


def test_two_flags_that_name_different_image_encoders_are_refused(capsys):
    with pytest.raises(InputError, match="--precomp_enc_type basic means --image_encoder regions, but .* is grid"):
        model_config(parse("--image_encoder", "grid", "--precomp_enc_type", "basic"))
    assert model_config(parse("--image_encoder", "grid", "--precomp_enc_type", "backbone")).image_encoder == "grid"


def test_two_names_of_the_same_image_encoder_may_differ_only_where_one_is_a_default():
    with pytest.raises(InputError, match="--precomp_enc_type backbone means --image_encoder grid, but .* is regions"):
        model_config(parse("--image_encoder", "regions", "--precomp_enc_type", "backbone"))
    assert model_config(parse("--precomp_enc_type", "backbone")).image_encoder == "grid"


@pytest.mark.parametrize(
    ("flags", "name", "what"),
    [
        (("--embedding_warmup_epochs", 1), "embedding_warmup_epochs", "region features"),  # its default, but given
        (("--backbone_warmup_epochs", 2), "backbone_warmup_epochs", "region features"),
        (("--backbone_lr_factor", 0.1), "backbone_lr_factor", "region features"),
        (("--image_list", "x.txt"), "image_list", "region features"),
        (("--warmup", 0.2), "warmup", "--schedule step"),
        (("--schedule", "cosine", "--lr_update", 3), "lr_update", "--schedule cosine"),
    ],
)
def test_a_flag_of_raw_images_or_of_another_schedule_has_no_effect_and_that_is_one_line(flags, name, what, capsys):
    config_of(*flags)
    assert capsys.readouterr().err == f"note: --{name} has no effect on {what}\n"
    config_of("--image_encoder", "grid", "--embedding_warmup_epochs", 1, "--schedule", "cosine", "--warmup", 0.2)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--reset_start_epoch",), "--reset_start_epoch without --resume has nothing to take weights from"),
        (("--reset_start_epoch", "--resume", "auto"), "--resume auto would start over and over; name a file"),
        (("--accumulate", 129), "--accumulate 129 is more chunks than --batch_size 128 has pairs; give at most 128"),
        (("--max_violation", "--vse_mean_warmup_epochs", 1), "--max_violation leaves out the warm-up of"),
        (("--val_split", "train"), "--val_split train: the best epoch is chosen on images that were not trained on"),
    ],
)
def test_flags_that_contradict_each_other_are_refused(flags, message):
    with pytest.raises(InputError, match=message):
        check_training(parse(*flags))


def test_flags_that_agree_are_not_refused(tmp_path):
    (tmp_path / "a.pth").touch()
    check_training(parse())
    check_training(parse("--reset_start_epoch", "--resume", tmp_path / "a.pth", "--accumulate", 128))
    check_training(parse("--max_violation", "--vse_mean_warmup_epochs", 0))


def test_an_option_of_a_loss_that_was_not_chosen_has_no_effect_and_that_is_one_line(monkeypatch, capsys):
    other = Part("another loss", lambda size, options: None, {"sharpness": Option(1.0, "how sharp")})
    monkeypatch.setitem(LOSSES, "other", other)
    assert loss_options(parse("--sharpness", "2")) == {"margin": 0.2}
    assert capsys.readouterr().err == "note: --sharpness has no effect on hinge-triplet loss\n"
    assert loss_options(parse("--sharpness", "2", "--loss", "other")) == {"sharpness": 2.0}
    assert capsys.readouterr().err == ""


def test_flags_say_which_image_files_are_read():
    images = Parser(prog="train")
    add_image_arguments(images)
    assert image_limits(images.parse_args([])) == DEFAULT_LIMITS
    given = images.parse_args(["--max_pixels", "9", "--allow_outside_images"])
    assert image_limits(given) == ImageLimits(max_pixels=9, outside=True)
