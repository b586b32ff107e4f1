"""lib.tools.queries: the tables of a saved matrix are those of eval.py, whatever form the matrix was saved in."""

from __future__ import annotations

import json

import numpy as np
import pytest

from lib.evaluation.matrices.stored import save_results
from lib.tools import queries as script
from tests.helpers import error_line, evaluate

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def scored(sample, runs, tmp_path_factory):
    """A folder of eval.py's matrix of the sample's test split and the tables of its queries."""
    folder = tmp_path_factory.mktemp("scored")
    flags = ("--save_results", "--save_queries", "q.jsonl", "--output", folder)
    evaluate(sample, runs("esl_a") / "model_best.pth", *flags)
    return folder


def run(*arguments) -> None:
    script.main([str(argument) for argument in arguments])


def test_tables_of_a_saved_matrix_are_those_of_eval(sample, scored, tmp_path, capsys):
    scores, named = np.load(scored / "results_f30k.npy"), ("--dataset", "f30k", "--split", "test")
    np.save(tmp_path / "other.npy", {"npts": 10, "sims": scores}, allow_pickle=True)
    np.savetxt(tmp_path / "other.txt", scores)
    forms = ((scored / "results_f30k.npy", ()), (tmp_path / "other.npy", named), (tmp_path / "other.txt", named))
    for number, (matrix, flags) in enumerate(forms):
        out = tmp_path / f"out {number}"
        run(matrix, "--data_path", sample / "f30k", "--output", out / "q.jsonl", *flags)
        assert str(out / "q_t2i.jsonl") in capsys.readouterr().out
        for name in ("q_i2t.jsonl", "q_t2i.jsonl"):
            assert (out / name).read_text() == (scored / name).read_text()


def test_tables_name_image_files_captions_and_ranks_that_give_the_recalls(sample, scored):
    info = json.loads((scored / "results_f30k.json").read_text())["results"][0]
    for direction in ("i2t", "t2i"):
        rows = [json.loads(line) for line in (scored / f"q_{direction}.jsonl").read_text().splitlines()]
        hits = [row["rank"] == 1 for row in rows]
        assert 100 * sum(hits) / len(hits) == pytest.approx(info[direction]["r1"])
        for row in rows:
            assert (sample / "f30k/flickr30k-images" / row["file"]).is_file() and len(row["best"]) == 10
            assert row["rank"] > 10 or row["best"][row["rank"] - 1]["right"]


def test_five_fold_files_are_five_galleries(sample, tmp_path):
    scores = np.random.default_rng(0).standard_normal((25, 125)).astype(np.float32)
    for fold in range(5):
        part = scores[5 * fold : 5 * fold + 5, 25 * fold : 25 * fold + 25]
        np.save(tmp_path / f"{fold}sim_best.npy", part)
    run(tmp_path, "--data_path", sample / "coco", "--output", tmp_path / "q.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "q_i2t.jsonl").read_text().splitlines()]
    assert len(rows) == 25 and {item["caption"] // 25 for item in rows[7]["best"]} == {1}


def test_bad_input_is_one_line(sample, scored, tmp_path, capsys):
    matrix, data = scored / "results_f30k.npy", ("--data_path", sample / "f30k")

    def refusal(*arguments):
        return error_line(script.main, arguments, capsys)

    assert "expected a name that ends in .csv or .jsonl" in refusal(matrix, *data, "--output", "q.xlsx")
    assert "no such file" in refusal(tmp_path / "none.npy", *data)
    (tmp_path / "q_t2i.csv").mkdir()
    assert "q_t2i.csv: cannot be written" in refusal(tmp_path / "none.npy", *data, "--output", tmp_path / "q.csv")
    assert "differ in split (test and dev)" in refusal(matrix, *data, "--split", "dev")
    save_results(tmp_path / "small.npy", np.ones((4, 20)), {"dataset": "f30k", "split": "test"})
    message = refusal(tmp_path / "small.npy", *data)
    assert "the matrix is 4 x 20, but test" in message and "10 images and 50 captions" in message
