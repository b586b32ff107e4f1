"""Console lines, the progress of an epoch and TensorBoard events."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import shutil
import sys

import numpy as np
import pytest
import torch

from lib.training import progress, tracking
from lib.training.console import close_console, setup_console
from lib.training.progress import EpochLog, Step, timed
from lib.training.tracking import Tracker
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


def test_lines_of_json_hold_step_values_and_time_and_a_run_that_goes_on_drops_what_it_trains_again(tmp_path):
    file = tmp_path / "metrics.jsonl"
    tracker = Tracker(None, file)
    for step in (2, 4, 6):
        tracker.line(step, loss=step / 2, rates={"head": 5e-4})
    tracker.close()
    tracker.line(8, loss=1.0)
    with open(file, "a") as lines:
        lines.write('{"step": 3, "loss"')  # a kill in the middle of a line
    Tracker(None, file, step=4).line(5, rsum=300.0)
    found = [json.loads(line) for line in file.read_text().splitlines()]
    assert [each["step"] for each in found] == [2, 4, 5] and all(each["time"] > 1e9 for each in found)
    assert found[1]["loss"] == 2.0 and found[1]["rates"] == {"head": 5e-4} and found[2]["rsum"] == 300.0
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


@pytest.mark.parametrize("what", ["events", "lines"])
def test_a_file_that_is_lost_is_said_once_and_the_other_goes_on(tmp_path, monkeypatch, what):
    said = []
    monkeypatch.setattr(tracking.logger, "warning", lambda text, *values: said.append(text % values))
    tracker = Tracker(tmp_path / "log", tmp_path / "run" / "metrics.jsonl")
    shutil.rmtree(tmp_path / {"events": "log", "lines": "run"}[what])
    for step in (1, 2, 3):
        tracker.scalars(step, loss=1.0, lr=0.1)
        tracker.line(step, loss=1.0)
    assert len(said) == 1 and {"events": "TensorBoard's events", "lines": "metrics"}[what] in said[0]
    if what == "events":
        assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 3
    else:
        assert len(scalars(tmp_path / "log")["loss"]) == 3


def test_a_closed_stdout_causes_no_traceback_and_the_log_goes_on(tmp_path, capfd, monkeypatch):
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w", buffering=1) as closed:
        monkeypatch.setattr(sys, "stdout", closed)
        console = setup_console(tmp_path / "train.log")
        for number in (1, 2):
            console.info("line %d", number)
    assert capfd.readouterr() == ("", "")
    assert (tmp_path / "train.log").read_text().count("line") == 2


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is always full")
def test_a_full_disk_under_the_log_causes_no_traceback_and_the_console_goes_on(capfd):
    setup_console("/dev/full").info("to the console")
    close_console()
    assert capfd.readouterr() == ("to the console\n", "")


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
        assert capsys.readouterr() == ("", "") and not list(tmp_path.iterdir())
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


RATES = {"head": 5e-4, "text": 5e-5}


def play(log: EpochLog, batches, losses, pairs=(4, 4, 4), works=(0, 0, 0), clock=None, mean=False) -> None:
    """Give a log the steps of an epoch, from number 101 on, each after some seconds of work."""
    for index, (_, waited) in enumerate(timed(batches)):
        began = progress.time.perf_counter()
        if clock:
            clock.go(works[index])
        loss, norm = torch.tensor(losses[index]), torch.tensor(0.5)
        log.add(Step(101 + index, log.done + 1, np.arange(pairs[index]), loss, norm, RATES, mean, waited, began))
        if clock:
            clock.go(7.0)  # a validation between steps is neither


def epoch_of(clock, waits, works, pairs, losses, log_step, monkeypatch):
    """Events and console lines of an epoch whose batches take `waits` to come and `works` to train on."""

    def batches():
        for wait in waits:
            clock.go(wait)
            yield wait

    tracker, lines = Recorder(), []
    monkeypatch.setattr(tracking.logger, "info", lines.append)
    with EpochLog(tracker, 4, len(waits), log_step) as log:
        play(log, batches(), losses, pairs, works, clock)
    return tracker.seen, lines


def test_a_step_is_tracked_with_its_loss_rate_gradient_and_times(clock, monkeypatch):
    events, _ = epoch_of(clock, [1.0, 2.0], [3.0, 4.0], [8, 4], [16.0, 2.0], 200, monkeypatch)
    assert [step for step, _ in events] == [101, 102]
    names = ("loss", "loss_per_pair", "lr", "gradient_norm", "data_time", "step_time")
    for (_, found), expected in zip(events, [(16, 2, 5e-4, 0.5, 1, 3), (2, 0.5, 5e-4, 0.5, 2, 4)], strict=True):
        assert found == pytest.approx(dict(zip((f"train/{name}" for name in names), expected, strict=True)))


def test_every_log_line_of_an_epoch_is_a_line_of_json_with_the_rate_of_every_group(clock, monkeypatch, tmp_path):
    monkeypatch.setattr(tracking.logger, "info", lambda *_: None)
    with EpochLog(Tracker(None, tmp_path / "m"), 4, 3, log_step=2) as log:
        play(log, "abc", [8.0, 7.0, 6.0], works=[3.0] * 3, clock=clock)
    lines = [json.loads(line) for line in (tmp_path / "m").read_text().splitlines()]
    assert [(line["step"], line["epoch"], line["loss"], line["loss_per_pair"], line["mean"]) for line in lines] == [
        (102, 4, 7.0, 1.75, 1.875),
        (103, 4, 6.0, 1.5, 1.75),
    ]
    assert all(line["rates"] == RATES and line["step_time"] == 3.0 for line in lines)


def test_a_line_gives_the_mean_loss_over_pairs_and_the_mean_times_over_steps(clock, monkeypatch):
    _, lines = epoch_of(clock, [1.0, 2.0], [3.0, 4.0], [8, 4], [16.0, 2.0], 2, monkeypatch)
    assert lines == [
        "epoch 4 step 2/2  loss 0.5000 (mean 1.5000)  gradient 0.1250 per pair  lr 5.0e-04  data 1.500 s  step 3.500 s"
        "  run ends in 0:00:00"
    ]


@pytest.mark.parametrize(("log_step", "logged"), [(1, "12345"), (2, "245"), (3, "35"), (200, "5")])
def test_lines_come_every_log_step_and_at_the_end_of_the_epoch(clock, monkeypatch, log_step, logged):
    _, lines = epoch_of(clock, [0.1] * 5, [0.1] * 5, [2] * 5, [1.0] * 5, log_step, monkeypatch)
    assert [line.split()[3] for line in lines] == [f"{step}/5" for step in logged]


def test_a_line_gives_the_time_to_the_end_of_the_run_with_what_epochs_spend_beside_their_steps(clock, monkeypatch):
    lines = []
    monkeypatch.setattr(tracking.logger, "info", lines.append)
    for between in (0.0, 60.0):
        with EpochLog(Recorder(), 4, 5, log_step=1, num_epochs=7, between=between, position={"done": 1}) as log:
            play(log, "ab", [1.0, 1.0], works=[600.0] * 2, clock=clock)
    ends = [line.rpartition("run ends in ")[2] for line in lines]
    assert ends == ["2:10:00", "2:00:00", "2:13:00", "2:03:00"]  # 13 steps, then 12; three minutes of three epochs


def test_the_gradient_of_a_loss_that_is_a_mean_is_that_of_a_pair_already(clock, monkeypatch):
    lines = []
    monkeypatch.setattr(tracking.logger, "info", lines.append)
    with EpochLog(Recorder(), 0, 1) as log:
        play(log, "a", [8.0], mean=True, works=[1.0], clock=clock)
    assert "gradient 0.5000 per pair" in lines[0]


class Terminal(io.StringIO):
    """A stream that says it is a terminal, as bars ask for."""

    def isatty(self) -> bool:
        return True


def test_a_line_of_the_log_never_continues_the_line_of_a_bar(monkeypatch, tmp_path):
    screen = Terminal()
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setattr(sys, "stderr", screen)
    setup_console(tmp_path / "train.log")
    with EpochLog(Recorder(), 0, 3, log_step=1) as log:
        for batch in "abc":
            play(log, batch, [8.0])
            log.bar.refresh()
    close_console()
    said = screen.getvalue()
    assert said.count("epoch 0:") > 3 and said.count("epoch 0 step") == 3
    assert not re.search(r"[^\r\n]epoch 0 step", said)


def test_the_log_file_is_made_by_its_first_line(tmp_path):
    logger = setup_console(tmp_path / "log" / "train.log")
    assert not list(tmp_path.iterdir())
    logger.info("epoch 0")
    assert (tmp_path / "log" / "train.log").read_text().endswith("epoch 0\n")


def test_an_epoch_that_goes_on_counts_on_from_its_totals(clock, monkeypatch):
    lines = []
    monkeypatch.setattr(tracking.logger, "info", lines.append)
    with EpochLog(Recorder(), 4, 3, position={"done": 2, "pairs": 8, "loss": 16.0}) as log:
        play(log, "a", [2.0], works=[3.0], clock=clock)
    assert lines[0].startswith("epoch 4 step 3/3  loss 0.5000 (mean 1.5000)") and "step 3.000 s" in lines[0]
    assert log.totals() == {"done": 3, "pairs": 12, "loss": 18.0}


def test_the_bar_counts_the_steps_and_closes_after_an_exception_too(monkeypatch):
    class Bar:
        steps, closed = 0, False

        def __init__(self, total, initial, **_):
            self.total = total

        def set_postfix(self, values, refresh):
            self.values = values

        def update(self):
            self.steps += 1

        def close(self):
            self.closed = True

    monkeypatch.setattr(progress, "tqdm", Bar)
    with pytest.raises(MemoryError), EpochLog(Recorder(), 0, 3) as log:
        play(log, "ab", [8.0, 8.0])
        raise MemoryError
    assert (log.bar.total, log.bar.steps, log.bar.closed) == (3, 2, True)
    values = {name: str(value) for name, value in log.bar.values.items()}
    assert values["loss"] == "2.0000" and values["lr"] == "5.0e-04" and values["run ends in"] == "0:00:00"
