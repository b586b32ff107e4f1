"""CLIP-based models: the released training step by step, and every script on the sample's JPEGs."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

import eval as evaluation_script
import train as training_script
from lib.checkpoint import convert, load_model, read_checkpoint, save_checkpoint
from lib.checkpoint.released.clip import name_of
from lib.commands.train import build_schedule
from lib.core.config import ModelConfig
from lib.core.fragments import Tokens
from lib.datasets.inputs import InputSpec, open_inputs
from lib.datasets.loaders import TrainBatch
from lib.distributed.runner import Runner
from lib.encoders import openai_clip
from lib.encoders.clip import load_clip
from lib.inference.input_spec import input_spec
from lib.model import build_model, complete
from lib.tools.score import __main__ as score
from lib.tools.score import scoring
from lib.training.engine import Trainer
from lib.training.losses import build_loss
from lib.training.optim import build_optimizer
from lib.training.run import Run
from lib.training.schedule import CosineSchedule
from tests import helpers
from tests.conftest import SHARED, needs_shared
from tests.helpers import content, error_line, run_differences

ROOT = Path(__file__).parents[2]


def released_state(model) -> dict[str, torch.Tensor]:
    """A model's weights under their released names."""
    state = {key: value.detach() for key, value in model.state_dict().items()}
    towers = {key.partition(".")[2]: value for key, value in state.items() if not key.startswith("similarity.")}
    found = {f"clip.{name}": value for name, value in openai_clip.to_openai(towers).items()}
    heads = {key: value for key, value in state.items() if key.startswith("similarity.")}
    return found | {name_of(key, model.config).removeprefix("state_dict: "): value for key, value in heads.items()}


@needs_shared
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])
def test_eight_steps_are_those_of_the_released_code(dtype, tolerance, single_thread):
    file = np.load(SHARED / "golden" / "clip_trajectory.npz")
    model = load_model(read_checkpoint(SHARED / "golden" / "clip_tiny_esl_h.pth")).to(dtype)
    with torch.no_grad():
        model.text_encoder.logit_scale.fill_(float(file["init_logit_scale"]))
    criterion = build_loss("contrastive", model, {})
    optimizer = build_optimizer(
        model, criterion, "transformers_adamw", float(file["noclip_lr"]), weight_decay=float(file["weight_decay"]),
        pretrained_rate=float(file["clip_lr"]),
    )  # fmt: skip
    assert {group["name"]: len(group["params"]) for group in optimizer.param_groups}.keys() == {
        "head",
        "text",
        "backbone",
    }
    schedule = CosineSchedule(embedding_warmup_epochs=0, staged=True, num_epochs=1)
    trainer = Trainer(
        Runner(model, [torch.device("cpu")]), criterion, optimizer, schedule, float(file["max_grad_norm"])
    )
    model.train()
    steps = int(file["num_training_steps"])
    for step, (images, captions) in enumerate(zip(file["images"], file["captions"], strict=True)):
        ids = torch.from_numpy(captions)
        tokens = Tokens(ids, torch.full((len(ids),), ids.shape[1]))
        images = torch.from_numpy(images).to(dtype)
        with torch.no_grad():
            sims = model(images, tokens).numpy()
        expected = file["sims_f64"][step]
        assert np.abs(sims - expected).max() <= tolerance * np.abs(expected).max()
        loss, norm = trainer.step(TrainBatch(images, tokens, torch.arange(len(ids))), schedule.at(0, step, steps))
        assert loss == pytest.approx(float(file["losses_f64"][step]), rel=tolerance)
        assert norm == pytest.approx(
            float(file["grad_norms_f64"][step]), rel=tolerance if dtype == torch.float64 else 1e-4
        )
        assert float(criterion.logit_scale.detach()) == pytest.approx(
            float(file["logit_scales_f64"][step]), rel=tolerance
        )
        rates = {group["name"]: group["lr"] for group in optimizer.param_groups}
        assert [rates["text"], rates["head"]] == pytest.approx(file["lr"][step].tolist(), rel=1e-12)
        assert rates["backbone"] == rates["text"]
    state = released_state(model)
    for name, total, square in zip(file["names"], file["final_sums_f64"], file["final_sumsq_f64"], strict=True):
        weight = state[str(name)].double()
        scale = float(weight.abs().sum())
        assert float(weight.sum()) == pytest.approx(float(total), abs=tolerance * scale), name
        assert float(weight.square().sum()) == pytest.approx(float(square), rel=max(tolerance, 1e-8)), name
    for name in (name for name in file if name.startswith("final.")):
        expected = torch.from_numpy(file[name]).double()
        error = (state[name.removeprefix("final.")].double() - expected).abs().max()
        assert error <= max(tolerance, 1e-7) * expected.abs().max(), name


# ---- the scripts ----


def clip(sample, *flags) -> tuple:
    """Flags of a run of two epochs of five steps on the sample's JPEGs and its tiny CLIP, at rates that show."""
    encoders = ("--clip_path", sample / "clip", "--image_encoder", "clip", "--text_encoder", "clip")
    recipe = ("--loss", "contrastive", "--optim", "transformers_adamw", "--schedule", "cosine", "--grad_clip", 1.0)
    rates = ("--learning_rate", 1e-3, "--pretrained_lr", 1e-3, "--embedding_warmup_epochs", 0)
    return (*encoders, *recipe, *rates, "--similarity", "esl_clip_h", "--batch_size", 24, *flags)


@pytest.fixture(scope="module")
def run(sample, tmp_path_factory) -> Path:
    return helpers.train(sample, tmp_path_factory.mktemp("run"), *clip(sample))


def test_a_resumed_run_is_bit_for_bit_one_that_was_never_stopped(sample, run, tmp_path, monkeypatch):
    def save_and_stop(self, *given):
        save(self, *given)
        raise KeyboardInterrupt

    save = Run.save
    with monkeypatch.context() as patched, pytest.raises(SystemExit):
        patched.setattr(Run, "save", save_and_stop)
        helpers.train(sample, tmp_path, *clip(sample))
    assert content(tmp_path / "checkpoint.pth")["epoch"] == 1
    helpers.train(sample, tmp_path, *clip(sample, "--resume", tmp_path / "checkpoint.pth"))
    assert run_differences(run / "checkpoint.pth", tmp_path / "checkpoint.pth") == []


def test_validating_within_an_epoch_changes_no_step(sample, run, tmp_path):
    helpers.train(sample, tmp_path, *clip(sample, "--validations", 2))
    assert set(run_differences(run / "checkpoint.pth", tmp_path / "checkpoint.pth")) <= {"best_rsum"}


@pytest.mark.parametrize("head", ["esl_clip_h", "esl_clip_a", "esl_a", "vse_infty"])
def test_both_ways_learn_with_every_kind_of_head(sample, tmp_path, head):
    output = "pooled" if "clip" in head else "tokens"
    flags = ("--similarity", head, "--clip_output", output, "--num_epochs", 6, "--learning_rate", 3e-3)
    helpers.train(sample, tmp_path, *clip(sample, *flags))
    seen = [value for _, value in helpers.scalars(tmp_path / "log")["train/loss_per_pair"]]
    assert len(seen) == 30 and np.mean(seen[-5:]) < 0.95 * np.mean(seen[:5])


def test_the_scale_of_clip_is_trained_at_its_rate_and_kept_in_the_model(sample, run):
    state = content(run / "checkpoint.pth")
    scale, start = state["model"]["text_encoder.logit_scale"], content_of_clip(sample)["logit_scale"]
    assert torch.equal(scale, state["criterion"]["logit_scale"]) and 0 < abs(float(scale - start)) < 0.02
    groups = {group["name"]: group for group in state["optimizer"]["param_groups"]}
    assert set(groups) == {"head", "text", "backbone"} and groups["text"]["eps"] == 1e-6
    assert len(groups["text"]["params"]) == sum(key.startswith("text_encoder.") for key in state["model"])


def content_of_clip(sample) -> dict[str, torch.Tensor]:
    return load_clip(sample / "clip").state_dict()


def test_chunks_change_no_step(sample, run, tmp_path):
    helpers.train(sample, tmp_path, *clip(sample, "--accumulate", 3))
    one, other = (content(folder / "checkpoint.pth")["model"] for folder in (run, tmp_path))
    assert all(torch.allclose(one[key], other[key], atol=2e-3) for key in one)


def test_evaluation_and_a_released_copy_give_the_same_scores(sample, run, tmp_path, capsys):
    paths = ("--clip_path", sample / "clip", "--save_results")
    helpers.evaluate(sample, run / "model_best.pth", *paths, "--output", tmp_path / "ours")
    convert(run / "model_best.pth", tmp_path / "model_best.pth", "released_clip")
    helpers.evaluate(sample, tmp_path / "model_best.pth", *paths)
    assert np.array_equal(np.load(tmp_path / "ours" / "results_f30k.npy"), np.load(tmp_path / "results_f30k.npy"))
    printed = capsys.readouterr().out
    assert "released CLIP-based ESL-H, CLIP images (pooled), CLIP, embed_size 256" in printed
    assert "published" not in printed


def test_plain_clip_is_evaluated_without_training(sample, tmp_path, capsys):
    flags = ("--zero_shot", sample / "clip", "--output", tmp_path, "--save_results")
    helpers.evaluate(sample, None, *flags)
    assert "cosine similarity, CLIP images (pooled), CLIP" in capsys.readouterr().out
    found = np.load(tmp_path / "results_f30k.npy")
    model = load_clip(sample / "clip").eval()
    reads = clip_reads(sample)
    inputs = open_inputs(sample / "f30k", "f30k", "test", reads)
    ids = Tokens.padded([inputs.captions.ids(index) for index in range(len(inputs.captions))]).ids
    with torch.no_grad():
        pixels = torch.stack([inputs.images(index) for index in range(len(inputs.images))])
        expected = model(input_ids=ids, pixel_values=pixels).logits_per_image / model.logit_scale.exp()
    assert np.allclose(found, expected.numpy(), atol=1e-5)
    error = error_line(evaluation_script.main, [*flags, "--model_path", tmp_path], capsys)
    assert error == "--zero_shot and --model_path name different models; give one of them"


def clip_reads(sample) -> InputSpec:
    paths = {"clip_path": str(sample / "clip")}
    return input_spec(complete(ModelConfig("cosine", "clip", "clip", 256), paths), paths)


def test_a_picture_shows_the_words_and_the_part_of_the_image_that_clip_sees(sample, tmp_path, monkeypatch, capsys):
    flags = ("--similarity", "esl_a", "--clip_output", "tokens", "--num_epochs", 1)
    helpers.train(sample, tmp_path, *clip(sample, *flags))
    shown = []
    drawn = scoring.draw_picture
    monkeypatch.setattr(scoring, "draw_picture", lambda *given: shown.append(given) or drawn(*given))
    photo = next((sample / "f30k" / "flickr30k-images").glob("*.jpg"))
    arguments = ["--model_path", tmp_path / "model_best.pth", "--clip_path", sample / "clip", "--image", photo,
                 "--caption", "Two red balls .", "--picture", tmp_path / "picture.png", "--device", "cpu"]  # fmt: skip
    score.main([str(argument) for argument in arguments])
    words, similarity, _, _, image, _, grid, *_ = shown[0]
    assert words == ["<|startoftext|>", "Two", "red", "balls", ".", "<|endoftext|>"]
    assert similarity.shape == (6, 16) and image.shape == (32, 32, 3) and grid
    assert (tmp_path / "picture.png").stat().st_size
    no_words = ["--model_path", tmp_path / "x.pth", "--image", photo, "--caption", "a", "--picture", tmp_path / "p.png"]
    save_checkpoint(tmp_path / "x.pth", build_model(complete(ModelConfig("esl_clip_a", "clip", "clip", 256), {
        "clip_path": str(sample / "clip")})))  # fmt: skip
    assert "compares no word with a region" in error_line(
        score.main, [*no_words, "--clip_path", sample / "clip"], capsys
    )


def test_sizes_and_vocabularies_that_do_not_fit_are_one_line(sample, run, tmp_path, capsys):
    arguments = helpers.train_arguments(sample, tmp_path, *clip(sample, "--embed_size", 512))
    with pytest.raises(SystemExit):
        training_script.main(arguments)
    assert (
        capsys.readouterr().err.splitlines()[-1]
        == "error: --embed_size is 512, but CLIP projects to 256; give --embed_size 256"
    )
    arguments = helpers.eval_arguments(sample, run / "model_best.pth", "--clip_path", tmp_path)
    assert "--clip_path needs a tokenizer" in error_line(evaluation_script.main, arguments, capsys)


def test_the_script_holds_the_released_recipe(tmp_path):
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    python.chmod(0o755)
    environment = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "VIRTUAL_ENV": "x",
        "DATASET": "f30k",
        "CLIP_PATH": "here",
    }
    done = subprocess.run(["bash", ROOT / "train_clip.sh"], env=environment, capture_output=True, text=True, check=True)
    args = training_script.parse(done.stdout.splitlines()[1:])
    assert (args.image_encoder, args.text_encoder, args.similarity, args.clip_path) == (
        "clip",
        "clip",
        "esl_clip_h",
        "here",
    )
    assert (args.num_epochs, args.batch_size, args.seed, args.validations, args.val_split) == (15, 64, 24, 4, "dev")
    assert (args.learning_rate, args.pretrained_lr, args.weight_decay, args.grad_clip) == (3e-5, 1e-6, 0.2, 1.0)
    assert (args.resume, args.save_step) == ("auto", 500)
    assert (args.loss, args.optim, args.embedding_warmup_epochs) == ("contrastive", "transformers_adamw", 0)
    assert build_schedule(args, staged=True) == CosineSchedule(
        embedding_warmup_epochs=0, staged=True, num_epochs=15, warmup=0.1
    )
