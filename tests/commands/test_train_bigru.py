"""BiGRU models through the scripts: train, resume, evaluate, ensemble, pictures, and what is refused."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

import eval as evaluation_script
import eval_ensemble
import train as training_script
from lib.checkpoint import convert
from lib.evaluation.published import published
from lib.tools.prepare.outputs import Target
from lib.tools.prepare.vocab import prepare_vocab
from lib.tools.score import __main__ as score
from lib.tools.score import scoring
from tests import helpers
from tests.helpers import content, error_line, grid_flags, run_differences

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def root(sample, tmp_path_factory) -> Path:
    """The sample with a vocabulary in the folder beside its data sets."""
    root = tmp_path_factory.mktemp("root")
    for name in ("f30k", "bert"):
        (root / name).symlink_to(sample / name)
    prepare_vocab(Target(root / "f30k", "f30k"))
    return root


def bigru(*flags) -> tuple:
    return ("--text_encoder", "bigru", "--word_dim", 12, "--similarity", "vse_infty", "--embed_size", 16, *flags)


@pytest.fixture(scope="module")
def run(root, tmp_path_factory) -> Path:
    return helpers.train(root, tmp_path_factory.mktemp("run"), *bigru())


def test_a_resumed_run_is_bit_for_bit_one_that_was_never_stopped(root, run, tmp_path):
    helpers.train(root, tmp_path, *bigru("--num_epochs", 1))
    helpers.train(root, tmp_path, *bigru("--resume", tmp_path / "checkpoint.pth"))
    assert content(tmp_path / "checkpoint.pth")["epoch"] == 2
    assert run_differences(run / "checkpoint.pth", tmp_path / "checkpoint.pth") == []


def test_options_travel_in_the_checkpoint_and_paths_do_not(root, run):
    config = content(run / "checkpoint.pth")["config"]
    words = json.loads((root / "vocab" / "f30k_precomp_vocab.json").read_text())["idx"]
    assert config["text_encoder"] == "bigru"
    assert config["text_options"] == {"word_dim": 12, "num_layers": 1, "vocab_size": words + 1}


def test_evaluation_finds_the_vocabulary_beside_the_data_and_ensembles_with_a_released_copy(
    root, run, tmp_path, capsys
):
    helpers.evaluate(root, run / "model_best.pth", "--save_results", "--output", tmp_path / "ours")
    convert(run / "model_best.pth", tmp_path / "model_best.pth", "released_bigru")
    helpers.evaluate(root, tmp_path / "model_best.pth", "--save_results", "--vocab_path", root / "vocab")
    one, other = tmp_path / "ours" / "results_f30k.npy", tmp_path / "results_f30k.npy"
    assert np.array_equal(np.load(one), np.load(other))
    assert "released VSE∞, region features, BiGRU, embed_size 16" in capsys.readouterr().out
    eval_ensemble.main([str(one), str(other)])
    assert "Flickr30K 10 images" in capsys.readouterr().out


@pytest.mark.parametrize("head", ["esl_a", "esl_h"])
def test_esl_heads_train_on_words_and_their_pictures_show_them(root, tmp_path, head, capsys):
    helpers.train(root, tmp_path, *bigru("--similarity", head, "--embed_size", 256, "--num_epochs", 1))
    flags = ["--model_path", tmp_path / "model_best.pth", "--vocab_path", root / "vocab" / "f30k_precomp_vocab.json",
             "--features", root / "f30k" / "precomp" / "test_ims.npy", "--row", 0, "--caption", "a red ball .",
             "--picture", tmp_path / "picture.png", "--device", "cpu"]  # fmt: skip
    shown = []
    drawn = scoring.draw_picture
    scoring.draw_picture = lambda words, *rest: shown.append(words) or drawn(words, *rest)
    try:
        score.main([str(flag) for flag in flags])
    finally:
        scoring.draw_picture = drawn
    assert shown == [["<start>", "a", "red", "ball", ".", "<end>"]] and (tmp_path / "picture.png").stat().st_size


def test_raw_images_train_with_words(root, tmp_path):
    helpers.train(root, tmp_path, *grid_flags(*bigru()))
    groups = content(tmp_path / "checkpoint.pth")["optimizer"]["param_groups"]
    assert [group["name"] for group in groups] == ["head", "backbone"]  # one rate for the whole text side
    helpers.evaluate(root, tmp_path / "model_best.pth")


def test_weight_decay_is_an_option_and_a_resumed_run_may_change_it(root, run, tmp_path):
    groups = content(run / "checkpoint.pth")["optimizer"]["param_groups"]
    assert [group["weight_decay"] for group in groups] == [1e-4]
    resume = ("--resume", run / "checkpoint.pth", "--num_epochs", 3, "--weight_decay", 0.01)
    helpers.train(root, tmp_path, *bigru(*resume))
    groups = content(tmp_path / "checkpoint.pth")["optimizer"]["param_groups"]
    assert [group["weight_decay"] for group in groups] == [0.01]


def test_word_vectors_fill_a_new_run_alone(root, tmp_path, capsys):
    (tmp_path / "vectors.txt").write_text("".join(f"{word} {' '.join(['3'] * 12)}\n" for word in ("ball", "zebra")))
    vectors = ("--word_vectors", tmp_path / "vectors.txt", "--learning_rate", 1e-9, "--num_epochs", 1)
    helpers.train(root, tmp_path / "run", *bigru(*vectors))
    assert "vectors for 1 of the vocabulary's" in capsys.readouterr().err
    weight = content(tmp_path / "run" / "checkpoint.pth")["model"]["text_encoder.embed.weight"]
    filled = (weight - 3).abs().amax(1) < 1e-3
    assert filled.sum() == 1
    resume = ("--resume", tmp_path / "run" / "checkpoint.pth", "--num_epochs", 2, "--learning_rate", 1e-9)
    helpers.train(root, tmp_path / "run", *bigru(*resume))
    again = content(tmp_path / "run" / "checkpoint.pth")["model"]["text_encoder.embed.weight"]
    torch.testing.assert_close(again, weight, rtol=0, atol=1e-4)


def test_a_missing_vocabulary_and_one_of_another_size_are_one_clear_line(sample, root, run, tmp_path, capsys):
    arguments = helpers.train_arguments(sample, tmp_path / "run", *bigru())
    message = error_line(training_script.main, arguments, capsys)
    assert message.startswith(f"{sample / 'vocab' / 'f30k_precomp_vocab.json'}: no such file; --vocab_path")

    small = prepare_vocab(Target(root / "f30k", "f30k"), tmp_path / "small.json", threshold=20)
    arguments = helpers.eval_arguments(root, run / "model_best.pth", "--vocab_path", small)
    message = error_line(evaluation_script.main, arguments, capsys)
    assert re.match(r".*small.json: its words and <mask> are \d+ entries, but the model's embedding has \d+ rows; name "
                    "the vocabulary", message)  # fmt: skip
    resume = bigru("--resume", run / "checkpoint.pth", "--vocab_path", small)
    message = error_line(training_script.main, helpers.train_arguments(root, tmp_path / "run", *resume), capsys)
    assert re.search(r"BiGRU vocab_size \d+, but .*BiGRU vocab_size \d+ was asked for", message)


def test_published_bigru_figures_state_what_is_unknown_by_a_dash():
    from lib.evaluation.metrics import retrieval_metrics
    from lib.evaluation.report import ModelResult, Row, summary_table
    from lib.evaluation.tables import text

    model = "VSE∞, region features, BiGRU"
    assert published(model, "COCO 1K mean").recalls == (78.5, 96.0, None, 61.7, 90.3, None)
    result = retrieval_metrics(np.eye(4, dtype=np.float32))
    *_, line, _ = text(summary_table([ModelResult("a", [Row("Flickr30K 1K", result)], model)])).splitlines()
    assert line.split("published")[1].split() == "76.5 94.2 - - - | 56.4 83.4 - - - | -".split()


@pytest.mark.parametrize(
    ("name", "decay", "images"), [("train_region.sh", 0.01, "regions"), ("train_grid.sh", 1e-4, "grid")]
)
def test_the_scripts_hold_the_recipe_of_the_released_bigru_models(name, decay, images, tmp_path):
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    python.chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "TEXT": "bigru", "VIRTUAL_ENV": "x", "DATASET": "coco"}
    done = subprocess.run(["bash", ROOT / name], env=environment, capture_output=True, text=True, check=True)
    args = training_script.parse(done.stdout.splitlines()[1:])
    assert (args.text_encoder, args.similarity, args.embed_size) == ("bigru", "vse_infty", 1024)
    assert (args.num_epochs, args.lr_update, args.batch_size, args.learning_rate) == (25, 15, 128, 5e-4)
    assert (args.weight_decay, args.grad_clip, args.vse_mean_warmup_epochs) == (decay, 2.0, 1)
    assert args.precomp_enc_type == ("basic" if images == "regions" else "backbone")
