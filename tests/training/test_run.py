"""A run's checkpoints: saved together, mended after a crash, found again, and moved aside for another run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lib.checkpoint import read_checkpoint
from lib.distributed.runner import Runner
from lib.model import build_model
from lib.training import run as module
from lib.training.engine import Trainer
from lib.training.losses import HingeTriplet
from lib.training.optim import build_optimizer
from lib.training.progress import EpochLog
from lib.training.run import Run, move_aside, newest_checkpoint
from lib.training.schedule import Schedule
from lib.training.tracking import Tracker
from tests.helpers import differences, run_differences, small_config

NAMES = ("checkpoint.pth", "model_best.pth")


@pytest.fixture(scope="module")
def trainer() -> Trainer:
    model, loss = build_model(small_config("vse_infty")), HingeTriplet()
    return Trainer(Runner(model, [torch.device("cpu")]), loss, build_optimizer(model, loss, "adam", 1e-3), Schedule())


def saved(folder: Path, trainer: Trainer, step: int, best: int, rsum: float = 200.0) -> Run:
    """A run that saved at the end of an epoch, whose weights tell the step."""
    run = Run(folder, {}, epoch=step // 5, step=step, best_rsum=rsum, best_step=best)
    with torch.no_grad():
        trainer.runner.model.text_encoder.linear.bias.fill_(step)
    run.save(trainer, improved=step == best)
    return run


def weights_of(path: Path) -> float:
    return float(read_checkpoint(path).model["text_encoder.linear.bias"][0])


# ---- saving ----


def test_the_checkpoint_before_the_latest_is_kept(tmp_path, trainer):
    for step in (5, 10, 15):
        saved(tmp_path, trainer, step, best=5)
    steps = {path.name: read_checkpoint(path).step for path in tmp_path.iterdir()}
    assert steps == {"checkpoint.pth": 15, "checkpoint_previous.pth": 10, "model_best.pth": 5}


def test_a_save_within_an_epoch_holds_its_totals_and_random_states(tmp_path, trainer):
    run = Run(tmp_path, {})
    totals = {"done": 3, "pairs": 24, "loss": 1.5}
    with EpochLog(Tracker(None), 0, 5, position=totals) as log:
        run.save_within(trainer, log)
    position = read_checkpoint(tmp_path / "checkpoint.pth").position
    assert {name: position[name] for name in totals} == totals
    assert torch.equal(position["random"][0]["torch"], torch.get_rng_state())
    assert not (tmp_path / "model_best.pth").exists()


def test_the_best_model_that_found_no_room_is_written_with_the_next_save_as_it_was(tmp_path, trainer, monkeypatch):
    save = torch.save
    monkeypatch.setattr(torch, "save", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    run = saved(tmp_path, trainer, 5, best=5)
    assert "step 5 was not saved" in run.failure and not list(tmp_path.iterdir())
    monkeypatch.setattr(torch, "save", save)
    with torch.no_grad():
        trainer.runner.model.text_encoder.linear.bias.fill_(7)
    run.step = 7
    run.save(trainer)
    assert run.failure is None
    assert [weights_of(tmp_path / name) for name in NAMES] == [7, 5]
    assert [read_checkpoint(tmp_path / name).step for name in NAMES] == [7, 5]


# ---- a crash between the files of a save ----


@pytest.mark.parametrize("replaced", [0, 1, 2, 3])
def test_after_a_crash_between_any_two_files_the_best_is_what_the_newest_checkpoint_says(
    tmp_path, trainer, monkeypatch, replaced
):
    saved(tmp_path, trainer, 5, best=5)
    replace, calls = module.os.replace, []

    def crash(*paths):
        calls.append(paths)
        if len(calls) > replaced:
            raise MemoryError
        replace(*paths)

    monkeypatch.setattr(module.os, "replace", crash)
    if replaced < 3:
        with pytest.raises(MemoryError):
            saved(tmp_path, trainer, 10, best=10, rsum=300.0)
    else:
        saved(tmp_path, trainer, 10, best=10, rsum=300.0)
    monkeypatch.undo()
    checkpoint, run = newest_checkpoint(tmp_path, {}), Run(tmp_path, {})
    run.mend(checkpoint)
    best = read_checkpoint(tmp_path / "model_best.pth")
    assert checkpoint.step == (10 if replaced >= 2 else 5)
    assert best.step == checkpoint.best_step and best.best_rsum == checkpoint.best_rsum
    assert weights_of(tmp_path / "model_best.pth") == best.step and best.optimizer is None


def test_a_mended_best_model_is_the_one_that_was_to_be_written(tmp_path, trainer):
    saved(tmp_path, trainer, 5, best=5)
    (tmp_path / "model_best.pth").rename(tmp_path / "whole.pth")
    for damaged in (None, b"PK half of it"):
        if damaged:
            (tmp_path / "model_best.pth").write_bytes(damaged)
        Run(tmp_path, {}).mend(read_checkpoint(tmp_path / "checkpoint.pth"))
        assert run_differences(tmp_path / "model_best.pth", tmp_path / "whole.pth") == []


def test_a_best_model_of_an_earlier_step_is_left_as_it_is(tmp_path, trainer):
    saved(tmp_path, trainer, 5, best=5)
    saved(tmp_path, trainer, 10, best=5)
    before = (tmp_path / "model_best.pth").read_bytes()
    Run(tmp_path, {}).mend(read_checkpoint(tmp_path / "checkpoint.pth"))
    assert (tmp_path / "model_best.pth").read_bytes() == before


# ---- the newest good checkpoint ----


def test_a_damaged_checkpoint_is_passed_over_and_named(tmp_path, trainer, capsys):
    for step in (5, 10):
        saved(tmp_path, trainer, step, best=5)
    assert newest_checkpoint(tmp_path, {}).step == 10 and capsys.readouterr().err == ""
    latest = tmp_path / "checkpoint.pth"
    latest.write_bytes(latest.read_bytes()[:-5000])
    assert newest_checkpoint(tmp_path, {}).step == 5
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and f"passed over, since it can't be read: {latest}" in line
    (tmp_path / "checkpoint_previous.pth").write_bytes(b"")
    assert newest_checkpoint(tmp_path, {}) is None and capsys.readouterr().err.count("\n") == 2


def test_a_new_folder_has_no_checkpoint(tmp_path, capsys):
    assert newest_checkpoint(tmp_path, {}) is None and capsys.readouterr() == ("", "")


# ---- move_aside ----


def test_the_checkpoints_of_earlier_runs_move_into_folders_of_their_own_and_nothing_else_does(tmp_path, capsys):
    names = (*NAMES, "checkpoint_previous.pth")
    for number in (1, 2):
        for name in (*names, "notes.txt"):
            (tmp_path / name).write_text(f"{name} {number}")
        move_aside(tmp_path)
        assert f"an earlier run were moved to {tmp_path / f'earlier_{number}'}\n" in capsys.readouterr().err
    for number in (1, 2):
        aside = tmp_path / f"earlier_{number}"
        assert {p.name: p.read_text() for p in aside.iterdir()} == {name: f"{name} {number}" for name in names}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["earlier_1", "earlier_2", "notes.txt"]


def test_a_lone_checkpoint_moves_too_and_a_folder_without_one_stays_as_it_is(tmp_path, capsys):
    move_aside(tmp_path)
    assert not list(tmp_path.iterdir()) and capsys.readouterr() == ("", "")
    (tmp_path / "model_best.pth").write_text("best")
    move_aside(tmp_path)
    assert [p.name for p in (tmp_path / "earlier_1").iterdir()] == ["model_best.pth"]


def test_the_state_of_a_run_goes_through_its_file(tmp_path, trainer):
    run = saved(tmp_path, trainer, 10, best=10)
    checkpoint = read_checkpoint(tmp_path / "checkpoint.pth")
    assert [getattr(checkpoint, name) for name in module.STATE] == [getattr(run, name) for name in module.STATE]
    assert differences(checkpoint.optimizer, trainer.optimizer.state_dict()) == []
