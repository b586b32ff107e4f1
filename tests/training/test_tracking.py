"""Console lines, the progress of an epoch and TensorBoard events."""

from __future__ import annotations

import logging
import re

import numpy as np
import pytest
import torch

from lib.training import tracking
from lib.training.tracking import EpochLog, Tracker, close_console, setup_console
from tests.helpers import scalars


@pytest.fixture(autouse=True)
def _close_files():
    yield
    close_console()


def test_events_hold_name_step_and_value_of_every_scalar(tmp_path):
    tracker = Tracker(tmp_path)
    tracker.scalars(1, "train/", loss=0.5, lr=5e-4)
    tracker.scalars(2, "train/", loss=0.25)
    tracker.scalars(2, rsum=300)
    tracker.close()
    found = scalars(tmp_path)
    assert found["train/loss"] == [(1, 0.5), (2, 0.25)] and found["rsum"] == [(2, 300.0)]
    assert found["train/lr"] == [(1, pytest.approx(5e-4))]


def test_a_resumed_run_within_the_same_second_keeps_the_events_of_before(tmp_path):
    for step in (1, 2):
        tracker = Tracker(tmp_path)
        tracker.scalars(step, loss=step)
        tracker.close()
    assert scalars(tmp_path)["loss"] == [(1, 1.0), (2, 2.0)]


def test_no_folder_means_no_events(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tracker = Tracker(None)
    tracker.scalars(1, loss=0.5)
    tracker.close()
    assert not list(tmp_path.iterdir())


def test_lines_go_to_stdout_plainly_and_to_the_file_with_their_time_once_each(tmp_path, capsys):
    for _ in range(2):  # a second set-up replaces the first
        logger = setup_console(tmp_path / "train.log")
    logger.info("epoch %d", 3)
    assert capsys.readouterr() == ("epoch 3\n", "")
    lines = (tmp_path / "train.log").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 1 and re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} epoch 3", lines[0])


def test_a_second_run_appends_to_the_log_file(tmp_path):
    for line in ("first", "second"):
        setup_console(tmp_path / "train.log").info(line)
    assert [line.split()[-1] for line in (tmp_path / "train.log").read_text().splitlines()] == ["first", "second"]


def test_after_closing_no_line_reaches_console_or_file_and_handlers_of_others_stay(tmp_path, capsys):
    logger, others = setup_console(tmp_path / "train.log"), logging.NullHandler()
    logger.addHandler(others)
    try:
        close_console()
        logger.info("late")
        assert capsys.readouterr() == ("", "") and (tmp_path / "train.log").read_text() == ""
        assert logger.handlers == [others]
    finally:
        logger.removeHandler(others)


# ---- an epoch ----


class Recorder(Tracker):
    """A tracker that keeps what it is given."""

    def __init__(self):
        super().__init__(None)
        self.seen = []

    def scalars(self, step: int, prefix: str = "", **values: float) -> None:
        self.seen.append((step, {prefix + name: value for name, value in values.items()}))


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still unless it is told to go on."""

    class Clock:
        now = 100.0

        def go(self, seconds: float) -> None:
            self.now += seconds

    clock = Clock()
    monkeypatch.setattr(tracking.time, "perf_counter", lambda: clock.now)
    return clock


def epoch_of(clock, waits, works, pairs, losses, log_step, monkeypatch):
    """Events and console lines of an epoch whose batches take `waits` to come and `works` to train on."""

    def batches():
        for wait in waits:
            clock.go(wait)
            yield wait

    tracker, lines = Recorder(), []
    monkeypatch.setattr(tracking.logger, "info", lines.append)
    with EpochLog(tracker, 4, len(waits), log_step) as log:
        for index, _ in enumerate(log.timed(batches())):
            clock.go(works[index])
            log.step(101 + index, np.arange(pairs[index]), torch.tensor(losses[index]), torch.tensor(0.5), 5e-4)
            clock.go(7.0)  # a validation between steps is neither
    return tracker.seen, lines


def test_a_step_is_tracked_with_its_loss_rate_gradient_and_times(clock, monkeypatch):
    events, _ = epoch_of(clock, [1.0, 2.0], [3.0, 4.0], [8, 4], [16.0, 2.0], 200, monkeypatch)
    assert [step for step, _ in events] == [101, 102]
    names = ("loss", "loss_per_pair", "lr", "gradient_norm", "data_time", "step_time")
    for (_, found), expected in zip(events, [(16, 2, 5e-4, 0.5, 1, 3), (2, 0.5, 5e-4, 0.5, 2, 4)], strict=True):
        assert found == pytest.approx(dict(zip((f"train/{name}" for name in names), expected, strict=True)))


def test_a_line_gives_the_mean_loss_over_pairs_and_the_mean_times_over_steps(clock, monkeypatch):
    _, lines = epoch_of(clock, [1.0, 2.0], [3.0, 4.0], [8, 4], [16.0, 2.0], 2, monkeypatch)
    assert lines == [
        "epoch 4 step 2/2  loss 0.5000 (mean 1.5000)  lr 5.0e-04  gradient 0.50  data 1.500 s  step 3.500 s"
    ]


@pytest.mark.parametrize(("log_step", "logged"), [(1, "12345"), (2, "245"), (3, "35"), (200, "5")])
def test_lines_come_every_log_step_and_at_the_end_of_the_epoch(clock, monkeypatch, log_step, logged):
    _, lines = epoch_of(clock, [0.1] * 5, [0.1] * 5, [2] * 5, [1.0] * 5, log_step, monkeypatch)
    assert [line.split()[3] for line in lines] == [f"{step}/5" for step in logged]


def test_the_bar_counts_the_steps_and_closes_after_an_exception_too(monkeypatch):
    class Bar:
        steps, closed = 0, False

        def __init__(self, total, **_):
            self.total = total

        def set_postfix(self, values, refresh):
            self.values = values

        def update(self):
            self.steps += 1

        def close(self):
            self.closed = True

    monkeypatch.setattr(tracking, "tqdm", Bar)
    with pytest.raises(MemoryError), EpochLog(Recorder(), 0, 3) as log:
        for step, _ in enumerate(log.timed("ab"), start=1):
            log.step(step, np.arange(4), torch.tensor(8.0), torch.tensor(0.5), 5e-4)
        raise MemoryError
    assert (log.bar.total, log.bar.steps, log.bar.closed) == (3, 2, True)
    assert log.bar.values["loss"] == "2.0000" and log.bar.values["lr"] == "5.0e-04"
