"""Flags out of range, of another type, empty, or that contradict each other: one line each, before any work."""

from __future__ import annotations

import pytest

import eval as evaluation
import eval_ensemble
import train as training
from lib.commands import ensemble as commands
from lib.commands.flags import model_config
from lib.tools import compare
from tests.attack.refusals import refuses

NUMBERS = {  # a flag of train.py, and values that it must refuse
    "embed_size": ["0", "1", "-5", "99999999999", "1e3", "many", "nan"],
    "kernel_size": ["0", "1", "-2", "70000", "2.0"],
    "img_dim": ["0", "-1", "99999999999", "1.5"],
    "input_scale_factor": ["nan", "inf", "-inf", "1e9", "0", "-1", "0.001", "1e999", "x"],
    "input_size": ["0", "-16", "100000", "16.5"],
    "word_dim": ["0", "10000000", "three"],
    "num_layers": ["0", "1000"],
    "num_epochs": ["0", "-1", "1e2", "99999999999"],
    "batch_size": ["0", "1", "-128", "99999999999", "12.8"],
    "accumulate": ["0", "-1", "x"],
    "learning_rate": ["0", "-1", "nan", "inf", "1e999", "fast"],
    "pretrained_lr": ["0", "nan", "inf"],
    "warmup": ["-0.1", "1.1", "nan", "inf"],
    "margin": ["-0.2", "nan", "inf"],
    "weight_decay": ["-1", "nan", "inf"],
    "grad_clip": ["-1", "nan", "inf"],
    "backbone_lr_factor": ["-1", "nan"],
    "lr_update": ["-1", "1.5"],
    "seed": ["-1", str(2**70), "9" * 5000, "x", "1.0"],
    "workers": ["-1", "1.5", "all"],
    "score_memory": ["0", "-1", "99999999999", "nan"],
    "max_pixels": ["0", "-1", "x"],
    "log_step": ["0", "x"],
    "validations": ["0", "-4"],
    "val_step": ["-1", "0.5"],
    "save_step": ["-1", "0.5"],
    "device": ["meta", "mps", "cuda:-1", "cuda:9999", "cpu:0", "gpu", "cuda:x", "\x1b[2J"],
    "similarity": ["esl", "ESL_A", "esl_a\x1b[2J"],
    "image_encoder": ["region", "resnet"],
    "text_encoder": ["gpt"],
    "precision": ["fp8", "float64"],
    "kernels": ["triton"],
    "optim": ["adamw"],
    "loss": ["triplet"],
    "schedule": ["linear"],
    "clip_output": ["all"],
    "backbone_source": ["vit"],
    "precomp_enc_type": ["selfattention"],
}
EMPTY = ("resume", "model_name", "logger_name", "data_path", "bert_path", "clip_path", "val_split", "seed", "loss")


@pytest.mark.parametrize(("flag", "value"), [(flag, value) for flag, values in NUMBERS.items() for value in values])
def test_a_value_that_a_flag_cannot_have_is_refused_by_its_name(flag, value):
    refuses(lambda: training.parse([f"--{flag}={value}"]), f"--{flag}", "see ")


@pytest.mark.parametrize("flag", EMPTY)
@pytest.mark.parametrize("form", [lambda flag: [f"--{flag}", ""], lambda flag: [f"--{flag}="]])
def test_an_empty_value_is_refused(flag, form):
    refuses(lambda: training.parse(form(flag)), f"--{flag}", "empty")


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--reset_start_epoch"], ["--resume"]),
        (["--reset_start_epoch", "--resume", "auto"], ["over and over"]),
        (["--accumulate", "200"], ["--batch_size"]),
        (["--batch_size", "4", "--accumulate", "5"], ["at most 4"]),
        (["--max_violation", "--vse_mean_warmup_epochs", "2"], ["--max_violation", "one of them"]),
        (["--val_split", "train"], ["--val_split train"]),
        (["--resum", "auto"], ["did you mean --resume"]),
        (["--batch_size"], ["--batch_size", "expected one argument"]),
        (["stray"], ["stray"]),
        (["--no_such"], ["--no_such"]),
    ],
)
def test_flags_that_contradict_each_other_or_are_none_are_refused(argv, words):
    refuses(lambda: training.parse(argv), *words)


@pytest.mark.parametrize(("name", "alias"), [("regions", "backbone"), ("grid", "basic"), ("clip", "basic")])
def test_two_names_of_different_image_encoders_are_refused(name, alias):
    argv = ["--image_encoder", name, "--precomp_enc_type", alias]
    refuses(lambda: model_config(training.parse(argv)), "--precomp_enc_type", "--image_encoder")


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--limit", "0"], ["--limit"]),
        (["--limit", "-1"], ["--limit"]),
        (["--batch_size", "0"], ["--batch_size"]),
        (["--device", "meta"], ["--device"]),
        (["--model_path", ""], ["--model_path", "empty"]),
        (["--model_path", "/no/such.pth"], ["/no/such.pth", "no such file"]),
        (["--format", "html"], ["--format"]),
        (["--dataset", "../coco"], ["../coco"]),
        (["--zero_shot", "a", "--model_path", "/dev/null"], ["--zero_shot", "--model_path"]),
    ],
)
def test_evaluation_refuses_flags_before_it_reads_a_checkpoint(argv, words):
    refuses(lambda: evaluation.parse(argv), *words)


@pytest.mark.parametrize(
    "weights",
    ["1e308 1e308", "0 0", "-1 2", "nan 1", "inf 1", "1e999 1", "1", "1 2 3", "0.0 -0.0"],
)  # fmt: skip
def test_weights_without_a_finite_sum_above_0_or_of_another_number_are_refused(weights):
    args = eval_ensemble.parse(["a.npy", "b.npy", "--weights", *weights.split()])
    refuses(lambda: commands.check_weights(args.weights, 2), "--weights")


def test_the_same_matrix_under_two_names_is_refused(tmp_path):
    (tmp_path / "a.npy").touch()
    (tmp_path / "b.npy").symlink_to(tmp_path / "a.npy")
    for second in ("a.npy", "b.npy", "../" + tmp_path.name + "/a.npy"):
        refuses(lambda: commands.check_distinct([tmp_path / "a.npy", tmp_path / second]), "twice")  # noqa: B023


@pytest.mark.parametrize("argv", [["--draws", "0"], ["--draws", "nan"], ["--seed", "-1"], ["--seed", str(2**70)]])
def test_comparisons_refuse_numbers_out_of_range(argv):
    refuses(lambda: compare.parse(["a.npy", "b.npy", *argv]), argv[0])
