"""train.py that is stopped, killed and started again: it goes on by itself and ends as if nothing had happened."""

from __future__ import annotations

import copy
import multiprocessing
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import lib.commands.train as job
import train as script
from lib.checkpoint import read_checkpoint
from lib.checkpoint.native import sealed
from lib.datasets.loaders import EpochSampler
from lib.training.engine import Trainer
from lib.training.lock import locked
from tests import killing
from tests.helpers import content, error_line, run_differences, train, train_arguments
from tests.processes import in_a_process

pytestmark = pytest.mark.usefixtures("single_thread")
STEPS = 5  # per epoch of the sample: 120 captions in batches of 24


def stopped_at(monkeypatch, step: int, name: str = "SIGTERM", place: str = "step") -> None:
    """Let the process send itself a signal in the training step of that number, or in its first validation."""
    seen, where = 0, (Trainer, "step") if place == "step" else (job, "score_split")
    called = getattr(*where)

    def counting(*args, **kwargs):
        nonlocal seen
        seen += 1
        if seen == step:
            os.kill(os.getpid(), getattr(signal, name))
        return called(*args, **kwargs)

    monkeypatch.setattr(*where, counting)


def stopped(sample: Path, folder: Path, *flags) -> str:
    """Train until a signal stops the run; returns the last line of its log."""
    with pytest.raises(SystemExit) as stop:
        train(sample, folder, *flags, "--resume", "auto")
    assert stop.value.code == 75
    return (folder / "log" / "train.log").read_text(encoding="utf-8").splitlines()[-1]


# ---- signals ----


@pytest.mark.parametrize(
    ("name", "place", "step", "at"),
    [("SIGTERM", "step", 3, 3), ("SIGUSR1", "step", STEPS, STEPS), ("SIGHUP", "validation", 1, STEPS)],
)
def test_a_signal_saves_within_the_epoch_and_the_line_that_it_prints_goes_on(
    sample, runs, tmp_path, monkeypatch, name, place, step, at
):
    """Within an epoch, behind its last step, and in its validation."""
    folder, whole = tmp_path / "run", runs("vse_infty")
    with monkeypatch.context() as patch:
        stopped_at(patch, step, name, place)
        line = stopped(sample, folder, "--similarity", "vse_infty")
    saved = read_checkpoint(folder / "checkpoint.pth")
    assert (saved.epoch, saved.step, saved.position["done"]) == (0, at, at)
    said, _, command = line.partition("; to go on: ")
    assert said.endswith(f"stopped by {name} at step {at}")
    python, file, *flags = shlex.split(command)
    assert (python, file, flags[-2:]) == ("python", "train.py", ["--resume", "auto"])
    script.main(flags)
    for file in ("checkpoint.pth", "model_best.pth"):
        assert run_differences(folder / file, whole / file) == []
    log = (folder / "log" / "train.log").read_text(encoding="utf-8")
    assert f"resumed {folder / 'checkpoint.pth'}: epoch 0, step {at}\n" in log
    if place == "step":  # the mean over the epoch counts the steps before the signal too
        ends = re.compile(r"epoch 0 step 5/5  loss \S+ \(mean \S+\)")
        assert ends.findall(log)[-1] == ends.findall((whole / "log" / "train.log").read_text(encoding="utf-8"))[-1]


def test_a_signal_before_training_leaves_the_folder_as_it_was(sample, runs, tmp_path, monkeypatch):
    folder = Path(shutil.copytree(runs("vse_infty"), tmp_path / "run"))
    before = {path.name: path.read_bytes() for path in folder.glob("*.pth")}
    build = job.build_optimizer

    def signalled(*args):
        os.kill(os.getpid(), signal.SIGTERM)
        return build(*args)

    monkeypatch.setattr(job, "build_optimizer", signalled)
    stopped(sample, folder, "--similarity", "vse_infty", "--num_epochs", 3)
    assert {path.name: path.read_bytes() for path in folder.glob("**/*.pth")} == before


# ---- faults ----


def test_a_closed_stdout_ends_no_run_and_causes_no_traceback(sample, runs, tmp_path):
    command = [sys.executable, "train.py", *train_arguments(sample, tmp_path / "run", "--similarity", "vse_infty")]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    settings = {"cwd": Path(script.__file__).parent, "env": os.environ | {"OMP_NUM_THREADS": "1"}}
    run = subprocess.Popen(command, **settings, **pipes)
    assert run.stdout.readline().startswith("command: ")
    run.stdout.close()
    assert (run.stderr.read(), run.wait()) == ("", 0)
    assert run_differences(tmp_path / "run" / "checkpoint.pth", runs("vse_infty") / "checkpoint.pth") == []


def test_a_dead_worker_is_one_line(sample, tmp_path, monkeypatch, capsys):
    step = Trainer.step

    def strike(trainer, batch, phase):
        for child in multiprocessing.active_children():
            os.kill(child.pid, signal.SIGKILL)
        return step(trainer, batch, phase)

    monkeypatch.setattr(Trainer, "step", strike)
    arguments = train_arguments(
        sample, tmp_path / "run", "--workers", 2, "--similarity", "vse_infty", "--num_epochs", 9
    )
    message = error_line(script.main, arguments, capsys)
    assert message.startswith("a process that loads data died (DataLoader worker") and "--workers" in message


# ---- kills ----


def test_a_run_that_is_killed_at_any_moment_ends_as_one_that_was_never_stopped(sample, tmp_path):
    """The long version runs in .ci/run."""
    flags = train_arguments(sample, tmp_path, "--similarity", "vse_infty", "--num_epochs", 3, "--save_step", 2)
    argv = [str(tmp_path / "out"), "--kills", "3", "--terms", "1", "--", *flags]
    done = in_a_process(tmp_path, killing.main, argv)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 SIGKILLs, 1 SIGTERMs: bit for bit the run that was never stopped" in done.stdout


def test_saving_within_epochs_changes_no_weight(sample, runs, tmp_path):
    folder = train(sample, tmp_path / "run", "--similarity", "vse_infty", "--save_step", 2)
    for name in ("checkpoint.pth", "model_best.pth"):
        assert run_differences(folder / name, runs("vse_infty") / name) == []
    assert read_checkpoint(folder / "checkpoint_previous.pth").step == 2 * STEPS - 2


def test_temporary_files_of_killed_writes_are_removed_at_the_next_start(sample, runs, tmp_path):
    folder = Path(shutil.copytree(runs("vse_infty"), tmp_path / "run"))
    for name in (".checkpoint.pth.abcd1234.tmp", ".model_best.pth.x.tmp", ".writable.abcd"):
        (folder / name).write_bytes(b"PK half of it")
    (folder / "notes.tmp").write_text("not ours")
    train(sample, folder, "--similarity", "vse_infty", "--resume", "auto")
    assert {path.name for path in folder.glob(".*")} == {".lock"} and (folder / "notes.tmp").exists()


# ---- --resume auto ----


def test_auto_starts_where_there_is_no_checkpoint_and_ends_where_the_run_is_over(sample, runs, tmp_path, capsys):
    folder, auto = tmp_path / "run", ("--similarity", "vse_infty", "--resume", "auto")
    train(sample, folder, *auto)
    assert run_differences(folder / "checkpoint.pth", runs("vse_infty") / "checkpoint.pth") == []
    capsys.readouterr()
    train(sample, folder, *auto)
    assert "nothing to train" in capsys.readouterr().out and not list(folder.glob("earlier_*"))


def test_auto_passes_over_a_damaged_checkpoint(sample, runs, tmp_path, capsys):
    folder = Path(shutil.copytree(runs("vse_infty"), tmp_path / "run"))
    (folder / "checkpoint.pth").write_bytes(b"PK half of it")
    train(sample, folder, "--similarity", "vse_infty", "--resume", "auto")
    assert f"passed over, since it can't be read: {folder / 'checkpoint.pth'}" in capsys.readouterr().err
    assert run_differences(folder / "checkpoint.pth", runs("vse_infty") / "checkpoint.pth") == []


def test_auto_with_weights_alone_is_refused_since_it_would_never_end(sample, tmp_path, capsys):
    arguments = train_arguments(sample, tmp_path / "run", "--resume", "auto", "--reset_start_epoch")
    assert "--reset_start_epoch" in error_line(script.main, arguments, capsys)


def test_a_second_run_of_one_name_is_refused(sample, tmp_path, capsys):
    (tmp_path / "run").mkdir()
    with locked(tmp_path / "run"):
        message = error_line(script.main, train_arguments(sample, tmp_path / "run"), capsys)
    assert message.startswith(f"{tmp_path / 'run'}: in use by another run") and f"process {os.getpid()}" in message
    assert not list((tmp_path / "run").glob("*.pth"))


# ---- a position within an epoch ----


def interrupted(sample: Path, folder: Path, monkeypatch, step: int, *flags) -> Path:
    with monkeypatch.context() as patch:
        stopped_at(patch, step)
        stopped(sample, folder, "--similarity", "vse_infty", *flags)
    return folder / "checkpoint.pth"


def test_another_batch_size_goes_on_with_the_captions_that_are_left(sample, tmp_path, monkeypatch):
    interrupted(sample, tmp_path / "run", monkeypatch, 2)  # 48 captions
    seen = []
    batches = EpochSampler.__iter__
    monkeypatch.setattr(EpochSampler, "__iter__", lambda self: (seen.append(b) or b for b in batches(self)))
    flags = ("--similarity", "vse_infty", "--resume", "auto", "--batch_size", 12, "--num_epochs", 1)
    train(sample, tmp_path / "run", *flags)
    order = [pair for batch in batches(EpochSampler(120, 24, 0)) for pair in batch]
    assert [pair for batch in seen for pair in batch] == order[48:]


DAMAGE = {
    "no steps": lambda position: position.pop("done"),
    "steps that are no number": lambda position: position.update(done="many"),
    "less than no steps": lambda position: position.update(done=-3),
    "no loss": lambda position: position.update(loss=None),
    "no random states": lambda position: position.update(random={}),
    "a random state that is none": lambda position: position["random"][0].update(torch=5),
}


def test_a_damaged_position_is_one_line(sample, tmp_path, monkeypatch, capsys):
    file = interrupted(sample, tmp_path / "run", monkeypatch, 2)
    (tmp_path / "run" / "checkpoint_previous.pth").unlink(missing_ok=True)
    whole = content(file)
    for what, change in DAMAGE.items():
        altered = copy.deepcopy(whole)
        change(altered["position"])
        torch.save(sealed(altered), file)
        arguments = train_arguments(sample, tmp_path / "run", "--similarity", "vse_infty", "--resume", "auto")
        message = error_line(script.main, arguments, capsys)
        assert message.startswith(f"{file}: ") and "position within the epoch is damaged" in message, what
