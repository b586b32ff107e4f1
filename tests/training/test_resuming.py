"""Going on from a checkpoint: what a run takes from it, what it says, and the states that no run has been in."""

from __future__ import annotations

import copy
import dataclasses
import itertools
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from lib.checkpoint import read_checkpoint
from lib.core.errors import InputError
from lib.training.engine import Trainer
from lib.training.losses import HingeTriplet
from lib.training.optim import OPTIMIZERS
from lib.training.resuming import resume
from lib.training.schedule import CosineSchedule, Phase, Schedule
from tests.helpers import differences, small_batch
from tests.training.small_runs import STEPS, run_in, trainer_of

PHASE = Phase(0.5, False, 1.0, 0)
pytestmark = pytest.mark.usefixtures("single_thread")


class Weighted(HingeTriplet):
    """A loss with a parameter of its own."""

    def __init__(self, name: str = "weight"):
        super().__init__()
        self.name = name
        self.register_parameter(name, nn.Parameter(torch.ones(())))

    def forward(self, scores, hardest=True):
        return getattr(self, self.name) * super().forward(scores, hardest)


class MatrixMomentum(torch.optim.Optimizer):
    """An optimizer of a user's own, which like Muon keeps a momentum of the weight's shape for matrices alone."""

    def __init__(self, groups: list[dict]):
        super().__init__(groups, {"momentum": 0.9})

    @torch.no_grad()
    def step(self, closure=None) -> None:
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    weight -= group["lr"] * (self._momentum(weight, group) if weight.ndim == 2 else weight.grad)

    def _momentum(self, weight: nn.Parameter, group: dict) -> torch.Tensor:
        momentum = self.state[weight].setdefault("momentum", torch.zeros_like(weight))
        return momentum.mul_(group["momentum"]).add_(weight.grad)


def saved(trainer: Trainer, folder: Path, **settings):
    """The checkpoint that a run of one epoch leaves, read again."""
    run = run_in(folder, **settings)
    run.epoch, run.step, run.best_rsum = 1, STEPS, 210.0
    run.save(trainer, improved=True)
    return read_checkpoint(folder / "checkpoint.pth")


def batch_of(grid: bool = False) -> SimpleNamespace:
    images, captions = small_batch(grid)
    return SimpleNamespace(images=images, captions=captions)


def test_what_a_schedule_depends_on_is_not_free_to_change(tmp_path, lines):
    trainer = trainer_of()
    checkpoint = saved(trainer, tmp_path)
    for schedule, said in ((Schedule(), False), (CosineSchedule(num_epochs=9), True)):
        trainer.schedule = schedule
        resume(run_in(tmp_path, num_epochs=9), trainer, checkpoint)
        assert any(line.startswith("note: --num_epochs was 2") for line in lines) == said


@pytest.mark.parametrize(
    ("optim", "grid", "loss"),
    [
        ("adam", False, HingeTriplet),
        ("sgd", False, Weighted),
        ("sgd", True, HingeTriplet),
        ("transformers_adamw", False, HingeTriplet),
        ("matrix_momentum", False, HingeTriplet),
    ],
)
def test_a_resumed_trainer_takes_the_next_step_bit_for_bit(tmp_path, monkeypatch, optim, grid, loss):
    """Two steps, against one step, a file, and the second step: momentum, weight decay and rates of every group, and
    what a loss has learned."""
    monkeypatch.setitem(OPTIMIZERS, "matrix_momentum", MatrixMomentum)
    trainer, batches = trainer_of(optim, grid, loss=loss()), [batch_of(grid), batch_of(grid)]
    trainer.step(batches[0], PHASE)
    checkpoint = saved(trainer, tmp_path)
    torch.manual_seed(3)
    trainer.step(batches[1], PHASE)

    again = trainer_of(optim, grid, loss=loss())
    again.runner.model.load_state_dict(checkpoint.model)
    resume(run_in(tmp_path), again, checkpoint)
    torch.manual_seed(3)
    again.step(batches[1], PHASE)
    for each in (lambda t: t.runner.model, lambda t: t.optimizer, lambda t: t.criterion):
        assert differences(each(trainer).state_dict(), each(again).state_dict()) == []


def test_a_file_of_another_loss_is_refused(tmp_path):
    checkpoint = saved(trainer_of(loss=Weighted("sharpness")), tmp_path)
    for loss in (Weighted("temperature"), HingeTriplet()):
        with pytest.raises(InputError, match="checkpoint.pth: ") as error:
            resume(run_in(tmp_path), trainer_of(loss=loss), checkpoint)
        assert "\n" not in str(error.value)


def test_resuming_gives_epoch_step_and_best_rsum_and_says_so(tmp_path, lines):
    trainer = trainer_of()
    run = run_in(tmp_path)
    resume(run, trainer, saved(trainer, tmp_path))
    assert (run.epoch, run.step, run.best_rsum) == (1, STEPS, 210.0)
    assert lines == [f"resumed {tmp_path / 'checkpoint.pth'}: epoch 1, step {STEPS}, best RSUM 210.0"]


def test_rates_and_weight_decay_of_a_resumed_run_are_its_own(tmp_path):
    checkpoint = saved(trainer_of("sgd", grid=True), tmp_path)
    trainer = trainer_of("sgd", grid=True, rate=4e-3, decay=0.03)
    resume(run_in(tmp_path), trainer, checkpoint)
    groups = {group["name"]: group for group in trainer.optimizer.param_groups}
    rates = {name: group["base_lr"] for name, group in groups.items()}
    assert rates == pytest.approx({"head": 4e-3, "text": 4e-3, "backbone": 8e-5})
    assert {name: group["weight_decay"] for name, group in groups.items()} == {"head": 0, "text": 0, "backbone": 0.03}
    assert all(group["momentum"] == 0.9 and group["nesterov"] for group in groups.values())


def test_a_setting_that_differs_is_said_and_one_that_trains_the_same_model_is_not(tmp_path, lines):
    trainer, of_another_part = trainer_of(), {"backbone_source": "detector"}  # which has no value any more
    before = {"margin": 0.2, "seed": 3, "workers": 2, "kernels": "auto", "score_memory": None}
    checkpoint = saved(trainer, tmp_path, **before, **of_another_part)
    free = {"workers": 8, "kernels": "torch", "score_memory": 64, "num_epochs": 9, "val_step": 7, "log_step": 1}
    free |= dict.fromkeys(of_another_part)
    resume(run_in(tmp_path, margin=0.3, seed=3, **free), trainer, checkpoint)
    path = tmp_path / "checkpoint.pth"
    assert [line for line in lines if line.startswith("note")] == [
        f"note: --margin was 0.2 when {path} was written and is 0.3 now"
    ]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"val_split": "test"}, "--val_split"),
        ({"data_path": "{tmp}/other"}, "--data_path"),
        ({"data_name": "coco"}, "--data_name"),
        ({"val_split": "test", "data_path": "{tmp}/other"}, "--data_path and --val_split"),
    ],
)
def test_the_best_rsum_starts_anew_where_it_was_measured_on_other_data(tmp_path, lines, changes, said):
    trainer, here = trainer_of(), {"data_path": str(tmp_path)}
    checkpoint = saved(trainer, tmp_path, **here)
    run = run_in(tmp_path, **(here | {name: value.format(tmp=tmp_path) for name, value in changes.items()}))
    resume(run, trainer, checkpoint)
    assert (run.epoch, run.step, run.best_rsum) == (1, STEPS, -1.0)
    assert f"note: {said} changed, so the best RSUM starts anew" in lines


@pytest.mark.parametrize(
    ("before", "now"),
    [("{tmp}/data/f30k", "data/f30k"), ("data/f30k", "{tmp}/data/f30k/"), ("data/f30k", "data/../data/f30k"),
     ("data/f30k", "link")],
)  # fmt: skip
def test_the_best_rsum_stays_where_the_same_folder_is_named_in_another_way(tmp_path, monkeypatch, lines, before, now):
    (tmp_path / "data" / "f30k").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "data" / "f30k")
    monkeypatch.chdir(tmp_path)
    trainer = trainer_of()
    checkpoint = saved(trainer, tmp_path, data_path=before.format(tmp=tmp_path))
    run = run_in(tmp_path, data_path=now.format(tmp=tmp_path))
    resume(run, trainer, checkpoint)
    assert run.best_rsum == 210.0 and not [line for line in lines if line.startswith("note")]


def test_a_file_without_an_optimizer_is_refused_with_the_way_out(tmp_path):
    trainer = trainer_of()
    saved(trainer, tmp_path)
    best = read_checkpoint(tmp_path / "model_best.pth")
    with pytest.raises(InputError, match="model_best.pth: holds no optimizer state .*--reset_start_epoch") as error:
        resume(run_in(tmp_path), trainer, best)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("before", "now"), list(itertools.permutations(OPTIMIZERS, 2)))
def test_a_file_of_another_optimizer_is_refused_and_leaves_the_trainer_as_it_was(tmp_path, before, now):
    checkpoint, trainer = saved(trainer_of(before), tmp_path), trainer_of(now)
    state = trainer.optimizer.state_dict()
    with pytest.raises(InputError, match=r"checkpoint.pth: its optimizer state does not fit .* the same --optim"):
        resume(run_in(tmp_path), trainer, checkpoint)
    assert differences(trainer.optimizer.state_dict(), state) == []


def test_an_optimizer_of_another_name_is_refused_where_its_state_would_fit(tmp_path):
    checkpoint = saved(trainer_of(), tmp_path, optim="adam")
    with pytest.raises(InputError, match="its optimizer state does not fit"):
        resume(run_in(tmp_path, optim="of_the_user"), trainer_of(), checkpoint)


# ---- states that no run has been in ----


def changed(value, *path):
    """A copy of nested dicts and lists with `value` at a place; a function is given what is there."""
    *above, last = path

    def change(content):
        content = inner = copy.deepcopy(content)
        for key in above:
            inner = inner[key]
        inner[last] = value(inner[last]) if callable(value) else value
        return content

    return change


@pytest.fixture(scope="module")
def stepped(tmp_path_factory):
    """`stepped(optim)` is the checkpoint of a trainer after a step."""
    kept = {}

    def of(optim: str):
        if optim not in kept:
            torch.manual_seed(0)
            trainer = trainer_of(optim)
            trainer.step(batch_of(), PHASE)
            kept[optim] = saved(trainer, tmp_path_factory.mktemp(optim), batch_size=8)
        return kept[optim]

    return of


def refused(folder: Path, checkpoint, optim: str = "adam") -> str:
    """What is said of a checkpoint, which leaves trainer and run as they were."""
    trainer, run = trainer_of(optim), run_in(folder, batch_size=8)
    state = copy.deepcopy(trainer.optimizer.state_dict())
    with pytest.raises(InputError, match=f"^{checkpoint.path}: ") as error:
        resume(run, trainer, checkpoint)
    assert "\n" not in str(error.value) and len(str(error.value)) < 500
    assert (run.epoch, run.step, run.best_rsum) == (0, 0, -1.0)
    assert differences(trainer.optimizer.state_dict(), state) == []
    return str(error.value)


def test_an_optimizer_state_of_another_optimizer_or_other_parameters_is_refused(tmp_path, stepped):
    checkpoint = stepped("adam")
    weight = next(name for name, _ in trainer_of().runner.model.named_parameters())
    for change, named in (
        (changed([], "param_groups"), "0 groups"),
        (changed((0.9, 1.1), "param_groups", 0, "betas"), "betas"),
        (changed(True, "param_groups", 0, "amsgrad"), "amsgrad"),
        (changed("tail", "param_groups", 0, "name"), "name"),
        (changed(1, "param_groups", 0, "new"), "new"),
        (changed(lambda places: places[::-1], "param_groups", 0, "params"), "params"),
        (changed(lambda places: places[:-1], "param_groups", 0, "params"), "params"),
        (changed(lambda m: m[None], "state", 0, "exp_avg"), f"exp_avg of {weight} "),
    ):
        message = refused(tmp_path, dataclasses.replace(checkpoint, optimizer=change(checkpoint.optimizer)))
        assert "its optimizer state does not fit" in message and named in message


def test_how_torch_computes_a_step_is_not_taken_from_a_file(tmp_path, stepped):
    """Nor is what newer versions of torch say of it missed."""
    checkpoint, trainer = stepped("adam"), trainer_of("adam")
    group = checkpoint.optimizer["param_groups"][0]
    strange = {name: value for name, value in group.items() if name != "decoupled_weight_decay"} | {"foreach": "yes"}
    resume(
        run_in(tmp_path), trainer,
        dataclasses.replace(checkpoint, optimizer=changed(strange, "param_groups", 0)(checkpoint.optimizer)),
    )  # fmt: skip
    assert trainer.optimizer.param_groups[0]["foreach"] is None
    trainer.step(batch_of(), PHASE)


@pytest.mark.parametrize("value", [torch.ones(2), [1], {"a": 1}, "a\0b", "x\x1b[2J" * 1000])
def test_settings_of_any_kind_are_compared_and_shown_in_one_line(tmp_path, stepped, lines, value):
    checkpoint = dataclasses.replace(stepped("adam"), settings={"margin": value, "data_path": value})
    resume(run_in(tmp_path, margin=0.2, data_path=str(tmp_path)), trainer_of(), checkpoint)
    notes = [line for line in lines if line.startswith("note: --margin was ")]
    assert len(notes) == isinstance(value, str)
    assert all(len(note) < 400 and note.isprintable() for note in notes)
