"""The checks and measurements of a GPU, run on the CPU with tiny sizes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks.gpu import __main__ as script
from benchmarks.gpu import checks
from benchmarks.gpu.bench import Bench, Sizes
from benchmarks.gpu.costs import COLUMNS, step_costs
from benchmarks.gpu.tables import Table
from lib.tools.sample.writing import SampleConfig
from tests.helpers import BERT

CPU = torch.device("cpu")
TINY = Sizes(
    coco=(10, 50), bert=BERT | {"vocab_size": 30522, "hidden_act": "gelu"}, embed_size=256, batch=8, grid_batch=2,
    grid_pixels=64, backbones=("tiny",), encoded=(128, 20), rounds=1, epochs=2, seconds=0,
    sample=SampleConfig(images=20, dev_images=5, test_images=4),
)  # fmt: skip
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("single_thread")]


@pytest.fixture
def bench(tmp_path) -> Bench:
    return Bench(CPU, TINY, tmp_path)


@pytest.mark.parametrize("check", checks.CHECKS, ids=lambda check: check.__name__)
def test_every_check_passes_on_a_cpu_or_says_that_it_needs_a_gpu(bench, check):
    result = check(bench)
    assert result is None or result[1], result


def test_a_check_notices_scores_that_are_wrong(bench, monkeypatch):
    wrong = checks.alignment_scores
    monkeypatch.setattr(checks, "alignment_scores", lambda *given: wrong(*given) * 1.001)
    assert not checks.scores_equal_the_definition(bench)[1]


def test_a_check_that_fails_or_breaks_is_said_and_the_next_ones_run(tmp_path, monkeypatch, capsys):
    def breaks(_):
        """one that breaks"""
        raise RuntimeError("no such\nkernel")

    def fails(_):
        """one that fails"""
        return "3", False

    monkeypatch.setattr(script, "CHECKS", (breaks, fails, checks.scores_equal_the_definition))
    assert script.main(["--device", "cpu", "--output", str(tmp_path / "out")], TINY) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:4]] == ["failed", "failed", "ok"]
    assert "RuntimeError: no such kernel" in lines[1] and lines[-1].startswith("2 of 3 checks failed")
    content = json.loads((tmp_path / "out" / "gpu.json").read_text())
    assert [check["state"] for check in content["checks"]] == ["failed", "failed", "ok"]
    assert content["left_out"] and "Not measured" in (tmp_path / "out" / "gpu.md").read_text()  # no seconds were given


def test_a_measurement_becomes_a_table_and_a_broken_one_says_why(bench, monkeypatch):
    found = {each.title: each for each in script.measurements(bench)}
    assert {"scoring, bf16", "training step, tf32", "grid step, tiny", "ranking", "waiting for data"} <= set(found)
    table = script.measured(found["ranking"])
    assert table.rows[0][0].startswith("floor") and table.rows[0][1] > 0
    (tmp := Path(bench.folder)).joinpath("rows.json").unlink()
    monkeypatch.setattr(script.Measurement, "run", None, raising=False)
    broken = script.Measurement("grid", lambda: tmp.joinpath("rows.json").read_text())
    assert script.measured(broken).columns == ("failed",)


def test_waiting_for_data_is_a_share_of_the_step(bench):
    (row,) = {each.title: each for each in script.measurements(bench)}["waiting for data"].run().rows
    assert row[1] > 0 and 0 < row[2] < 1


def test_the_operations_of_a_step_are_those_that_its_products_need(bench):
    table = step_costs(bench)
    assert table.columns == COLUMNS
    flops = {row[0]: row[1] * 1e9 for row in table.rows}
    words, size = int(bench.batch().captions.lengths.sum()), 512  # at least: 511 values of the levels of 256
    S = 2 * words * 8 * 36 * (size - 1)
    assert flops["head and loss"] > S and flops["backward of the head"] > 2 * S
    assert flops["whole step"] == pytest.approx(sum(list(flops.values())[:-1]))


def test_a_table_is_markdown():
    text = Table("title", ("what", "ms"), [["a", 0.12345], ["b", 1234.5], ["c", None]]).markdown()
    assert text == "### title\n\n| what | ms |\n| --- | --- |\n| a | 0.123 |\n| b | 1,234 |\n| c | – |\n"
