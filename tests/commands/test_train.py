"""train.py from the command line to its files: what a run leaves, that it repeats, resumes and refuses bad input."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import lib.commands.train as job
import train as script
from lib.checkpoint import convert, load_model, read_checkpoint
from lib.core.config import KERNELS
from lib.core.fragments import Tokens
from lib.datasets.tokenisers import load_tokenizer
from lib.similarity.alignment import Backend
from lib.training.engine import Trainer
from lib.training.run import Run
from tests import helpers
from tests.helpers import HEADS, content, error_line, run_differences, scalars, train, train_arguments
from tests.processes import in_a_process

RELEASED_FLAGS = """
    data_path data_name logger_name model_name num_epochs batch_size lr_update learning_rate optim margin grad_clip
    workers log_step val_step resume reset_start_epoch max_violation img_dim embed_size kernel_size no_imgnorm
    no_txtnorm precomp_enc_type backbone_source backbone_path backbone_lr_factor vse_mean_warmup_epochs
    backbone_warmup_epochs embedding_warmup_epochs input_scale_factor similarity bert_path val_split seed accumulate
    image_encoder text_encoder loss precision kernels score_memory device image_list
    weight_decay vocab_path word_vectors clip_path clip_output cut_end pretrained_lr schedule warmup validations
    input_size save_step
""".split()
pytestmark = pytest.mark.usefixtures("single_thread")
FILES = {".lock", "checkpoint.pth", "checkpoint_previous.pth", "model_best.pth", "config.json", "metrics.jsonl", "log"}
STEPS = 5  # per epoch of the sample: 120 captions in batches of 24


def bert_with(sample: Path, folder: Path, **changes) -> Path:
    """A copy of the sample's BERT with other values in its configuration."""
    shutil.copytree(sample / "bert", folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    return folder


@pytest.fixture(scope="module")
def esl_a(runs) -> Path:
    return runs("esl_a")


# ---- what a run leaves ----


@pytest.mark.parametrize("similarity", HEADS)
def test_a_run_leaves_checkpoints_that_rebuild_the_model_and_a_log(runs, similarity):
    folder = runs(similarity)
    assert {path.name for path in folder.iterdir()} == FILES
    latest, best = (read_checkpoint(folder / name) for name in ("checkpoint.pth", "model_best.pth"))
    assert (latest.epoch, latest.step) == (2, 2 * STEPS)
    assert latest.optimizer is not None and best.optimizer is None
    assert latest.best_rsum == best.best_rsum > 0
    assert latest.config.similarity == similarity and latest.config.image_options == {"img_dim": helpers.IMG_DIM}
    for checkpoint in (latest, best):
        assert all(torch.isfinite(p).all() for p in load_model(checkpoint).parameters())


@pytest.mark.parametrize("similarity", HEADS)
def test_tensorboard_holds_loss_rate_gradient_times_and_every_recall_of_every_validation(runs, similarity):
    events = scalars(runs(similarity) / "log")
    steps = list(range(1, 2 * STEPS + 1))
    for name in ("loss", "loss_per_pair", "lr", "gradient_norm", "data_time", "step_time"):
        series = events.pop(f"train/{name}")
        assert [step for step, _ in series] == steps
        assert all(math.isfinite(value) and value >= 0 for _, value in series)
    recalls = {f"dev/{d}_{m}" for d in ("i2t", "t2i") for m in ("r1", "r5", "r10", "medr", "meanr")}
    assert set(events) == recalls | {"dev/rsum"}
    assert all([step for step, _ in series] == [STEPS, 2 * STEPS] for series in events.values())
    six = [events[f"dev/{d}_{m}"][-1][1] for d in ("i2t", "t2i") for m in ("r1", "r5", "r10")]
    assert events["dev/rsum"][-1][1] == pytest.approx(sum(six), abs=1e-3)


@pytest.mark.parametrize("similarity", HEADS)
def test_the_loss_falls(sample, tmp_path, similarity):
    flags = ("--similarity", similarity, "--learning_rate", 2e-3, "--vse_mean_warmup_epochs", 2)
    losses = [loss for _, loss in scalars(train(sample, tmp_path / "run", *flags) / "log")["train/loss"]]
    assert sum(losses[STEPS:]) < 0.9 * sum(losses[:STEPS])


def test_the_log_has_a_line_every_log_step_and_at_the_end_of_an_epoch(esl_a):
    log = (esl_a / "log" / "train.log").read_text(encoding="utf-8")
    lines = re.findall(
        r"epoch (\d) step (\d)/5  loss [\d.]+ \(mean [\d.]+\)  gradient [\d.]+ per pair  lr 5\.0e-04  data", log
    )
    assert lines == [(epoch, step) for epoch in "01" for step in "245"]
    assert "train: 24 images, 120 captions\n" in log and "dev: 10 images, 50 captions\n" in log
    assert "so few images of dev choose the best epoch by chance, take 50 or more\n" in log
    assert re.search(r"ESL-A, region features, BERT: [\d,]+ parameters, on cpu, 5 steps per epoch\n", log)
    assert log.count("f30k dev ") == log.count("R@5") // 2 == 1  # one table, with a line of each epoch
    assert re.findall(r" epoch (\d) .* \|  [\d.]+   \d+ s", log) == ["0", "1"]
    assert f"{content(esl_a / 'checkpoint.pth')['best_rsum']:.1f}" in log.splitlines()[-1]


def test_config_and_metrics_tell_how_a_run_was_made_and_how_it_went(sample, esl_a):
    config = json.loads((esl_a / "config.json").read_text())
    assert config["settings"] == content(esl_a / "checkpoint.pth")["settings"]
    files = {"train_caps.txt", "train_ims.npy", "dev_ids.txt", "model.safetensors"}
    assert files <= {Path(file["path"]).name for file in config["files"]}
    sizes = {file["path"]: file["bytes"] for file in config["files"]}
    assert sizes[str(sample / "f30k/precomp/train_ims.npy")] == 24 * 36 * 32 * 4 + 128
    assert "train.py" in config["command"] and len(config["starts"]) == 1
    log = (esl_a / "log" / "train.log").read_text(encoding="utf-8")
    assert f"command: {config['command']}\n" in log and "train_ims.npy 110.7 kB " in log
    lines = [json.loads(line) for line in (esl_a / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [2, 4, 5, 7, 9, 10]
    assert all(line["rates"] == {"head": 5e-4, "text": 5e-5} for line in lines if "loss" in line)
    rsums = {line["step"]: line["rsum"] for line in lines if "rsum" in line}
    assert rsums == pytest.approx(dict(scalars(esl_a / "log")["dev/rsum"]), rel=1e-6)


def test_model_best_is_the_epoch_with_the_best_rsum(esl_a):
    rsums = [value for _, value in scalars(esl_a / "log")["dev/rsum"]]
    best = content(esl_a / "model_best.pth")
    assert best["best_rsum"] == pytest.approx(max(rsums), rel=1e-6)
    assert best["epoch"] == 1 + rsums.index(max(rsums))


def test_validating_within_an_epoch_is_logged_and_changes_no_weight(sample, esl_a, tmp_path):
    folder = train(sample, tmp_path / "run", "--val_step", 2)
    steps = [step for step, _ in scalars(folder / "log")["dev/rsum"]]
    assert steps == [2, 4, 5, 6, 8, 10]  # 10 once: both fall together
    assert run_differences(folder / "checkpoint.pth", esl_a / "checkpoint.pth") == []


def test_the_validation_split_and_the_log_folder_can_be_named(sample, tmp_path):
    flags = ("--val_split", "test", "--logger_name", tmp_path / "elsewhere", "--num_epochs", 1)
    train(sample, tmp_path / "run", *flags, "--similarity", "vse_infty")
    assert {name.split("/")[0] for name in scalars(tmp_path / "elsewhere")} == {"train", "test"}
    assert (tmp_path / "elsewhere" / "train.log").is_file() and not (tmp_path / "run" / "log").exists()


# ---- the same run again ----


def test_two_runs_with_one_seed_write_identical_weights_with_0_and_2_workers(sample, esl_a, tmp_path):
    again = train(sample, tmp_path / "again", "--workers", 2)
    for name in ("checkpoint.pth", "model_best.pth"):
        assert run_differences(again / name, esl_a / name) == []


def test_another_seed_trains_another_model(sample, esl_a, tmp_path):
    folder = train(sample, tmp_path / "run", "--seed", 1, "--num_epochs", 1)
    losses = [[loss for _, loss in scalars(each / "log")["train/loss"]][:STEPS] for each in (folder, esl_a)]
    assert all(one != other for one, other in zip(*losses, strict=True))


def in_parts(sample: Path, folder: Path, *flags) -> Path:
    """A run of two epochs that stops after the first and is resumed."""
    train(sample, folder, *flags, "--num_epochs", 1)
    return train(sample, folder, *flags, "--resume", folder / "checkpoint.pth")


def assert_same_run(parts: Path, whole: Path) -> None:
    for name in ("checkpoint.pth", "model_best.pth"):
        assert run_differences(parts / name, whole / name) == []
    assert content(parts / "checkpoint.pth")["step"] == 2 * STEPS
    assert not list(parts.glob("earlier_*"))
    one, other = scalars(parts / "log"), scalars(whole / "log")
    for name in ("train/loss", "train/lr", "train/gradient_norm", "dev/rsum"):
        assert one[name] == other[name]


@pytest.mark.parametrize("similarity", HEADS)
def test_resuming_equals_never_having_stopped(sample, runs, tmp_path, similarity):
    parts = in_parts(sample, tmp_path / "parts", "--similarity", similarity)
    assert_same_run(parts, runs(similarity))
    assert "note:" not in (parts / "log" / "train.log").read_text(encoding="utf-8")


def test_resuming_with_sgd_and_accumulated_batches_equals_never_having_stopped(sample, tmp_path):
    flags = ("--optim", "sgd", "--accumulate", 3, "--lr_update", 1, "--similarity", "vse_infty")
    assert_same_run(in_parts(sample, tmp_path / "parts", *flags), train(sample, tmp_path / "whole", *flags))


def test_the_learning_rate_after_resuming_past_lr_update_is_a_tenth(sample, esl_a, tmp_path):
    flags = ("--lr_update", 1, "--num_epochs", 3, "--resume", esl_a / "checkpoint.pth")
    train(sample, tmp_path / "second", *flags)
    rates = dict(scalars(tmp_path / "second" / "log")["train/lr"])
    assert list(rates) == list(range(2 * STEPS + 1, 3 * STEPS + 1))
    assert all(rate == pytest.approx(5e-5) for rate in rates.values())
    groups = content(tmp_path / "second" / "checkpoint.pth")["optimizer"]["param_groups"]
    assert {group["name"]: group["lr"] for group in groups} == pytest.approx({"head": 5e-5, "text": 5e-6})


def test_resuming_says_which_settings_differ(sample, esl_a, tmp_path):
    train(sample, tmp_path / "run", "--margin", 0.3, "--num_epochs", 3, "--resume", esl_a / "checkpoint.pth")
    log = (tmp_path / "run" / "log" / "train.log").read_text(encoding="utf-8")
    assert re.search(r"--margin was 0\.2 .* is 0\.3 now", log) and "--num_epochs was" not in log


def test_reset_start_epoch_takes_the_weights_alone(sample, esl_a, tmp_path):
    flags = ("--resume", esl_a / "model_best.pth", "--reset_start_epoch", "--num_epochs", 1)
    folder = train(sample, tmp_path / "run", *flags, "--learning_rate", 1e-12)
    now, before = content(folder / "checkpoint.pth"), content(esl_a / "model_best.pth")
    assert (now["epoch"], now["step"]) == (1, STEPS)
    for name, weight in before["model"].items():
        if not name.endswith(("running_mean", "running_var", "num_batches_tracked")):
            assert torch.allclose(now["model"][name], weight, atol=1e-6), name


def test_a_second_run_into_the_same_folder_moves_the_earlier_checkpoints_aside(sample, esl_a, tmp_path, capsys):
    folder = Path(shutil.copytree(esl_a, tmp_path / "run"))
    first = {name: (folder / name).read_bytes() for name in ("checkpoint.pth", "model_best.pth")}
    train(sample, folder, "--num_epochs", 1)
    assert "earlier_1" in capsys.readouterr().err
    assert {name: (folder / "earlier_1" / name).read_bytes() for name in first} == first
    assert (folder / "earlier_1" / "metrics.jsonl").read_text() == (esl_a / "metrics.jsonl").read_text()
    assert all((folder / name).read_bytes() != first[name] for name in first)
    weights = folder / "checkpoint.pth"
    train(sample, folder, "--num_epochs", 1, "--resume", weights, "--reset_start_epoch")
    assert sorted(path.name for path in folder.glob("earlier_*")) == ["earlier_1", "earlier_2"]


def test_bad_input_leaves_the_checkpoints_of_an_earlier_run_in_place(sample, esl_a, tmp_path, capsys):
    folder = Path(shutil.copytree(esl_a, tmp_path / "run"))
    before = {path.name: path.read_bytes() for path in folder.glob("*.pth")}
    for flags in (("--bert_path", tmp_path), ("--resume", esl_a / "checkpoint.pth", "--optim", "sgd")):
        error_line(script.main, train_arguments(sample, folder, *flags), capsys)
        assert {path.relative_to(folder).name: path.read_bytes() for path in folder.glob("**/*.pth")} == before
        assert not list(folder.glob("earlier_*"))


def test_a_finished_run_that_is_resumed_trains_nothing(sample, tmp_path, esl_a, capsys):
    train(sample, tmp_path / "run", "--resume", esl_a / "checkpoint.pth")
    output = capsys.readouterr().out
    assert "nothing to train" in output
    assert output.splitlines()[-1].endswith(f"in the run of {esl_a / 'checkpoint.pth'}")
    assert not (tmp_path / "run" / "checkpoint.pth").exists()


def test_a_released_file_goes_on_with_the_bert_it_was_trained_with_and_no_other(sample, tmp_path, capsys):
    bert = bert_with(sample, tmp_path / "bert", num_attention_heads=4)  # of 32; a released file doesn't say it
    first, released = train(sample, tmp_path / "first", "--bert_path", bert, "--num_epochs", 1), tmp_path / "r.pth"
    convert(first / "checkpoint.pth", released, "released", {"bert_path": bert})
    flags = ("--resume", released, "--reset_start_epoch", "--num_epochs", 1, "--learning_rate", 1e-12)
    now = content(train(sample, tmp_path / "second", *flags, "--bert_path", bert) / "checkpoint.pth")
    assert now["config"]["text_options"]["num_attention_heads"] == 4 and (now["epoch"], now["step"]) == (1, STEPS)
    for name, weight in content(first / "checkpoint.pth")["model"].items():
        if not name.endswith(("running_mean", "running_var", "num_batches_tracked")):
            assert torch.allclose(now["model"][name], weight, atol=1e-6), name

    other = bert_with(sample, tmp_path / "other", intermediate_size=512)
    message = error_line(script.main, train_arguments(sample, tmp_path / "third", *flags, "--bert_path", other), capsys)
    assert message.startswith(str(released))
    assert "BERT intermediate_size 256" in message and "BERT intermediate_size 512 was asked for" in message
    assert not list((tmp_path / "third").glob("*.pth"))


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--val_split", "test"), "--val_split"),
        (("--data_path", "{copy}"), "--data_path"),
        (("--data_path", "{relative}"), None),
        (("--data_path", "{link}"), None),
    ],
)
def test_the_best_rsum_counts_on_the_data_it_was_measured_on_alone(sample, esl_a, tmp_path, monkeypatch, flags, said):
    helpers.copy_precomp(sample, tmp_path)
    (tmp_path / "link").symlink_to(sample / "f30k")
    places = {"copy": tmp_path / "f30k", "relative": os.path.relpath(sample / "f30k"), "link": tmp_path / "link"}
    kept = []
    monkeypatch.setattr(job, "fit", lambda trainer, loader, run, validate: kept.append(run.best_rsum))
    flags = [flag.format(**places) for flag in flags]
    train(sample, tmp_path / "run", "--resume", esl_a / "checkpoint.pth", "--num_epochs", 3, *flags)
    before = content(esl_a / "checkpoint.pth")["best_rsum"]
    assert before > 0 and kept == [-1.0 if said else before]
    log = (tmp_path / "run" / "log" / "train.log").read_text(encoding="utf-8")
    assert log.count("note: ") == (1 if said else 0) == log.count(f"note: {said} changed, so the best RSUM starts anew")


# ---- the recipe ----


@pytest.fixture
def assembled(sample, tmp_path, monkeypatch):
    """`assembled(*flags)` is the trainer that train.py would train with these flags."""

    def assemble(*flags) -> Trainer:
        found = []
        monkeypatch.setattr(job, "fit", lambda trainer, *_: found.append(trainer))
        train(sample, tmp_path / "run", *flags)
        return found[0]

    return assemble


def test_each_epoch_gets_its_learning_rate_negatives_and_fixed_blocks(assembled):
    flags = helpers.grid_flags("--num_epochs", 6, "--embedding_warmup_epochs", 1, "--backbone_warmup_epochs", 1)
    rates = ("--lr_update", 4, "--backbone_lr_factor", 0.5)
    trainer = assembled(*flags, "--vse_mean_warmup_epochs", 2, *rates)
    phases = [trainer.schedule.at(epoch, 1, STEPS) for epoch in range(6)]
    assert [phase.hardest for phase in phases] == [False, False, True, True, True, True]
    assert [phase.fixed_blocks for phase in phases] == [4, 3, 2, 1, 0, 0]
    assert [phase.learning_rate for phase in phases] == [1, 1, 1, 1, 0.1, 0.1]
    assert [phase.loss_scale for phase in phases] == [1, 0.2, 1, 1, 1, 1]
    rates = {group["name"]: group["base_lr"] for group in trainer.optimizer.param_groups}
    assert rates == pytest.approx({"head": 5e-4, "text": 5e-5, "backbone": 2.5e-4})


def test_region_features_know_no_warm_up_of_a_backbone(assembled):
    trainer = assembled("--embedding_warmup_epochs", 2, "--backbone_warmup_epochs", 1, "--max_violation")
    phases = [trainer.schedule.at(epoch, 0, STEPS) for epoch in range(4)]
    assert all(phase == (1.0, True, 1.0, 0) for phase in phases)


def test_flags_of_a_step_reach_the_trainer_and_kernels_and_scoring_memory_the_head(assembled):
    flags = ("--grad_clip", 0.5, "--accumulate", 4, "--seed", 9, "--precision", "bf16", "--margin", 0.7)
    trainer = assembled(*flags, "--weight_decay", 0.03, "--kernels", "torch", "--score_memory", 3)
    assert [group["weight_decay"] for group in trainer.optimizer.param_groups] == [0.03] * 2
    assert (trainer.grad_clip, trainer.accumulate, trainer.seed) == (0.5, 4, 9)
    assert trainer.runner.precision == "bf16" and trainer.criterion.margin == 0.7
    assert trainer.runner.model.similarity.backend == Backend("torch", 3 << 20)  # in bytes
    trainer = assembled()
    assert [group["weight_decay"] for group in trainer.optimizer.param_groups] == [1e-4] * 2
    assert (trainer.grad_clip, trainer.accumulate, trainer.seed) == (2.0, 1, 0)
    assert trainer.runner.precision == "float32" and trainer.criterion.margin == 0.2
    assert trainer.runner.model.similarity.backend == Backend("auto", None)


def test_every_choice_of_kernels_trains_to_the_same_losses_and_gradients(sample, tmp_path):
    flags = ("--num_epochs", 1, "--batch_size", 120)
    events = {
        kernels: scalars(train(sample, tmp_path / kernels, *flags, "--kernels", kernels) / "log") for kernels in KERNELS
    }
    for kernels in KERNELS[1:]:
        for name in ("train/loss", "train/gradient_norm"):
            found, expected = ([value for _, value in events[each][name]] for each in (kernels, KERNELS[0]))
            np.testing.assert_allclose(found, expected, rtol=1e-5, err_msg=f"{kernels}: {name}")


def test_accumulated_batches_train_as_whole_ones_do(sample, tmp_path):
    bert = bert_with(sample, tmp_path / "bert", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    flags = ("--bert_path", bert, "--num_epochs", 1)
    losses = [
        [value for _, value in scalars(train(sample, tmp_path / name, *flags, *more) / "log")["train/loss"]]
        for name, more in (("whole", ()), ("chunks", ("--accumulate", 3)))
    ]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-4)


def test_grid_training_from_raw_images_repeats_and_resumes_with_0_and_2_workers(sample, tmp_path):
    flags = helpers.grid_flags("--num_epochs", 2, "--embedding_warmup_epochs", 1, "--lr_update", 1)
    whole = train(sample, tmp_path / "whole", *flags)
    train(sample, tmp_path / "parts", *flags, "--workers", 2, "--num_epochs", 1)
    resume = ("--resume", tmp_path / "parts" / "checkpoint.pth")
    parts = train(sample, tmp_path / "parts", *flags, "--workers", 2, *resume)
    assert run_differences(parts / "checkpoint.pth", whole / "checkpoint.pth") == []
    groups = content(whole / "checkpoint.pth")["optimizer"]["param_groups"]
    expected = {"head": 5e-5, "text": 5e-6, "backbone": 5e-7}
    assert {group["name"]: group["lr"] for group in groups} == pytest.approx(expected)


def test_the_backbone_is_frozen_during_embedding_warm_up_and_trains_afterwards(sample, tmp_path):
    flags = helpers.grid_flags("--embedding_warmup_epochs", 1, "--backbone_warmup_epochs", 1, "--backbone_lr_factor", 1)
    file, models = tmp_path / "run" / "checkpoint.pth", []
    for more in (("--num_epochs", 1), ("--num_epochs", 2, "--resume", file)):
        train(sample, tmp_path / "run", *flags, *more)
        models.append(content(file)["model"])
    changed = {
        part: any(not torch.equal(models[0][name], models[1][name]) for name in models[0] if f"backbone.{part}" in name)
        for part in ("conv1", "layer3", "layer4")
    }
    assert changed == {"conv1": False, "layer3": False, "layer4": True}


# ---- bad input ----


def keep_lines(file: Path, count: int) -> None:
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:count]))


def change_line(file: Path, number: int, line: str) -> None:
    lines = file.read_text().splitlines()
    lines[number - 1] = line
    file.write_text("\n".join(lines) + "\n")


def change_array(file: Path, change) -> None:
    np.save(file, change(np.load(file)))


def value_at(value: float, row: int):
    def change(array: np.ndarray) -> np.ndarray:
        array[row, 3, 5] = value
        return array

    return change


BROKEN_DATA = {
    "features file missing": (
        lambda d: (d / "dev_ims.npy").unlink(),
        ["no features file dev_ims.npy", "train_ims.npy"],
    ),
    "features file misnamed": (
        lambda d: (d / "train_ims.npy").rename(d / "training_ims.npy"),
        ["no features file train_ims.npy", "training_ims.npy"],
    ),
    "captions file missing": (lambda d: (d / "train_caps.txt").unlink(), ["no captions file train_caps.txt", "dev"]),
    "captions no multiple of images": (
        lambda d: ((d / "train_ids.txt").unlink(), keep_lines(d / "train_caps.txt", 119)),
        ["train_", "119 captions", "24"],
    ),
    "ids of another number": (lambda d: keep_lines(d / "train_ids.txt", 23), ["train_", "23 ids", "120 captions"]),
    "id that is no number": (lambda d: change_line(d / "dev_ids.txt", 7, "seven"), ["dev_ids.txt, line 7", "seven"]),
    "features of wrong rank": (
        lambda d: change_array(d / "dev_ims.npy", lambda a: a[:, 0]),
        ["dev_ims.npy", "(50, 32)", "expected"],
    ),
    "features of wrong size": (
        lambda d: change_array(d / "train_ims.npy", lambda a: a[..., :20]),
        ["train_ims.npy", "size 20", "32"],
    ),
    "features of wrong type": (
        lambda d: change_array(d / "train_ims.npy", lambda a: a.astype(np.float64)),
        ["train_ims.npy", "float64", "float32"],
    ),
    "features of another number": (
        lambda d: change_array(d / "train_ims.npy", lambda a: a[:20]),
        ["train_", "20 feature rows", "24 images"],
    ),
    "truncated features": (
        lambda d: (d / "train_ims.npy").write_bytes((d / "train_ims.npy").read_bytes()[:-100]),
        ["train_ims.npy", "truncated", str(24 * 36 * 32 * 4 + 128)],
    ),
    "no features at all in the file": (lambda d: (d / "dev_ims.npy").write_bytes(b""), ["dev_ims.npy", ".npy array"]),
    "NaN in training features": (
        lambda d: change_array(d / "train_ims.npy", value_at(np.nan, 11)),
        ["train_ims.npy, row 11, region 3", "NaN"],
    ),
    "infinity in dev features": (
        lambda d: change_array(d / "dev_ims.npy", value_at(np.inf, 45)),
        ["dev_ims.npy, row 45, region 3", "infinity"],
    ),
    "mask of wrong shape": (
        lambda d: np.save(d / "train_mask.npy", np.ones((24, 35), bool)),
        ["train_mask.npy", "(24, 35)", "(24, 36)"],
    ),
    "empty captions file": (lambda d: (d / "train_caps.txt").write_text(""), ["train_caps.txt", "empty"]),
    "empty caption": (lambda d: change_line(d / "dev_caps.txt", 13, "  "), ["dev_caps.txt, line 13", "empty caption"]),
}


@pytest.mark.parametrize("case", BROKEN_DATA)
def test_broken_data_is_one_line_that_names_file_and_number(sample, tmp_path, capsys, case):
    damage, expected = BROKEN_DATA[case]
    damage(helpers.copy_precomp(sample, tmp_path))
    arguments = train_arguments(tmp_path, tmp_path / "run", "--bert_path", sample / "bert")
    message = error_line(script.main, arguments, capsys)
    for part in expected:
        assert part in message


BAD_FLAGS = {
    "embed_size below 256": (["--embed_size", 255], ["--embed_size is 255", "256"]),
    "kernel_size too large": (["--kernel_size", 3], ["--kernel_size", "6561"]),
    "data set that is no name": (["--data_name", "../f30k"], ["--data_name", "../f30k", "coco", "f30k", "plain name"]),
    "unknown split": (["--val_split", "val"], ["'val'", "dev", "test"]),
    "unknown head": (["--similarity", "clip"], ["--similarity", "clip", "esl_a"]),
    "number that is none": (["--batch_size", "many"], ["--batch_size", "many"]),
    "negative number": (["--learning_rate", "-1"], ["--learning_rate", "-1"]),
    "unknown flag": (["--batchsize", 3], ["--batchsize"]),
    "no data folder": (["--data_path", "{tmp}/none"], ["{tmp}/none", "precomp", "f30k_precomp"]),
    "no BERT": (["--bert_path", "{tmp}/bert"], ["{tmp}/bert", "--bert_path"]),
    "unknown device": (["--device", "gpu"], ["--device", "'gpu'"]),
    "device that is not there": (["--device", "cuda:99"], ["--device", "cuda:99"]),
    "no checkpoint": (["--resume", "{tmp}/checkpoint.pth"], ["{tmp}/checkpoint.pth", "no such file"]),
    "no checkpoint but text": (["--resume", __file__], [__file__, "checkpoint"]),
    "checkpoint of another head": (
        ["--resume", "{run}/checkpoint.pth", "--similarity", "esl_h"],
        ["{run}/checkpoint.pth", "esl_a", "esl_h"],
    ),
    "checkpoint of another size": (
        ["--resume", "{run}/checkpoint.pth", "--embed_size", 260],
        ["{run}/checkpoint.pth", "embed_size 256", "embed_size 260"],
    ),
    "checkpoint without optimizer": (
        ["--resume", "{run}/model_best.pth"],
        ["{run}/model_best.pth", "--reset_start_epoch"],
    ),
    "checkpoint of another optimizer": (["--resume", "{run}/checkpoint.pth", "--optim", "sgd"], ["--optim"]),
    "output folder is a file": (["--model_name", "{tmp}/file"], ["{tmp}/file", "cannot be written", "--model_name"]),
    "output folder below a file": (["--model_name", "{tmp}/file/run"], ["{tmp}/file/run", "cannot be written"]),
    "log folder below a file": (["--logger_name", "{tmp}/file/log"], ["{tmp}/file/log", "cannot be written"]),
    "no raw images": (
        ["--precomp_enc_type", "backbone", "--backbone_source", "tiny", "--data_path", "{tmp}/f30k"],
        ["{tmp}/f30k", "flickr30k-images"],
    ),
    "no detector weights": (
        ["--precomp_enc_type", "backbone", "--backbone_path", "{tmp}/weights.pth"],
        ["{tmp}/weights.pth", "no such file"],
    ),
    "image list with a missing file": (
        ["--precomp_enc_type", "backbone", "--backbone_source", "tiny", "--image_list", "{tmp}/file"],
        ["nowhere.jpg", "missing"],
    ),
}


def grid_arguments(sample: Path, folder: Path, *flags) -> list[str]:
    """`train_arguments` without the size of region features, of which a grid model says that it has no effect."""
    arguments = train_arguments(sample, folder, *flags)
    place = arguments.index("--img_dim")
    return arguments[:place] + arguments[place + 2 :]


@pytest.mark.parametrize("case", BAD_FLAGS)
def test_bad_flags_are_one_line_that_names_them(sample, esl_a, tmp_path, capsys, monkeypatch, case):
    monkeypatch.setattr(job, "fit", lambda *_: pytest.fail("training started"))
    flags, expected = BAD_FLAGS[case]
    (tmp_path / "file").write_text("nowhere.jpg\n")
    if case == "no raw images":
        helpers.copy_precomp(sample, tmp_path)
    places = {"tmp": tmp_path, "run": esl_a}
    flags = [str(flag).format(**places) for flag in flags]
    arguments_of = grid_arguments if "--precomp_enc_type" in flags else train_arguments
    message = error_line(script.main, arguments_of(sample, tmp_path / "run", *flags), capsys)
    for part in expected:
        assert part.format(**places) in message
    assert not list((tmp_path / "run").glob("*.pth"))


def test_a_tokenizer_of_another_model_is_refused(sample, tmp_path, capsys):
    bert = bert_with(sample, tmp_path / "bert")
    tokenizer = json.loads((bert / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    size = len(vocabulary)
    vocabulary |= {f"extra{number}": size + number for number in range(3)}
    (bert / "tokenizer.json").write_text(json.dumps(tokenizer))
    (bert / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    assert load_tokenizer(bert).vocab_size == size + 3
    message = error_line(script.main, train_arguments(sample, tmp_path / "run", "--bert_path", bert), capsys)
    assert f"{size + 3} entries" in message and str(size) in message


def test_a_missing_raw_image_is_found_before_training_and_named(sample, tmp_path, capsys):
    helpers.copy_precomp(sample, tmp_path)
    for name in ("id_mapping.json", "flickr30k-images"):
        (tmp_path / "f30k" / name).symlink_to(sample / "f30k" / name)
    mapping = json.loads((sample / "f30k" / "id_mapping.json").read_text())
    (tmp_path / "f30k" / "id_mapping.json").unlink()
    image_id = (sample / "f30k/precomp/train_ids.txt").read_text().split()[4]
    (tmp_path / "f30k" / "id_mapping.json").write_text(json.dumps(mapping | {image_id: "gone.jpg"}))
    arguments = grid_arguments(tmp_path, tmp_path / "run", *helpers.grid_flags("--bert_path", sample / "bert"))
    assert "gone.jpg" in error_line(script.main, arguments, capsys)


def test_captions_beyond_berts_positions_are_cut_with_one_warning(sample, tmp_path, capsys, monkeypatch):
    precomp = helpers.copy_precomp(sample, tmp_path)
    for number in (2, 5):
        change_line(precomp / "train_caps.txt", number, "a red circle " * 300)
    found = []
    monkeypatch.setattr(job, "fit", lambda trainer, loader, *_: found.append((trainer, loader)))
    train(tmp_path, tmp_path / "run", "--bert_path", sample / "bert", "--batch_size", 120)
    stderr = capsys.readouterr().err
    assert stderr.count("warning") == 1 and "2 of 120 captions cut to 512" in stderr
    ((trainer, loader),) = found
    captions = next(iter(loader)).captions
    longest = np.argsort(captions.lengths)[-2:]
    assert 400 < int(captions.lengths.max()) <= 512  # the noise of training removes some words
    encoded = trainer.runner.encode_captions(Tokens(captions.ids[longest], captions.lengths[longest]))
    assert encoded.features.isfinite().all()


def test_bad_input_is_one_line_and_code_2_in_a_process_of_its_own(sample, tmp_path):
    precomp = helpers.copy_precomp(sample, tmp_path)
    change_array(precomp / "train_ims.npy", value_at(np.nan, 11))
    arguments = train_arguments(tmp_path, tmp_path / "run", "--bert_path", sample / "bert", "--workers", 1)
    done = in_a_process(tmp_path, script.main, arguments)
    assert done.returncode == 2
    assert "train_ims.npy, row 11" in helpers.one_error(done.stderr)


@pytest.mark.parametrize("refused", ["no captions", "a head that does not fit", "another checkpoint"])
def test_a_refused_run_leaves_no_file_and_no_folder(sample, esl_a, tmp_path, capsys, refused):
    flags = {
        "no captions": ("--val_split", "missing"),
        "a head that does not fit": ("--embed_size", 16),
        "another checkpoint": ("--resume", esl_a / "model_best.pth"),
    }[refused]
    error_line(script.main, train_arguments(sample, tmp_path / "runs" / "new", *flags), capsys)
    assert not list(tmp_path.iterdir())


# ---- crashes ----


def test_a_full_disk_stops_no_run_that_saves_again_and_keeps_the_best_model(
    sample, esl_a, tmp_path, capsys, monkeypatch
):
    """The disk is full while the better first epoch is saved, and has room again for the second."""
    save, calls, found = torch.save, [], {}

    def full(content, path, *rest):
        calls.append(path)
        if len(calls) == 2:  # after the best model
            Path(path).write_bytes(b"PK half of it")
            raise OSError(28, "No space left on device")
        found.setdefault(len(calls), {name.name for name in (tmp_path / "run").glob("*.pth")})
        return save(content, path, *rest)

    monkeypatch.setattr(torch, "save", full)
    train(sample, tmp_path / "run")
    output = capsys.readouterr().out
    assert output.count("warning: ") == 1 and f"step {STEPS} was not saved" in output and "No space left" in output
    assert found[3] == set()  # neither of the two files without the other
    for name in ("checkpoint.pth", "model_best.pth"):
        assert run_differences(tmp_path / "run" / name, esl_a / name) == []
    assert {path.name for path in (tmp_path / "run").iterdir()} == FILES - {"checkpoint_previous.pth"}


def test_a_disk_that_stays_full_leaves_the_earlier_checkpoint_and_ends_the_run_with_one_line(
    sample, tmp_path, capsys, monkeypatch
):
    save, calls = torch.save, []

    def full(content, path, *rest):
        calls.append(path)
        if len(calls) <= 2:
            return save(content, path, *rest)
        Path(path).write_bytes(b"PK half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    message = error_line(script.main, train_arguments(sample, tmp_path / "run"), capsys)
    assert f"step {2 * STEPS} was not saved" in message and "No space left" in message
    for name in ("checkpoint.pth", "model_best.pth"):
        assert read_checkpoint(tmp_path / "run" / name).epoch == 1
    assert {path.name for path in (tmp_path / "run").iterdir()} == FILES - {"checkpoint_previous.pth"}


def test_a_crash_in_the_middle_of_an_epoch_leaves_a_checkpoint_to_go_on_from(sample, esl_a, tmp_path, monkeypatch):
    steps = Trainer.steps

    def crash(*arguments):
        for step in steps(*arguments):
            if step.number == STEPS + 2:
                raise ZeroDivisionError
            yield step

    monkeypatch.setattr(Trainer, "steps", crash)
    with pytest.raises(ZeroDivisionError):
        train(sample, tmp_path / "run")
    monkeypatch.undo()
    train(sample, tmp_path / "run", "--resume", tmp_path / "run" / "checkpoint.pth")
    assert run_differences(tmp_path / "run" / "checkpoint.pth", esl_a / "checkpoint.pth") == []


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_what_was_written(sample, tmp_path, capsys, monkeypatch):
    step = Trainer.step

    def diverge(trainer, batch, phase):
        diverged = phase.learning_rate < 1  # in the second epoch
        return torch.tensor([math.nan, 1.0]) if diverged else step(trainer, batch, phase)

    save, written, flags = Run.save, {}, ("--lr_update", 1, "--similarity", "vse_infty")
    folder = tmp_path / "run"

    def remember(*arguments):
        save(*arguments)
        written.update({path.name: path.read_bytes() for path in folder.glob("*.pth")})

    monkeypatch.setattr(Trainer, "step", diverge)
    monkeypatch.setattr(Run, "save", remember)
    message = error_line(script.main, train_arguments(sample, folder, *flags), capsys)
    assert "3 steps in a row were skipped" in message and "the loss is nan" in message
    assert set(written) == {"checkpoint.pth", "model_best.pth"}
    assert {path.name: path.read_bytes() for path in folder.glob("**/*.pth")} == written
    assert read_checkpoint(folder / "checkpoint.pth").epoch == 1


def test_a_learning_rate_far_too_large_stops_with_advice_and_leaves_no_checkpoint(sample, tmp_path, capsys):
    flags = ("--learning_rate", 9e15, "--grad_clip", 0, "--similarity", "vse_infty")
    message = error_line(script.main, train_arguments(sample, tmp_path / "run", *flags), capsys)
    assert "the loss is nan" in message and "lower --learning_rate or --grad_clip" in message
    assert not list((tmp_path / "run").glob("**/*.pth"))


# ---- the command line ----


def test_help_mentions_every_flag_of_the_design(capsys):
    with pytest.raises(SystemExit) as stop:
        script.main(["--help"])
    text = capsys.readouterr().out
    assert stop.value.code == 0
    for flag in RELEASED_FLAGS:
        assert re.search(rf"^  --{flag}\b", text, re.M), flag
    assert "{esl_a,esl_h,vse_infty,esl_clip_a,esl_clip_h,cosine}" in text


def test_defaults_follow_the_data_set_and_the_head():
    args = script.parse(["--data_name", "coco", "--similarity", "esl_h"])
    assert (args.data_path, args.model_name) == ("data/coco", "runs/coco_esl_h")
    assert args.logger_name == "runs/coco_esl_h/log"
