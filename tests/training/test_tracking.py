"""Console lines, averages and TensorBoard events."""

from __future__ import annotations

import logging
import re

import pytest

from lib.training.tracking import Average, Tracker, setup_console
from tests.helpers import scalars


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


def test_an_average_weighs_by_count_and_remembers_the_last_value():
    average = Average()
    assert average.mean == 0
    average.update(1.0, 3)
    average.update(5.0)
    assert (average.mean, average.last) == (2.0, 5.0)


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


@pytest.fixture(autouse=True)
def _close_files():
    yield
    logger = logging.getLogger("esl")
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()
