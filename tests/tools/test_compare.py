"""lib.tools.compare: a table of each protocol, the figures as JSON, refusals in one line."""

from __future__ import annotations

import json

import numpy as np
import pytest

from lib.datasets import data_set
from lib.evaluation.matrices.stored import save_results
from lib.evaluation.metrics import retrieval_metrics
from lib.evaluation.report import evaluate_matrix
from lib.tools import compare as script
from tests.helpers import error_line


@pytest.fixture
def matrices(tmp_path):
    rng = np.random.default_rng(0)
    paths = []
    for name, strength in (("a", 1), ("b", 3)):
        scores = rng.standard_normal((50, 250)) + strength * np.repeat(np.eye(50), 5, 1)
        paths.append(tmp_path / f"{name}.npy")
        save_results(paths[-1], scores, {"dataset": "coco", "split": "testall"})
    return paths


def run(*arguments) -> None:
    script.main([str(argument) for argument in arguments])


def test_each_protocol_has_a_table_with_values_intervals_differences_and_queries(matrices, tmp_path, capsys):
    run(*matrices, "--draws", 100, "--json", tmp_path / "out.json")
    output = capsys.readouterr().out
    lines = [line.split() for line in output.splitlines()]
    assert sum(line[:3] == ["COCO", "10", "images"] for line in lines) == 1
    whole = output.splitlines().index(next(line for line in output.splitlines() if line.startswith("COCO 50 images")))
    row = lines[whole + 1]
    a, b = (retrieval_metrics(np.load(path)).i2t.r1 for path in matrices)
    assert row[:3] == ["i2t", "R@1", f"{a:.1f}"] and f"{b - a:+.1f}" in row
    assert "-: RSUM is a sum over queries" in output
    written = json.loads((tmp_path / "out.json").read_text())
    assert [file["path"] for file in written["files"]] == list(map(str, matrices)) and written["draws"] == 100
    mean, of_whole = written["results"].values()
    first, second = of_whole
    assert first["against_first"] is None and first["figures"]["i2t R@1"]["value"] == pytest.approx(a)
    expected = evaluate_matrix(data_set("coco"), np.load(matrices[1]))[-2].result.rsum
    assert mean[1]["figures"]["RSUM"]["value"] == pytest.approx(expected)
    against = second["against_first"]["i2t R@1"]
    assert against["difference"]["value"] == pytest.approx(b - a)
    assert 2 * (against["won"] - against["lost"]) == pytest.approx(b - a)  # of 50 queries


def test_three_matrices_are_compared_with_the_first(matrices, capsys):
    run(*matrices, matrices[0], "--draws", 20, "--format", "csv")
    head = capsys.readouterr().out.splitlines()[0].split(",")
    assert len([cell for cell in head if cell.endswith(" p")]) == 2


def test_what_cannot_be_compared_is_refused_in_one_line(matrices, tmp_path, capsys):
    assert "give two or more" in error_line(script.main, matrices[:1], capsys)
    save_results(tmp_path / "c.npy", np.ones((50, 100)), {"dataset": "coco", "split": "testall"})
    message = error_line(script.main, [*matrices, tmp_path / "c.npy"], capsys)
    assert "c.npy is 50 x 100, but" in message and "used together" in message
    message = error_line(script.main, [*matrices, tmp_path / "none.npy", "--json", tmp_path], capsys)
    assert f"{tmp_path}: cannot be written" in message and "--json" in message  # before any matrix is read
