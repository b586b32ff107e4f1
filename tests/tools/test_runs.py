"""Runs side by side: what differs between them, how their curves went, and the picture of these."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from lib.tools import runs as tool
from tests.helpers import error_line
from tests.processes import IMPORTED, in_a_process


def write_run(folder: Path, settings: dict, losses: dict[int, float], rsums: dict[int, float], **more) -> Path:
    folder.mkdir()
    config = {"settings": settings, "commit": "abc", "versions": {"torch": "2.15.0"}, "files": []} | more
    (folder / "config.json").write_text(json.dumps(config))
    lines = [{"step": step, "loss": 9.0, "mean": loss} for step, loss in losses.items()]
    lines += [{"step": step, "split": "dev", "rsum": rsum} for step, rsum in rsums.items()]
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines) + '{"step": 9')
    return folder


@pytest.fixture
def two(tmp_path) -> list[Path]:
    same, file = {"batch_size": 128, "seed": 0}, {"path": "/a/train_ims.npy", "bytes": 5}
    one = same | {"margin": 0.2, "model_name": "one"}, {5: 0.5, 10: 0.25}, {10: 300.0}
    two = same | {"margin": 0.3, "model_name": "two"}, {5: 0.4, 10: 0.6}, {5: 280.0, 10: 270.0}
    return [
        write_run(tmp_path / "one", *one, files=[file | {"sha256": "1" * 64}]),
        write_run(tmp_path / "two", *two, files=[file | {"sha256_of_64_blocks": "2" * 64}], commit="def"),
    ]


def test_settings_code_and_data_that_differ_are_listed_and_nothing_else(two):
    rows = tool.differing([tool.read_run(folder) for folder in two])
    assert rows == [
        ["margin", "0.2", "0.3"],
        ["commit", "abc", "def"],
        ["file train_ims.npy", "11111111", "22222222"],
    ]


def test_best_and_last_values_stand_beside_each_other(two):
    rows = tool.endings([tool.read_run(folder) for folder in two])
    assert rows == [
        ["loss, best", "0.2500 at 10", "0.4000 at 5"],
        ["loss, last", "0.2500 at 10", "0.6000 at 10"],
        ["RSUM dev, best", "300.0 at 10", "280.0 at 5"],
        ["RSUM dev, last", "300.0 at 10", "270.0 at 10"],
    ]


def test_the_command_prints_both_tables_and_draws_every_format(two, tmp_path, capsys):
    for ending, beginning in ((".png", b"\x89PNG"), (".pdf", b"%PDF"), (".svg", b"<?xml")):
        path = tmp_path / "figures" / f"curves{ending}"
        tool.main([*map(str, two), "--plot", str(path)])
        output = capsys.readouterr().out
        assert "margin" in output and "RSUM dev, best  300.0 at 10   280.0 at 5" in output and str(path) in output
        assert path.read_bytes().startswith(beginning)
        assert [file.name for file in path.parent.glob(".*")] == []


def test_a_run_with_itself_differs_in_nothing(two, capsys):
    tool.main([str(two[0]), str(two[0])])
    assert "no setting differs" in capsys.readouterr().out


def test_a_run_of_train_py_is_read(runs, capsys):
    tool.main([str(runs("vse_infty")), str(runs("esl_a"))])
    output = capsys.readouterr().out
    assert "similarity   vse_infty  esl_a" in output and "loss, last" in output and "RSUM dev, best" in output


def test_bad_input_is_one_line(two, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert "empty/config.json: no such file" in error_line(tool.main, [tmp_path / "empty"], capsys)
    assert "--plot" in error_line(tool.main, [two[0], "--plot", tmp_path / "curves.gif"], capsys)
    (tmp_path / "curves.png").mkdir()
    assert "curves.png: cannot be written" in error_line(tool.main, ["none", "--plot", tmp_path / "curves.png"], capsys)
    (two[0] / "metrics.jsonl").write_text("not json\n")
    assert "metrics.jsonl: no figures yet" in error_line(tool.main, [two[0]], capsys)
    (two[0] / "config.json").write_text("[1, 2]")
    assert "config.json: not the record of a run" in error_line(tool.main, [two[0]], capsys)


@pytest.mark.slow
def test_matplotlib_is_loaded_for_pictures_alone(tmp_path):
    assert {"lib.tools.runs", "lib.commands.train", "lib.commands.evaluate"} <= set(IMPORTED)
    assert in_a_process(tmp_path, print_whether_loaded, "matplotlib", "torch").stdout == "[False, True]\n"


def print_whether_loaded(*modules: str) -> None:
    print([module in sys.modules for module in modules])
