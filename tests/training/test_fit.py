"""fit: what is kept, validated and said, with a trainer whose epochs are played."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from lib.checkpoint import read_checkpoint
from lib.evaluation.metrics import Recalls, Retrieval
from lib.training import fit as module
from lib.training.engine import Trainer
from lib.training.fit import fit, validation_steps
from lib.training.progress import EpochLog
from tests.training.small_runs import STEPS, run_in, trainer_of

LOADER = SimpleNamespace(batch_sampler=range(STEPS))
pytestmark = pytest.mark.usefixtures("single_thread")


def played(monkeypatch) -> Trainer:
    """A trainer whose epoch e writes e into a weight instead of training."""
    trainer = trainer_of()

    def steps(loader, epoch, number, done):
        with torch.no_grad():
            trainer.runner.model.text_encoder.linear.bias.fill_(epoch)
        for step in range(1, STEPS + 1):
            yield SimpleNamespace(number=number + step, done=step)

    monkeypatch.setattr(trainer, "steps", steps)
    monkeypatch.setattr(EpochLog, "add", lambda log, step: [])
    return trainer


def rsums(*values: float):
    """A validation that gives these RSUMs, one after another."""
    left = iter(values)

    def validate() -> Retrieval:
        rsum = next(left)
        return Retrieval(
            Recalls(rsum / 6, rsum / 6, rsum / 6, 4, 5.5), Recalls(rsum / 6, rsum / 6, rsum / 6, 2, 3), rsum
        )

    return validate


def epoch_in(path: Path) -> tuple[int, float]:
    """The number of epochs that a checkpoint says it has, and the epoch whose weights it holds."""
    checkpoint = read_checkpoint(path)
    return checkpoint.epoch, float(checkpoint.model["text_encoder.linear.bias"][0])


# ---- fit ----


@pytest.mark.parametrize(
    ("values", "best"), [((100, 200, 150), 1), ((200, 100, 150), 0), ((100, 150, 200), 2), ((200, 200, 200), 0)]
)
def test_the_latest_epoch_and_the_first_with_the_best_rsum_are_kept(tmp_path, monkeypatch, values, best):
    run = run_in(tmp_path, num_epochs=3)
    fit(played(monkeypatch), LOADER, run, rsums(*values))
    assert epoch_in(tmp_path / "checkpoint.pth") == (3, 2.0)
    assert epoch_in(tmp_path / "model_best.pth") == (best + 1, float(best))
    assert (run.epoch, run.step, run.best_rsum) == (3, 3 * STEPS, max(values))
    latest, kept = (read_checkpoint(tmp_path / name) for name in ("checkpoint.pth", "model_best.pth"))
    assert latest.optimizer is not None and kept.optimizer is None
    assert (latest.step, kept.step) == (3 * STEPS, (best + 1) * STEPS)
    assert latest.best_rsum == kept.best_rsum == max(values)
    assert latest.settings == kept.settings == run.settings


def test_an_epoch_without_a_hit_is_better_than_none(tmp_path, monkeypatch):
    fit(played(monkeypatch), LOADER, run_in(tmp_path, num_epochs=1), rsums(0.0))
    assert epoch_in(tmp_path / "model_best.pth") == (1, 0.0)


def test_every_validation_is_tracked_at_its_step_under_the_name_of_the_split(tmp_path, monkeypatch):
    run = run_in(tmp_path, num_epochs=1, val_split="test", val_step=2)
    fit(played(monkeypatch), LOADER, run, rsums(60.0, 120.0))
    figures = [(f"test/{d}_{name}", d) for d in ("i2t", "t2i") for name in ("r1", "r5", "r10", "medr", "meanr")]
    for step, rsum in ((2, 60.0), (STEPS, 120.0)):
        seen = {name: value for at, name, value in run.tracker.seen if at == step}
        assert set(seen) == {name for name, _ in figures} | {"test/rsum"}
        assert seen["test/rsum"] == rsum and seen["test/i2t_r1"] == rsum / 6
        assert (seen["test/i2t_meanr"], seen["test/t2i_medr"]) == (5.5, 2)


def test_validating_within_an_epoch_never_chooses_a_model(tmp_path, monkeypatch, lines):
    fit(played(monkeypatch), LOADER, run_in(tmp_path, val_step=2), rsums(500.0, 100.0, 600.0, 90.0))
    assert [line for line in lines if line.startswith("step")] == [
        "step 2  dev RSUM 500.0",
        "step 4  dev RSUM 600.0",
    ]  # 6 is the end of an epoch
    assert epoch_in(tmp_path / "model_best.pth") == (1, 0.0)
    assert read_checkpoint(tmp_path / "checkpoint.pth").best_rsum == 100.0


def test_several_validations_an_epoch_are_spread_evenly_and_each_may_choose_the_best(tmp_path, monkeypatch, lines):
    assert validation_steps(101, 4) == [26, 51, 76, 101] and validation_steps(7, 1) == [7]
    assert validation_steps(2, 4) == [1, 1, 1, 2]  # more than there are steps: each step once
    fit(played(monkeypatch), LOADER, run_in(tmp_path, validations=2), rsums(200.0, 100.0, 150.0, 90.0))
    assert [line for line in lines if line.startswith("step")] == [
        "step 2  dev RSUM 200.0   best so far",
        "step 5  dev RSUM 150.0",
    ]
    assert epoch_in(tmp_path / "model_best.pth") == (0, 0.0) and epoch_in(tmp_path / "checkpoint.pth") == (2, 1.0)
    assert read_checkpoint(tmp_path / "checkpoint.pth").best_rsum == 200.0


def test_a_run_has_one_table_with_a_line_of_each_epoch(tmp_path, monkeypatch, lines):
    clock = iter([10.0, 13.0, 20.0, 20.0])
    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    fit(played(monkeypatch), LOADER, run_in(tmp_path), rsums(120.0, 60.0))
    assert len(lines) == 4 and "image to text" in lines[0]
    assert lines[1].split()[:3] == ["f30k", "dev", "R@1"] and lines[1].endswith("RSUM")
    assert lines[2].startswith("epoch 0") and lines[2].endswith("120.0   3 s   best so far")
    assert lines[3].startswith("epoch 1") and lines[3].endswith("60.0   0 s")
    assert len({line.index("|") for line in lines}) == 1


def test_a_run_with_all_its_epochs_trains_nothing_and_says_so(tmp_path, monkeypatch, lines):
    run = run_in(tmp_path)
    run.epoch = 2
    fit(played(monkeypatch), LOADER, run, rsums())
    assert lines == ["nothing to train: the checkpoint has 2 epochs and --num_epochs is 2"]
    assert not list(tmp_path.iterdir())


def test_a_run_goes_on_from_its_epoch_step_and_best_rsum(tmp_path, monkeypatch):
    run = run_in(tmp_path, num_epochs=3)
    run.epoch, run.step, run.best_rsum = 1, 40, 150.0
    fit(played(monkeypatch), LOADER, run, rsums(140.0, 160.0))
    assert epoch_in(tmp_path / "model_best.pth") == epoch_in(tmp_path / "checkpoint.pth") == (3, 2.0)
    assert (run.step, run.best_rsum) == (40 + 2 * STEPS, 160.0)
