"""eval.py from the command line to its tables and files, on checkpoints that train.py wrote."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

import eval as script
import lib.commands.evaluate as job
from lib.checkpoint import convert, read_checkpoint
from lib.core.provenance import file_record
from lib.datasets import DATA_SETS
from lib.evaluation import published
from lib.evaluation.matrices.stored import checkpoint_hash
from lib.evaluation.metrics import retrieval_metrics
from lib.evaluation.protocols import PROTOCOLS, Protocol
from lib.evaluation.published import Published
from lib.evaluation.tables import Table
from lib.files.reading import read_ids
from lib.similarity.alignment import Backend
from tests import helpers
from tests.helpers import HEADS, error_line, eval_arguments, evaluate, scalars
from tests.processes import in_a_process

pytestmark = pytest.mark.usefixtures("single_thread")
RECALLS = ("r1", "r5", "r10", "medr", "meanr")


@pytest.fixture(scope="module")
def best(runs) -> Path:
    return runs("esl_a") / "model_best.pth"


@pytest.fixture(scope="module")
def coco_run(sample, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("coco_run")
    return helpers.train(sample, folder, "--num_epochs", 1, "--similarity", "esl_h", data_name="coco")


def figures(row: dict) -> list[float]:
    """The figures of a row of the JSON file in the order of the table."""
    return [row[d][m] for d in ("i2t", "t2i") for m in RECALLS] + [row["rsum"]]


def table_rows(output: str) -> dict[str, list[float]]:
    """Words before the split, and figures of every row of the printed tables."""
    rows = {}
    for line in output.splitlines():
        found = re.fullmatch(r"(\S.*?) +(train|dev|test|testall)  +(\S+) +((?:[\d.]+[ |]*){11})", line)
        if found:
            rows[re.sub("  +", "  ", found[1])] = [float(number) for number in re.findall(r"[\d.]+", found[4])]
    return rows


@pytest.mark.parametrize("similarity", HEADS)
def test_the_table_and_the_json_file_hold_the_same_figures(sample, runs, tmp_path, capsys, similarity):
    evaluate(sample, runs(similarity) / "model_best.pth", "--output", tmp_path)
    (file,) = tmp_path.iterdir()
    assert file.name == "metrics_f30k_test.json"
    info = json.loads(file.read_text())
    printed = table_rows(capsys.readouterr().out)
    assert [row["protocol"] for row in info["results"]] == ["Flickr30K 10 images"]
    assert printed["Flickr30K 10 images"] == pytest.approx(figures(info["results"][0]), abs=0.05)
    row = info["results"][0]
    assert row["rsum"] == pytest.approx(sum(row[d][m] for d in ("i2t", "t2i") for m in RECALLS[:3]))
    assert (info["dataset"], info["split"], info["limit"]) == ("f30k", "test", None)
    assert (info["images"], info["captions"]) == (10, 50)
    assert info["checkpoint"] == "model_best.pth"
    assert info["checkpoint_hash"] == checkpoint_hash(runs(similarity) / "model_best.pth")
    assert info["config"]["similarity"] == similarity


@pytest.mark.parametrize("similarity", HEADS)
def test_the_recalls_are_those_that_training_logged_for_the_same_split(sample, runs, tmp_path, similarity):
    folder = runs(similarity)
    evaluate(sample, folder / "checkpoint.pth", "--split", "dev", "--batch_size", 24, "--output", tmp_path)
    row = json.loads((tmp_path / "metrics_f30k_dev.json").read_text())["results"][0]
    logged = scalars(folder / "log")
    assert row["rsum"] == pytest.approx(logged["dev/rsum"][-1][1], rel=1e-6)
    for direction in ("i2t", "t2i"):
        for name in RECALLS:
            assert row[direction][name] == pytest.approx(logged[f"dev/{direction}_{name}"][-1][1], rel=1e-6)


def test_batch_size_workers_score_memory_and_kernels_do_not_change_the_matrix(sample, best, tmp_path):
    variants = [(), ("--batch_size", 3), ("--workers", 2, "--batch_size", 1), ("--score_memory", 1)]
    variants += [("--kernels", "torch"), ("--kernels", "plain"), ("--precision", "tf32")]
    matrices = []
    for number, flags in enumerate(variants):
        evaluate(sample, best, "--save_results", "--output", tmp_path / str(number), *flags)
        matrices.append(np.load(tmp_path / str(number) / "results_f30k.npy"))
    for matrix in matrices[1:]:
        np.testing.assert_allclose(matrix, matrices[0], rtol=0, atol=1e-6 * abs(matrices[0]).max())


def test_save_results_writes_a_plain_float32_matrix_and_its_json_beside_the_checkpoint(sample, best, tmp_path):
    checkpoint = Path(shutil.copy(best, tmp_path / "model_best.pth"))
    evaluate(sample, checkpoint, "--save_results")
    names = {"model_best.pth", "results_f30k.npy", "results_f30k.json"}
    assert {path.name for path in tmp_path.iterdir()} == names
    matrix = np.load(tmp_path / "results_f30k.npy", mmap_mode="r", allow_pickle=False)
    assert matrix.dtype == np.float32 and matrix.shape == (10, 50)
    info = json.loads((tmp_path / "results_f30k.json").read_text())
    assert info["results"][0]["rsum"] == pytest.approx(retrieval_metrics(matrix).rsum)


def test_the_json_says_what_the_figures_were_made_with_and_from(sample, runs, best, tmp_path):
    for name, checkpoint in (("best", best), ("latest", runs("esl_a") / "checkpoint.pth")):
        evaluate(sample, checkpoint, "--output", tmp_path / name)
    info = json.loads((tmp_path / "best/metrics_f30k_test.json").read_text())
    assert {"versions", "commit", "date", "host", "devices", "precision", "kernels"} <= set(info)
    precomp = sample / "f30k/precomp"
    expected = [file_record(precomp / f"test_{kind}") for kind in ("caps.txt", "ids.txt", "ims.npy")]
    assert info["files"] == expected
    assert info["chosen_on"] == info["results"][0]["chosen_on"] == "dev"  # the split of model_best.pth
    latest = json.loads((tmp_path / "latest/metrics_f30k_test.json").read_text())
    assert latest["chosen_on"] is None  # the last epoch was not chosen


def test_the_tables_of_queries_stand_beside_the_figures_under_the_name_that_is_given(sample, best, tmp_path, capsys):
    evaluate(sample, best, "--save_queries", "--limit", 4, "--output", tmp_path / "a")
    names = {"metrics_f30k_test_limited.json", "queries_f30k_limited_i2t.csv", "queries_f30k_limited_t2i.csv"}
    assert {path.name for path in (tmp_path / "a").iterdir()} == names
    assert f"queries: {tmp_path}/a/queries_f30k_limited_i2t.csv" in capsys.readouterr().out
    evaluate(sample, best, "--save_queries", tmp_path / "b/q.jsonl", "--output", tmp_path / "a")
    lines = (tmp_path / "b/q_t2i.jsonl").read_text().splitlines()
    assert len(lines) == 50 and json.loads(lines[7])["image"] == 1


def test_a_form_for_pasting_leaves_tables_alone_on_stdout(sample, best, tmp_path, capsys):
    evaluate(sample, best, "--format", "markdown", "--output", tmp_path)
    output = capsys.readouterr()
    lines = output.out.strip().splitlines()
    assert all(line.startswith("|") for line in lines[:3])
    assert lines[3:] == [
        "",
        "100 whatever the scores, for want of candidates: R@10 text to image of Flickr30K 10 images",
    ]
    assert lines[2].startswith("| Flickr30K 10 images | test | dev | ")
    assert "ESL-A" in output.err and "figures: " in output.err


def test_a_checkpoint_in_the_released_format_gives_the_same_matrix(sample, best, tmp_path):
    (tmp_path / "released").mkdir()
    (tmp_path / "ours").mkdir()
    convert(best, tmp_path / "released" / "model_best.pth", "released")
    shutil.copy(best, tmp_path / "ours" / "model_best.pth")
    for name in ("released", "ours"):
        evaluate(sample, tmp_path / name / "model_best.pth", "--save_results")
    released, ours = (np.load(tmp_path / name / "results_f30k.npy") for name in ("released", "ours"))
    np.testing.assert_array_equal(released, ours)


def test_limited_results_are_marked_in_the_table_the_json_and_the_file_name(sample, best, tmp_path, capsys):
    evaluate(sample, best, "--limit", 4, "--output", tmp_path)
    assert "Flickr30K (first 4 images)" in table_rows(capsys.readouterr().out)
    info = json.loads((tmp_path / "metrics_f30k_test_limited.json").read_text())
    assert (info["limit"], info["images"], info["captions"]) == (4, 4, 20)
    evaluate(sample, best, "--limit", 10, "--output", tmp_path / "whole")
    assert (tmp_path / "whole" / "metrics_f30k_test.json").is_file()


def test_coco_testall_gives_five_folds_their_mean_and_the_whole_from_one_matrix(sample, coco_run, tmp_path, capsys):
    checkpoint = coco_run / "model_best.pth"
    evaluate(sample, checkpoint, "--save_results", "--output", tmp_path, data_name="coco")
    printed = table_rows(capsys.readouterr().out)
    info = json.loads((tmp_path / "results_coco.json").read_text())
    labels = [*(f"COCO 5 images fold {n}" for n in range(1, 6)), "COCO 5 images mean", "COCO 25 images"]
    assert [row["protocol"] for row in info["results"]] == labels
    for row in info["results"]:
        assert printed[row["protocol"]] == pytest.approx(figures(row), abs=0.05)
    matrix = np.load(tmp_path / "results_coco.npy")
    folds = [retrieval_metrics(matrix[5 * n : 5 * n + 5, 25 * n : 25 * n + 25]).rsum for n in range(5)]
    assert [row["rsum"] for row in info["results"]] == pytest.approx(
        [*folds, sum(folds) / 5, retrieval_metrics(matrix).rsum]
    )
    evaluate(sample, checkpoint, "--split", "test", "--output", tmp_path, data_name="coco")
    first = json.loads((tmp_path / "metrics_coco_test.json").read_text())["results"]
    assert len(first) == 1 and first[0]["rsum"] == pytest.approx(folds[0])  # test is the first fold of testall


def test_cxc_recalls_of_four_tasks_are_printed_and_saved(sample, coco_run, tmp_path, capsys):
    evaluate(sample, coco_run / "model_best.pth", "--evaluate_cxc", "--output", tmp_path, data_name="coco")
    info = json.loads((tmp_path / "metrics_coco_testall.json").read_text())
    assert set(info["cxc"]) == {"i2t", "t2i", "t2t", "i2i"}
    recalls = [info["cxc"][task][name] for task in ("i2t", "t2i", "t2t", "i2i") for name in ("r1", "r5", "r10")]
    assert all(0 <= value <= 100 for value in recalls) and len(set(recalls)) > 4
    output = capsys.readouterr().out
    line = next(line for line in output.splitlines() if line.startswith(f"{coco_run.name}/model_best.pth"))
    assert [float(number) for number in re.findall(r"\d+\.\d", line)] == pytest.approx(recalls, abs=0.05)


def test_without_a_path_every_released_folder_of_the_data_set_is_evaluated(sample, runs, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, similarity in (("f30k_esl_a", "esl_a"), ("f30k_vse", "vse_infty"), ("coco_esl", "esl_h")):
        (tmp_path / "runs/release_weights" / name).mkdir(parents=True)
        shutil.copy(runs(similarity) / "model_best.pth", tmp_path / "runs/release_weights" / name)
    (tmp_path / "runs/release_weights/f30k_vse/model_best.pth").rename(
        tmp_path / "runs/release_weights/f30k_vse/anything.pth"
    )
    evaluate(sample, None)
    output = capsys.readouterr().out
    assert "f30k_esl_a/model_best.pth" in output and "f30k_vse/anything.pth" in output and "coco_esl" not in output
    for name in ("f30k_esl_a", "f30k_vse"):
        assert (tmp_path / "runs/release_weights" / name / "metrics_f30k_test.json").is_file()
    summary = [line for line in output.splitlines() if line.startswith("Flickr30K 10 images  f30k_")]
    assert len(summary) == 2


def test_no_released_weights_say_where_they_were_looked_for(sample, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    message = error_line(script.main, eval_arguments(sample, None), capsys)
    assert f"{tmp_path}/runs/release_weights/f30k_*" in message and "--model_path" in message


def test_several_checkpoints_are_summed_up_in_one_table(sample, runs, tmp_path, capsys):
    paths = [shutil.copytree(runs(s), tmp_path / s) / "model_best.pth" for s in ("esl_a", "esl_h")]
    evaluate(sample, paths[0], "--model_path", *paths)
    printed = table_rows(capsys.readouterr().out)
    for path in paths:
        info = json.loads((path.parent / "metrics_f30k_test.json").read_text())
        label = f"Flickr30K 10 images  {path.parent.name}/model_best.pth"
        assert printed[label] == pytest.approx(figures(info["results"][0]), abs=0.05)


def test_the_flags_of_the_machine_reach_what_scores(sample, best, tmp_path, monkeypatch):
    seen, runner = [], job.build_runner
    monkeypatch.setattr(job, "build_runner", lambda *given: seen.append(given[1:]) or runner(*given))
    evaluate(sample, best, "--output", tmp_path)
    flags = ("--kernels", "torch", "--score_memory", 3, "--precision", "bf16")
    evaluate(sample, best, "--output", tmp_path, *flags)
    (cpu,) = seen[0][0]
    assert cpu.type == "cpu"
    assert seen == [([cpu], "float32", Backend("auto", None)), ([cpu], "bf16", Backend("torch", 3 << 20))]


def test_bf16_is_named_and_moves_no_score_by_more_than_a_hundredth_of_the_largest(sample, best, tmp_path):
    for precision in ("float32", "bf16"):
        flags = ("--split", "train", "--precision", precision, "--save_results", "--output", tmp_path / precision)
        evaluate(sample, best, *flags)
    exact, rough = (np.load(tmp_path / precision / "results_f30k.npy") for precision in ("float32", "bf16"))
    assert 0 < abs(rough - exact).max() < 0.01 * abs(exact).max()
    infos = [json.loads((tmp_path / name / "results_f30k.json").read_text()) for name in ("float32", "bf16")]
    assert [info["precision"] for info in infos] == ["float32", "bf16"]


def test_grid_checkpoints_are_evaluated_from_raw_images(sample, tmp_path, capsys):
    folder = helpers.train(sample, tmp_path, *helpers.grid_flags("--batch_size", 60))
    evaluate(sample, folder / "checkpoint.pth", "--split", "dev", "--batch_size", 60)
    row = json.loads((folder / "metrics_f30k_dev.json").read_text())["results"][0]
    assert row["rsum"] == pytest.approx(scalars(folder / "log")["dev/rsum"][-1][1], rel=1e-6)
    assert "grid features (tiny)" in capsys.readouterr().out
    assert read_checkpoint(folder / "checkpoint.pth").config.image_options["input_scale_factor"] == 0.25


# ---- one's own data ----


@pytest.fixture
def birds(sample, tmp_path, monkeypatch) -> Path:
    """The folder of a run with one's own data in data/birds: the sample's f30k under another name."""
    shutil.copytree(sample / "f30k/precomp", tmp_path / "data/birds/precomp")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_own_data_is_labelled_by_its_own_name_in_tables_json_and_file_names(sample, best, birds, capsys):
    flags = ["--bert_path", sample / "bert", "--device", "cpu", "--workers", 0, "--output", birds / "out"]
    arguments = ["--dataset", "birds", "--model_path", best, "--save_results", *flags]
    script.main(list(map(str, arguments)))  # data/birds is where it looks
    output = capsys.readouterr().out
    assert {path.name for path in (birds / "out").iterdir()} == {"results_birds.npy", "results_birds.json"}
    info = json.loads((birds / "out/results_birds.json").read_text())
    assert (info["dataset"], info["split"]) == ("birds", "test") and (info["images"], info["captions"]) == (10, 50)
    assert [row["protocol"] for row in info["results"]] == ["birds 10 images"]
    assert table_rows(output)["birds 10 images"] == pytest.approx(figures(info["results"][0]), abs=0.05)
    assert "Flickr30K" not in output and "COCO" not in output
    evaluate(sample, best, "--output", birds / "known")  # the same files under their own name have the same figures
    known = json.loads((birds / "known/metrics_f30k_test.json").read_text())
    assert known["results"] == [{**info["results"][0], "protocol": "Flickr30K 10 images"}]


def test_published_figures_stand_beside_known_data_sets_and_never_beside_own_data(
    sample, runs, birds, capsys, monkeypatch
):
    model = "ESL-A, region features, BERT"
    labels = ("Flickr30K 10 images", "birds 10 images")
    monkeypatch.setattr(published, "PUBLISHED", [Published(model, label, 512.3) for label in labels])
    checkpoints = [runs(similarity) / "model_best.pth" for similarity in ("esl_a", "esl_h")]
    evaluate(sample, checkpoints[0], "--output", birds / "out")
    summary = capsys.readouterr().out.split("\n\n")[1].splitlines()
    assert len(summary) == 7 and summary[3].startswith(f"Flickr30K 10 images  {model}, published")
    assert [line.split(":")[0] for line in summary[4:6]] == ["-", "-"]
    bert = ("--bert_path", sample / "bert", "--output", birds / "out")
    for paths in (checkpoints[:1], checkpoints):
        evaluate(birds / "data", paths[0], "--model_path", *paths, *bert, data_name="birds")
        output = capsys.readouterr().out
        assert "birds 10 images" in output and ", published" not in output


# ---- protocols ----


class Toy:
    """A protocol that is a row of the table and of f30k's row; it keeps what it is asked to do, in order."""

    def __init__(self, monkeypatch):
        self.asked, self.read_of, self.shown = [], [], []
        row = Protocol("a toy of f30k", self.read, self.evaluate, self.tables)
        monkeypatch.setitem(PROTOCOLS, "toy", row)
        monkeypatch.setitem(DATA_SETS, "f30k", dataclasses.replace(DATA_SETS["f30k"], protocols=("toy",)))
        score_split = job.score_split

        def scored(*given, vectors=False, **options):
            self.asked.append("score with vectors" if vectors else "score")
            return score_split(*given, vectors=vectors, **options)

        monkeypatch.setattr(job, "score_split", scored)

    def read(self, data_path, image_ids) -> str:
        self.asked.append("read")
        self.read_of.append((str(data_path), image_ids.tolist()))
        return "what was read"

    def evaluate(self, scores, reference) -> dict:
        self.asked.append("evaluate")
        shapes = [list(part.shape) for part in scores]
        return {"toy": {"best": scores.matrix.max(), "reference": reference, "shapes": shapes}}

    def tables(self, rows, with_published) -> list[Table]:
        self.shown.append((len(rows), with_published))
        return [Table([""], [("", ["best"])], [([f"toy of {n}"], [[f"{f['toy']['best']:.4f}"]]) for n, f in rows])]


def test_a_protocol_of_the_table_is_a_flag_and_its_figures_are_printed_and_saved(
    sample, runs, best, tmp_path, capsys, monkeypatch
):
    toy = Toy(monkeypatch)
    evaluate(sample, best, "--evaluate_toy", "--save_results", "--output", tmp_path)
    assert toy.asked == ["read", "score with vectors", "evaluate"]  # what is missing is found before the work
    ids = read_ids(sample / "f30k/precomp/test_ids.txt")[::5].tolist()
    assert toy.read_of == [(str(sample / "f30k"), ids)] and toy.shown == [(1, False)]
    saved = json.loads((tmp_path / "results_f30k.json").read_text())
    best_score = float(np.load(tmp_path / "results_f30k.npy").max())
    assert saved["toy"] == {
        "best": best_score,
        "reference": "what was read",
        "shapes": [[10, 50], [10, 511], [50, 511]],
    }
    assert f"toy of esl_a/model_best.pth  {best_score:.4f}" in capsys.readouterr().out.splitlines()

    evaluate(
        sample, best, "--evaluate_toy", "--model_path", best, runs("esl_h") / "model_best.pth", "--output", tmp_path
    )
    assert toy.shown[1:] == [(1, False), (1, False), (2, False)]  # each, then both in one table
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("toy of ")]
    assert len(lines) == 4 and lines[:2] == lines[2:]


def test_a_protocol_that_was_not_asked_for_is_neither_read_nor_judged(sample, best, tmp_path, capsys, monkeypatch):
    toy = Toy(monkeypatch)
    evaluate(sample, best, "--output", tmp_path)
    assert toy.asked == ["score"]
    assert "toy" not in json.loads((tmp_path / "metrics_f30k_test.json").read_text())
    assert "toy" not in capsys.readouterr().out


@pytest.mark.parametrize("flags", [("--split", "dev"), ("--limit", 3), ("--dataset", "coco")])
def test_a_protocol_is_refused_where_it_is_not_defined_by_a_line_that_says_where_it_is(
    sample, best, capsys, monkeypatch, flags
):
    toy = Toy(monkeypatch)
    message = error_line(script.main, eval_arguments(sample, best, "--evaluate_toy", *flags), capsys)
    assert "--evaluate_toy" in message and "f30k" in message and "testall" not in message
    assert not toy.asked


# ---- bad input ----

BAD_INPUT = {
    "no such checkpoint": (["--model_path", "{tmp}/none.pth"], ["{tmp}/none.pth", "no such file"]),
    "a folder as checkpoint": (["--model_path", "{tmp}"], ["{tmp}", "is a folder"]),
    "an empty checkpoint": (["--model_path", "{tmp}/empty.pth"], ["{tmp}/empty.pth", "is empty"]),
    "a truncated checkpoint": (["--model_path", "{tmp}/half.pth"], ["{tmp}/half.pth", "truncated or damaged"]),
    "a data set's name that is a path": (["--dataset", "../f30k"], ["'../f30k'", "coco", "f30k", "your own data"]),
    "unknown split": (["--split", "val"], ["'val'", "dev", "test"]),
    "split of coco alone": (["--split", "testall"], ["testall", "dev", "test"]),
    "no data folder": (["--data_path", "{tmp}/none"], ["{tmp}/none", "precomp"]),
    "features of another size": (["--data_path", "{tmp}/f30k"], ["test_ims.npy", "size 20", "32"]),
    "no tokenizer": (["--bert_path", "{tmp}"], ["{tmp}", "tokenizer"]),
    "cxc on f30k": (["--evaluate_cxc"], ["--evaluate_cxc", "testall", "coco"]),
    "cxc on own data": (["--dataset", "birds", "--evaluate_cxc"], ["--evaluate_cxc", "testall", "coco"]),
    "cxc on another split": (["--dataset", "coco", "--split", "test", "--evaluate_cxc"], ["--evaluate_cxc", "testall"]),
    "cxc on a part": (["--dataset", "coco", "--limit", 5, "--evaluate_cxc"], ["--evaluate_cxc", "--limit"]),
    "limit of nothing": (["--limit", 0], ["--limit", "0"]),
    "unwritable output": (["--output", "{tmp}/empty.pth/out"], ["{tmp}/empty.pth/out", "cannot be written"]),
    "a folder in place of figures": (["--output", "{tmp}/taken"], ["metrics_f30k_test.json: cannot be written"]),
    "a folder in place of a matrix": (["--output", "{tmp}/taken", "--save_results"], ["results_f30k.npy: cannot be"]),
    "a folder in place of a table": (
        ["--output", "{tmp}/taken", "--limit", 4, "--save_queries"],
        ["queries_f30k_limited_t2i.csv: cannot be written", "--save_queries"],
    ),
    "queries in no form": (["--save_queries", "q.txt"], ["--save_queries q.txt", ".csv or .jsonl"]),
    "unknown flag": (["--modelpath", "x"], ["--modelpath"]),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_one_line_that_names_it(sample, best, tmp_path, capsys, monkeypatch, case):
    monkeypatch.setattr(job, "score_split", lambda *_, **__: pytest.fail("scoring started"))
    flags, expected = BAD_INPUT[case]
    for name in ("metrics_f30k_test.json", "results_f30k.npy", "queries_f30k_limited_t2i.csv"):
        (tmp_path / "taken" / name).mkdir(parents=True)
    (tmp_path / "empty.pth").touch()
    (tmp_path / "half.pth").write_bytes(best.read_bytes()[:100_000])
    if case == "features of another size":
        file = helpers.copy_precomp(sample, tmp_path) / "test_ims.npy"
        np.save(file, np.load(file)[..., :20])
    flags = [str(flag).format(tmp=tmp_path) for flag in flags]
    message = error_line(script.main, eval_arguments(sample, best, *flags), capsys)
    for part in expected:
        assert part.format(tmp=tmp_path) in message


def test_annotations_of_other_images_are_refused(sample, coco_run, tmp_path, capsys):
    precomp = helpers.copy_precomp(sample, tmp_path, "coco")
    shutil.copytree(sample / "coco/cxc_annots", tmp_path / "coco/cxc_annots")
    ids = (precomp / "testall_ids.txt").read_text().split()
    (precomp / "testall_ids.txt").write_text("\n".join([*ids[:-5], *["999999"] * 5]) + "\n")
    arguments = eval_arguments(tmp_path, coco_run / "model_best.pth", "--bert_path", sample / "bert", data_name="coco")
    message = error_line(script.main, [*arguments, "--evaluate_cxc"], capsys)
    assert "testall_ids.txt" in message and f"image 24 is {ids[-1]} there and 999999 in the split" in message


def test_missing_annotations_are_found_before_scoring(sample, coco_run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(job, "score_split", lambda *_, **__: pytest.fail("scoring started"))
    helpers.copy_precomp(sample, tmp_path, "coco")
    arguments = eval_arguments(tmp_path, coco_run / "model_best.pth", "--bert_path", sample / "bert", data_name="coco")
    message = error_line(script.main, [*arguments, "--evaluate_cxc"], capsys)
    assert str(tmp_path / "coco/cxc_annots") in message


def test_nan_in_features_is_one_line_and_code_2_in_a_process_of_its_own(sample, best, tmp_path):
    file = helpers.copy_precomp(sample, tmp_path) / "test_ims.npy"
    features = np.load(file)
    features[20, 1, 2] = np.nan
    np.save(file, features)
    arguments = eval_arguments(tmp_path, best, "--bert_path", sample / "bert", "--output", tmp_path / "out")
    done = in_a_process(tmp_path, script.main, arguments)
    assert done.returncode == 2
    assert "test_ims.npy, row 20, region 1" in helpers.one_error(done.stderr)
    assert not list((tmp_path / "out").glob("*"))


def test_checkpoints_that_share_an_output_folder_keep_their_own_results(sample, runs, tmp_path):
    checkpoints = [runs(head) / "model_best.pth" for head in ("esl_a", "vse_infty")]
    evaluate(sample, *checkpoints, "--save_results", "--output", tmp_path)
    matrices = sorted(tmp_path.glob("results_f30k_*.npy"))
    assert len(matrices) == 2 and not np.array_equal(*map(np.load, matrices))
    assert len(list(tmp_path.glob("results_f30k_*.json"))) == 2
