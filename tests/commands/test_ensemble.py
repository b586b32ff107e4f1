"""The ensemble script: averages, weights, what it refuses, what it writes."""

from __future__ import annotations

import csv
import json
import shutil

import numpy as np
import pytest

import eval_ensemble
from lib.core.provenance import file_record
from lib.datasets import data_set
from lib.evaluation import ensemble
from lib.evaluation.cxc.annotations import read_annotations
from lib.evaluation.cxc.scores import cxc_recalls
from lib.evaluation.matrices.stored import load_scores, save_results
from lib.evaluation.metrics import retrieval_metrics
from lib.evaluation.report import Row, evaluate_matrix, recall_table
from lib.evaluation.tables import text
from tests.helpers import evaluate

N, C = 20, 100
COCO, F30K = data_set("coco"), data_set("f30k")


@pytest.fixture
def pair(tmp_path):
    """Two saved COCO matrices: paths, arrays."""
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal((N, C)).astype(np.float32) + np.repeat(np.eye(N), 5, 1) for _ in range(2)]
    arrays = [array.astype(np.float32) for array in arrays]
    paths = [tmp_path / "a.npy", tmp_path / "b.npy"]
    for path, array in zip(paths, arrays, strict=True):
        save_results(path, array, {"dataset": "coco", "split": "testall", "limit": None})
    return paths, arrays


def run(*argv):
    eval_ensemble.main([str(argument) for argument in argv])


def refused(capsys, *argv):
    """The one line of an error that ends with code 2."""
    with pytest.raises(SystemExit) as stop:
        run(*argv)
    error = capsys.readouterr().err.strip()
    assert stop.value.code == 2 and error.startswith("error: ") and "\n" not in error
    return error


def test_the_mean_of_the_matrices_is_evaluated(pair, capsys):
    paths, (a, b) = pair
    run(*paths)
    expected = evaluate_matrix(COCO, ((a.astype(np.float64) + b) / 2).astype(np.float32))
    out = capsys.readouterr().out
    assert text(recall_table(expected)) in out
    figures = json.loads((paths[0].parent / "a_ensemble.json").read_text())
    assert figures["results"] == [row.as_dict() for row in expected]
    assert figures["dataset"] == "coco" and figures["split"] == "testall" and figures["weights"] == [0.5, 0.5]
    assert "a_ensemble.json" in out


def test_one_matrix_is_evaluated_as_it_is(pair, capsys):
    paths, (a, _) = pair
    run(paths[0], "--dataset", "coco")
    assert text(recall_table(evaluate_matrix(COCO, a))) in capsys.readouterr().out


@pytest.mark.parametrize("block", [1, 7, 128])
def test_weights_are_relative_and_blocks_change_nothing(pair, tmp_path, monkeypatch, block):
    monkeypatch.setattr(ensemble, "BLOCK_ROWS", block)
    paths, (a, b) = pair
    run(*paths, "--weights", 3, 1, "--save_results", tmp_path / "out/mean.npy", "--json", tmp_path / "out/figures.json")
    saved, info = load_scores(tmp_path / "out/mean.npy")
    assert saved.dtype == np.float32
    np.testing.assert_allclose(saved, 0.75 * a.astype(np.float64) + 0.25 * b, rtol=1e-6, atol=1e-7)
    assert info == json.loads((tmp_path / "out/figures.json").read_text())
    row = {"protocol": "COCO 20 images", "split": "testall", "chosen_on": None}
    assert info["results"][-1] == row | retrieval_metrics(saved).as_dict()
    run(tmp_path / "out/mean.npy", paths[0])  # a saved mean is a matrix like any other


def test_matrices_of_others_join_without_a_json_file(pair, tmp_path, capsys):
    _, (a, b) = pair
    np.save(tmp_path / "results_f30k.npy", {"npts": N, "sims": a.astype(np.float64)}, allow_pickle=True)
    np.savetxt(tmp_path / "other.txt", b)
    run(tmp_path / "results_f30k.npy", tmp_path / "other.txt")
    assert "Flickr30K 20 images" in capsys.readouterr().out
    error = refused(capsys, tmp_path / "other.txt")
    assert "give --dataset" in error
    run(tmp_path / "other.txt", "--dataset", "f30k")


def test_folders_of_five_folds_give_the_1k_figures_alone(pair, tmp_path, capsys):
    _, arrays = pair
    folders = [tmp_path / "model_a", tmp_path / "model_b"]
    for folder, array in zip(folders, arrays, strict=True):
        folder.mkdir()
        for fold in range(5):
            np.savetxt(folder / f"{fold}sim_best.txt", array[4 * fold : 4 * fold + 4, 20 * fold : 20 * fold + 20])
    run(*folders)
    mean = ((arrays[0].astype(np.float64) + arrays[1]) / 2).astype(np.float32)
    assert text(recall_table(evaluate_matrix(COCO, mean)[:-1])) in capsys.readouterr().out
    assert json.loads((folders[0] / "ensemble.json").read_text())["results"][-1]["protocol"] == "COCO 4 images mean"
    assert "no 5K matrix" in refused(capsys, *folders, "--save_results", tmp_path / "mean.npy")
    assert "is 20 x 100, but" in refused(capsys, folders[0], pair[0][0])


def test_limited_results_stay_marked(tmp_path, capsys):
    save_results(tmp_path / "a.npy", np.eye(10, dtype=np.float32), {"dataset": "coco", "split": "testall", "limit": 10})
    run(tmp_path / "a.npy")
    assert "COCO (first 10 images)" in capsys.readouterr().out
    assert json.loads((tmp_path / "a_ensemble.json").read_text())["limit"] == 10


def test_uneven_captions_per_image_come_from_the_json_file(tmp_path, capsys):
    owners = [0, 0, 0, 1, 2, 2, 3]
    scores = np.random.default_rng(0).standard_normal((4, 7)).astype(np.float32)
    save_results(tmp_path / "a.npy", scores, {"dataset": "f30k", "split": "test", "image_of_caption": owners})
    run(tmp_path / "a.npy")
    expected = evaluate_matrix(F30K, scores, np.array(owners))
    assert text(recall_table(expected)) in capsys.readouterr().out


@pytest.mark.parametrize(("split", "label"), [("test", "birds 1K"), ("testall", "birds testall 1K")])
def test_own_data_with_1000_images_is_labelled_by_its_own_name(tmp_path, capsys, split, label):
    scores = np.random.default_rng(0).random((1000, 1000), np.float32)
    info = {"dataset": "birds", "split": split, "limit": None}
    for name in ("a.npy", "b.npy"):
        save_results(tmp_path / name, scores, info)
    run(tmp_path / "a.npy", tmp_path / "b.npy", "--save_results", tmp_path / "mean.npy")
    output = capsys.readouterr().out
    assert text(recall_table([Row(label, retrieval_metrics(scores), split)])) in output
    assert "Flickr30K" not in output and "COCO" not in output and ", published" not in output
    figures = json.loads((tmp_path / "mean.json").read_text())  # beside the mean, and nowhere else
    assert figures["dataset"] == "birds" and [row["protocol"] for row in figures["results"]] == [label]
    assert not (tmp_path / "a_ensemble.json").exists()


def test_results_of_own_data_keep_its_name_from_eval_to_the_ensemble(sample, runs, tmp_path, capsys):
    shutil.copytree(sample / "f30k/precomp", tmp_path / "data/birds/precomp")
    for similarity in ("esl_a", "vse_infty"):
        flags = ("--bert_path", sample / "bert", "--save_results", "--output", tmp_path / similarity)
        evaluate(tmp_path / "data", runs(similarity) / "model_best.pth", *flags, data_name="birds")
    saved = [tmp_path / similarity / "results_birds.npy" for similarity in ("esl_a", "vse_infty")]
    capsys.readouterr()
    run(*saved)
    mean = np.mean([np.load(path) for path in saved], 0, np.float64).astype(np.float32)
    output = capsys.readouterr().out
    assert text(recall_table([Row("birds 10 images", retrieval_metrics(mean), "test", "dev")])) in output
    listed = [line.split("  ") for line in output.splitlines() if line.startswith("0.500  ")]
    assert listed == [
        ["0.500", str(saved[0]), "ESL-A, region features, BERT, embed_size 256, model_best.pth"],
        ["0.500", str(saved[1]), "VSE∞, region features, BERT, embed_size 256, model_best.pth"],
    ]
    figures = json.loads((tmp_path / "esl_a/results_birds_ensemble.json").read_text())
    assert figures["dataset"] == "birds" and figures["results"][0]["protocol"] == "birds 10 images"
    for path in saved:  # a matrix alone does not tell
        path.with_suffix(".json").unlink()
    assert "give --dataset" in refused(capsys, *saved)
    run(*saved, "--dataset", "birds")
    assert "birds 10 images" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("scale", "weights", "warned"), [(5, (), False), (30, (), True), (30, ("--weights", 30, 1), False)]
)
def test_scales_that_differ_tenfold_are_warned_about_unless_weights_balance_them(
    pair, tmp_path, capsys, scale, weights, warned
):
    paths, (a, _) = pair
    save_results(tmp_path / "big.npy", scale * a, {"dataset": "coco"})
    run(paths[1], tmp_path / "big.npy", *weights)
    warning = capsys.readouterr().err
    assert ("warning: the scores differ in scale" in warning and "big.npy" in warning) == warned


def test_results_of_another_split_are_refused(pair, tmp_path, capsys):
    save_results(tmp_path / "c.npy", pair[1][0], {"dataset": "coco", "split": "dev"})
    error = refused(capsys, pair[0][0], tmp_path / "c.npy")
    assert "c.npy" in error and "a.npy" in error and "split" in error


def test_bad_input_is_one_line_and_code_2(pair, tmp_path, capsys):
    paths, (a, _) = pair
    save_results(tmp_path / "small.npy", a[:10, :50], {"dataset": "coco"})
    save_results(tmp_path / "odd.npy", a[:, :99], {"dataset": "coco"})
    np.save(tmp_path / "nan.npy", np.full((N, C), np.nan))
    assert "differ in dataset" in refused(capsys, *paths, "--dataset", "f30k")
    assert "small.npy is 10 x 50, but" in refused(capsys, paths[0], tmp_path / "small.npy")
    assert "99 captions are no multiple of 20 images" in refused(capsys, tmp_path / "odd.npy")
    assert "nan.npy: NaN at row 0" in refused(capsys, paths[0], tmp_path / "nan.npy")
    assert "missing.npy: no such file" in refused(capsys, tmp_path / "missing.npy")
    assert "1 weights for 2 matrices" in refused(capsys, *paths, "--weights", 1)
    assert "--weights: -1.0 2.0" in refused(capsys, *paths, "--weights", -1, 2)
    assert "a finite sum above 0" in refused(capsys, *paths, "--weights", 0, 0)
    assert "would replace" in refused(capsys, *paths, "--save_results", paths[1])
    assert "would replace" in refused(capsys, *paths, "--json", paths[1].with_suffix(".json"))
    assert "cannot be written" in refused(capsys, *paths, "--json", paths[0] / "figures.json")
    assert "expected a name that ends in .npy" in refused(capsys, *paths, "--save_results", tmp_path / "mean.txt")
    (tmp_path / "mean.json").mkdir()
    assert "mean.json: cannot be written" in refused(capsys, *paths, "--save_results", tmp_path / "mean.npy")
    np.testing.assert_array_equal(load_scores(paths[1])[0], pair[1][1])  # nothing was touched


# ---- weights chosen on dev ----


@pytest.fixture
def dev_pair(pair, tmp_path):
    """dev matrices of the same two models: the first one knows everything, the second one nothing."""
    rng = np.random.default_rng(1)
    arrays = [np.repeat(np.eye(8), 5, 1) * 9 + rng.random((8, 40)), rng.standard_normal((8, 40))]
    paths = [tmp_path / "a_dev.npy", tmp_path / "b_dev.npy"]
    for path, array in zip(paths, arrays, strict=True):
        save_results(path, array, {"dataset": "coco", "split": "dev", "checkpoint_hash": path.stem[0]})
    return paths


def test_weights_are_those_with_the_best_rsum_on_dev_and_what_they_were_chosen_on_is_written(
    pair, dev_pair, tmp_path, capsys
):
    paths, (a, b) = pair
    run(*paths, "--tune_on", *dev_pair, "--output", tmp_path / "out", "--save_results", "mean.npy")
    saved, info = load_scores(tmp_path / "out/mean.npy")
    weights, rsum = ensemble.choose_weights([np.load(path) for path in dev_pair])
    assert info["weights"] == weights == [0.5, 0.5] and rsum == 600
    assert [path.name for path in sorted((tmp_path / "out").iterdir())] == ["mean.json", "mean.npy"]
    save_results(dev_pair[0], np.load(dev_pair[0]) / 20, {"dataset": "coco", "split": "dev"})
    run(*paths, "--tune_on", *dev_pair, "--output", tmp_path / "out", "--save_results", "mean.npy")
    saved, info = load_scores(tmp_path / "out/mean.npy")
    assert info["weights"][0] > 0.6 and info["tuned_on"]["split"] == "dev"
    np.testing.assert_allclose(saved, info["weights"][0] * a + info["weights"][1] * b, atol=1e-5)
    assert f"{info['weights'][0]:.3f}  {paths[0]}" in capsys.readouterr().out
    files = [record["files"] for record in (*info["inputs"], *info["tuned_on"]["inputs"])]
    assert files == [[file_record(path)] for path in (*paths, *dev_pair)]
    assert [record["weight"] for record in info["inputs"]] == info["weights"]


def test_weights_are_never_tuned_on_what_is_reported_or_on_an_unknown_split(pair, dev_pair, tmp_path, capsys):
    paths, (a, _) = pair
    assert "is of testall; weights are chosen on dev" in refused(capsys, *paths, "--tune_on", *paths)
    assert "never chosen on what is reported" in refused(capsys, *dev_pair, "--tune_on", *dev_pair)
    np.save(tmp_path / "results_coco.npy", a)
    unknown = tmp_path / "results_coco.npy"
    assert "no JSON file beside it says its split" in refused(capsys, *paths, "--tune_on", unknown, unknown)
    assert "1 matrices for 2" in refused(capsys, *paths, "--tune_on", dev_pair[0])
    assert "leave out --weights" in refused(capsys, *paths, "--tune_on", *dev_pair, "--weights", 1, 1)
    for path, letter in zip(paths, "ab", strict=True):
        save_results(path, a, {"dataset": "coco", "split": "testall", "checkpoint_hash": letter})
    assert "of another checkpoint than" in refused(capsys, *paths, "--tune_on", *dev_pair[::-1])


# ---- protocols, forms ----


def test_a_saved_matrix_is_judged_by_the_protocols_of_its_data_set(sample, tmp_path, capsys):
    scores = np.random.default_rng(0).standard_normal((25, 125)).astype(np.float32)
    save_results(tmp_path / "a.npy", scores, {"dataset": "coco", "split": "testall"})
    run(tmp_path / "a.npy", "--evaluate_cxc", "--data_path", sample / "coco")
    expected = cxc_recalls(scores, None, None, read_annotations(sample / "coco/cxc_annots"))
    figures = json.loads((tmp_path / "a_ensemble.json").read_text())["cxc"]
    assert figures == {task: recalls.as_dict() for task, recalls in expected.items()}
    assert set(figures) == {"i2t", "t2i"}  # a matrix has no vector for each item
    assert "I2T" in capsys.readouterr().out
    save_results(tmp_path / "test.npy", scores, {"dataset": "coco", "split": "test"})
    assert "whole testall split of coco" in refused(capsys, tmp_path / "test.npy", "--evaluate_cxc")
    message = refused(capsys, pair_of(tmp_path), "--evaluate_cxc", "--data_path", sample / "coco")
    assert "the matrix is 20 x 100, but testall" in message and "25 images and 125 captions" in message


def pair_of(folder):
    save_results(folder / "other.npy", np.eye(20, 100), {"dataset": "coco", "split": "testall"})
    return folder / "other.npy"


def test_a_form_for_pasting_leaves_tables_alone_on_stdout(pair, tmp_path, capsys):
    run(*pair[0], "--format", "csv", "--json", tmp_path / "out.json")
    output = capsys.readouterr()
    rows = list(csv.reader(output.out.splitlines()))
    assert rows[0][:4] == ["", "split", "chosen on", "image to text R@1"] and len(rows) == 8
    assert rows[-1][:3] == ["COCO 20 images", "testall", ""]
    assert "out.json" in output.err and str(pair[0][0]) in output.err
