"""lib.tools.gallery from the command line: a page with thumbnails and pictures that all exist, refusals in one line."""

from __future__ import annotations

import re
import shutil

import numpy as np
import pytest
from PIL import Image

from lib.tools.gallery import __main__ as script
from tests.helpers import copy_precomp, error_line, evaluate

pytestmark = pytest.mark.usefixtures("single_thread")


@pytest.fixture(scope="module")
def results(sample, runs, tmp_path_factory):
    """Matrices of the sample's test split by similarity, each beside its checkpoint."""
    root, paths = tmp_path_factory.mktemp("results"), {}
    for similarity in ("esl_a", "vse_infty"):
        (root / similarity).mkdir()
        checkpoint = shutil.copy(runs(similarity) / "model_best.pth", root / similarity)
        evaluate(sample, checkpoint, "--save_results")
        paths[similarity] = root / similarity / "results_f30k.npy"
    return paths


def run(*arguments) -> None:
    script.main([str(argument) for argument in arguments])


def test_the_page_of_two_matrices_has_all_files_that_it_names(sample, results, tmp_path, capsys):
    data = ("--data_path", sample / "f30k", "--bert_path", sample / "bert", "--device", "cpu")
    chosen = ("--query", "t2i:17", "--pictures", 1, "--count", 3)
    run(*results.values(), *data, "--out", tmp_path / "g", *chosen)
    assert f"gallery: {tmp_path}/g/index.html" in capsys.readouterr().out
    text = (tmp_path / "g/index.html").read_text(encoding="utf-8")
    named = set(re.findall(r'src="([^"]+)"', text))
    there = {str(path.relative_to(tmp_path / "g")) for path in (tmp_path / "g").rglob("*.*")} - {"index.html"}
    assert named == there
    assert {"pictures/t2i_17_right.png", "pictures/t2i_17_wrong.png"} <= named  # the chosen query comes first
    assert max(Image.open(tmp_path / "g" / name).size[0] for name in named if name.endswith(".jpg")) <= script.SIDE
    assert "Only esl_a is right" in text or "Only vse_infty is right" in text
    assert "ESL-A, region features, BERT" in text and "epoch chosen on dev" in text


def test_a_foreign_matrix_and_a_data_set_without_images_still_make_a_page(sample, results, tmp_path, capsys):
    precomp = copy_precomp(sample, tmp_path)
    np.savetxt(tmp_path / "other.txt", np.load(results["esl_a"]))
    run(tmp_path / "other.txt", "--dataset", "f30k", "--data_path", precomp.parent, "--out", tmp_path / "g")
    assert "note: the page has no images (no folder of raw images" in capsys.readouterr().out
    text = (tmp_path / "g/index.html").read_text(encoding="utf-8")
    assert "<img" not in text and "Worst ranks" in text


def test_an_image_that_cannot_be_read_is_left_out_and_named(sample, results, tmp_path, capsys):
    shutil.copytree(sample / "f30k", tmp_path / "f30k")
    broken = sorted((tmp_path / "f30k/flickr30k-images").iterdir())
    for path in broken:
        path.write_bytes(b"no image")
    run(results["esl_a"], "--data_path", tmp_path / "f30k", "--out", tmp_path / "g")
    assert "images are not shown (" in capsys.readouterr().out and (tmp_path / "g/index.html").is_file()


def test_bad_input_is_one_line(sample, results, tmp_path, capsys):
    data = ("--data_path", sample / "f30k", "--out", tmp_path / "g", "--bert_path", sample / "bert")

    def refusal(*arguments):
        return error_line(script.main, (*arguments, *data), capsys)

    matrix = results["esl_a"]
    assert "give no more" in refusal(matrix, matrix, matrix)
    (tmp_path / "g" / "index.html").mkdir(parents=True)
    assert "index.html: cannot be written" in refusal(tmp_path / "none.npy")
    (tmp_path / "g" / "index.html").rmdir()
    assert "--query t2i:50: expected i2t:0 to i2t:9 or t2i:0 to t2i:49" in refusal(matrix, "--query", "t2i:50")
    assert "ESL checkpoints do" in refusal(results["vse_infty"], "--pictures", 1)
    other = results["vse_infty"].with_name("model_best.pth")
    assert "is not the checkpoint that made" in refusal(matrix, "--pictures", 1, "--model_path", other)
    np.savetxt(tmp_path / "other.txt", np.load(matrix))
    assert "give --model_path" in refusal(tmp_path / "other.txt", "--dataset", "f30k", "--pictures", 1)
    assert not (tmp_path / "g" / "index.html").exists()
