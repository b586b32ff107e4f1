"""fit and resume: what is kept, validated and said, with a trainer whose epochs are played."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from lib.checkpoint import read_checkpoint
from lib.errors import InputError
from lib.evaluation.metrics import Recalls, Retrieval
from lib.model import build_model
from lib.parallel import Runner
from lib.training import fit as module
from lib.training.engine import Trainer
from lib.training.fit import fit, resume, validation_steps
from lib.training.losses import HingeTriplet
from lib.training.optim import build_optimizer
from lib.training.run import Run
from lib.training.schedule import CosineSchedule, Phase, Schedule
from lib.training.tracking import Tracker
from tests.helpers import content, differences, small_batch, small_config

STEPS = 3
LOADER = SimpleNamespace(batch_sampler=range(STEPS))
PHASE = Phase(0.5, False, 1.0, 0)
SETTINGS = {"val_split": "dev", "val_step": 0, "save_step": 0, "num_epochs": 2, "log_step": 200, "data_name": "f30k"}
pytestmark = pytest.mark.usefixtures("single_thread")


@pytest.fixture
def lines(monkeypatch) -> list[str]:
    """The console lines, as they come."""
    found = []
    monkeypatch.setattr(module.logger, "info", lambda text, *values: found.append(text % values))
    return found


class Weighted(HingeTriplet):
    """A loss with a parameter of its own."""

    def __init__(self, name: str = "weight"):
        super().__init__()
        self.name = name
        self.register_parameter(name, nn.Parameter(torch.ones(())))

    def forward(self, scores, hardest=True):
        return getattr(self, self.name) * super().forward(scores, hardest)


def trainer_of(
    optim: str = "adam", grid: bool = False, rate: float = 1e-3, decay: float = 1e-4, loss: nn.Module | None = None
) -> Trainer:
    model = build_model(small_config("vse_infty", grid)).train()
    loss = loss or HingeTriplet()
    optimizer = build_optimizer(model, loss, optim, rate, 0.02, decay)
    return Trainer(Runner(model, [torch.device("cpu")]), loss, optimizer, Schedule())


def played(monkeypatch) -> Trainer:
    """A trainer whose epoch e writes e into a weight instead of training."""
    trainer = trainer_of()

    def train_epoch(loader, epoch, step, log, after_step):
        with torch.no_grad():
            trainer.runner.model.text_encoder.linear.bias.fill_(epoch)
        for index in range(STEPS - 1):
            after_step(step + index + 1)
        return step + STEPS

    monkeypatch.setattr(trainer, "train_epoch", train_epoch)
    return trainer


def run_in(folder: Path, **settings) -> Run:
    return Run(folder=folder, tracker=Recorder(), settings=SETTINGS | settings)


class Recorder(Tracker):
    """A tracker that keeps what it is given."""

    def __init__(self):
        super().__init__(None)
        self.seen = []

    def scalars(self, step: int, prefix: str = "", **values: float) -> None:
        self.seen += [(step, prefix + name, value) for name, value in values.items()]


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


def test_what_a_schedule_depends_on_is_not_free_to_change(tmp_path, lines):
    trainer = trainer_of()
    checkpoint = saved(trainer, tmp_path)
    for schedule, said in ((Schedule(), False), (CosineSchedule(num_epochs=9), True)):
        trainer.schedule = schedule
        resume(run_in(tmp_path, num_epochs=9), trainer, checkpoint)
        assert any(line.startswith("note: --num_epochs was 2") for line in lines) == said


def test_an_epoch_ends_with_its_time_and_a_table_of_its_recalls(tmp_path, monkeypatch, lines):
    clock = iter([10.0, 13.0, 20.0, 20.0])
    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    fit(played(monkeypatch), LOADER, run_in(tmp_path), rsums(120.0, 60.0))
    assert lines[0] == "epoch 0 done in 3 s   best so far" and lines[2] == "epoch 1 done in 0 s"
    for table, rsum in ((lines[1], "120.0"), (lines[3], "60.0")):
        assert "R@10" in table and "f30k dev" in table.splitlines()[-1] and table.endswith(rsum)


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


# ---- resume ----


def saved(trainer: Trainer, folder: Path, **settings):
    """The checkpoint that a run of one epoch leaves, read again."""
    run = run_in(folder, **settings)
    run.epoch, run.step, run.best_rsum = 1, STEPS, 210.0
    run.save(trainer, improved=True)
    return read_checkpoint(folder / "checkpoint.pth")


def batch_of(grid: bool = False) -> SimpleNamespace:
    images, captions = small_batch(grid)
    return SimpleNamespace(images=images, captions=captions)


@pytest.mark.parametrize(
    ("optim", "grid", "loss"), [("adam", False, HingeTriplet), ("sgd", False, Weighted), ("sgd", True, HingeTriplet)]
)
def test_a_resumed_trainer_takes_the_next_step_bit_for_bit(tmp_path, optim, grid, loss):
    """Two steps, against one step, a file, and the second step: momentum, weight decay and rates of every group, and
    what a loss has learned."""
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


@pytest.mark.parametrize(("before", "now"), [("adam", "sgd"), ("sgd", "adam")])
def test_a_file_of_another_optimizer_is_refused_and_leaves_the_trainer_as_it_was(tmp_path, before, now):
    checkpoint, trainer = saved(trainer_of(before), tmp_path), trainer_of(now)
    state = trainer.optimizer.state_dict()
    with pytest.raises(InputError, match=r"checkpoint.pth: its optimizer state does not fit .* the same --optim"):
        resume(run_in(tmp_path), trainer, checkpoint)
    assert differences(trainer.optimizer.state_dict(), state) == []


def test_an_optimizer_state_of_other_parameters_is_refused(tmp_path):
    checkpoint = saved(trainer_of(), tmp_path)
    groups = checkpoint.optimizer["param_groups"]
    groups[0] = groups[0] | {"params": groups[0]["params"][:-1]}
    with pytest.raises(InputError, match="its optimizer state does not fit"):
        resume(run_in(tmp_path), trainer_of(), checkpoint)


def test_a_file_of_the_first_version_is_resumed_with_its_optimizer(tmp_path, lines):
    """Its groups were called head, bert and backbone."""
    trainer = trainer_of()
    trainer.step(batch_of(), PHASE)
    saved(trainer, tmp_path)
    old = content(tmp_path / "checkpoint.pth")
    config = dataclasses.asdict(trainer.runner.model.config)
    old |= {
        "version": 1,
        "released_extras": old.pop("extras"),
        "config": {"similarity": "vse_infty", "embed_size": 256, "precomp_enc_type": "basic", "kernel_size": 2,
                   "backbone_source": "detector", "input_scale_factor": 1.0, "bert": config["text_options"]}
        | {name: config["similarity_options"][name] for name in ("no_imgnorm", "no_txtnorm")}
        | config["image_options"],
    }  # fmt: skip
    del old["criterion"]
    old["optimizer"]["param_groups"][1]["name"] = "bert"
    torch.save(old, tmp_path / "old.pth")
    again, run = trainer_of(), run_in(tmp_path)
    resume(run, again, read_checkpoint(tmp_path / "old.pth"))
    assert differences(again.optimizer.state_dict(), trainer.optimizer.state_dict()) == []
    assert (run.epoch, run.step, run.best_rsum) == (1, STEPS, 210.0)
