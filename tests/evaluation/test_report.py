"""Rows of a data set's split, whose labels say what they show, and the text tables of their figures."""

from __future__ import annotations

import json

import numpy as np
import pytest

from lib.core.errors import InputError
from lib.datasets import DATA_SETS, data_set
from lib.evaluation.cxc.scores import Correlation, TaskRecalls
from lib.evaluation.metrics import Recalls, Retrieval, mean_retrieval, retrieval_metrics
from lib.evaluation.published import PUBLISHED_CXC
from lib.evaluation.report import (
    ModelResult,
    Row,
    correlation_table,
    cxc_table,
    evaluate_matrix,
    has_published,
    recall_table,
    summary_table,
)
from lib.evaluation.tables import text

COCO, F30K = data_set("coco"), data_set("f30k")
ESL_A = "ESL-A, region features, BERT"


def random_scores(n_images, n_captions):
    return np.random.default_rng(0).random((n_images, n_captions), np.float32)


def result(rsum=300.0):
    return Retrieval(Recalls(12.34, 50.0, 100.0, 3.0, 4.56), Recalls(1.0, 2.0, 3.0, 44.0, 1234.5), rsum)


def labels(*arguments, **options):
    return [row.label for row in evaluate_matrix(*arguments, **options)]


# ---- rows and their labels ----


def test_coco_testall_has_five_folds_their_mean_and_the_whole():
    scores = random_scores(5000, 5000)
    rows = evaluate_matrix(COCO, scores)
    assert [row.label for row in rows] == [f"COCO 1K fold {i}" for i in range(1, 6)] + ["COCO 1K mean", "COCO 5K"]
    parts = [retrieval_metrics(scores[i : i + 1000, i : i + 1000]) for i in range(0, 5000, 1000)]
    assert [row.result for row in rows] == [*parts, mean_retrieval(parts), retrieval_metrics(scores)]
    assert {row.split for row in rows} == {"testall"}


def test_labels_name_the_protocol_split_and_size():
    assert labels(F30K, random_scores(1000, 1000)) == ["Flickr30K 1K"]
    assert labels(F30K, random_scores(1000, 1000), split="test") == ["Flickr30K 1K"]
    assert labels(F30K, random_scores(14, 14), split="dev") == ["Flickr30K dev 14 images"]
    assert labels(COCO, random_scores(20, 20), split="test") == ["COCO test 20 images"]
    sample = labels(COCO, random_scores(20, 40), split="testall")
    assert sample[0] == "COCO 4 images fold 1" and sample[-2:] == ["COCO 4 images mean", "COCO 20 images"]


@pytest.mark.parametrize("name", ["birds", "flickr8k", "coco-2017", "f30k_german"])
def test_own_data_is_labelled_by_its_own_name_whatever_its_size_and_split(name):
    row, thousand = data_set(name), random_scores(1000, 1000)
    assert labels(row, thousand) == labels(row, thousand, split="test") == [f"{name} 1K"]
    assert labels(row, thousand, split="testall") == [f"{name} testall 1K"]  # folds are of COCO alone
    assert labels(row, random_scores(14, 28), split="dev") == [f"{name} dev 14 images"]
    assert labels(row, random_scores(7, 7), limit=7) == [f"{name} (first 7 images)"]


@pytest.mark.parametrize("name", ["birds", "flickr8k", "coco-2017"])
def test_own_data_has_no_published_figures_beside_it(name):
    rows = evaluate_matrix(data_set(name), random_scores(1000, 1000))
    for model in (None, ESL_A):
        models = [ModelResult("mine", rows, model)]
        assert not has_published(models)
        (line,) = text(summary_table(models)).splitlines()[2:3]
        assert line.startswith(f"{name} 1K  mine ")


def test_published_figures_are_of_known_data_sets_alone():
    assert {name for name, row in DATA_SETS.items() if row.published} == {"coco", "f30k"}
    assert not data_set("birds").published


def test_a_limited_result_is_marked_and_has_no_folds():
    assert labels(COCO, random_scores(20, 20), limit=20) == ["COCO (first 20 images)"]
    assert labels(F30K, random_scores(5, 5), split="dev", limit=5) == ["Flickr30K dev (first 5 images)"]


def test_uneven_captions_reach_folds_and_whole():
    owners = np.concatenate([np.arange(10), [0, 0, 9]])
    rows = evaluate_matrix(COCO, random_scores(10, 13), owners)
    assert rows[-1].result == retrieval_metrics(random_scores(10, 13), owners) and len(rows) == 7


def test_five_matrices_count_as_the_five_folds():
    scores = random_scores(50, 250)
    blocks = [scores[i : i + 10, 5 * i : 5 * i + 50] for i in range(0, 50, 10)]
    assert evaluate_matrix(COCO, blocks) == evaluate_matrix(COCO, scores)[:-1]
    with pytest.raises(InputError, match="folds of 9, 10 images"):
        evaluate_matrix(COCO, [*blocks[:4], blocks[4][:9, :45]])


def test_rows_become_plain_json():
    row = json.loads(json.dumps(Row("COCO 5K", result(), "testall", "dev").as_dict()))
    assert (row["split"], row["chosen_on"]) == ("testall", "dev")
    assert row["protocol"] == "COCO 5K" and row["i2t"]["r1"] == 12.34 and row["rsum"] == 300.0


# ---- tables ----


def test_the_table_shows_every_figure_in_aligned_columns():
    table = text(recall_table([Row("COCO 1K mean", result()), Row("COCO 5K", result(299.96))]))
    title, header, first, second = table.splitlines()
    assert "image to text" in title and "text to image" in title
    assert header.split() == "R@1 R@5 R@10 MedR MeanR | R@1 R@5 R@10 MedR MeanR | RSUM".split()
    assert first.split() == "COCO 1K mean 12.3 50.0 100.0 3.0 4.6 | 1.0 2.0 3.0 44.0 1234.5 | 300.0".split()
    assert len(header) == len(first) == len(second)
    assert [i for i, c in enumerate(first) if c == "|"] == [i for i, c in enumerate(header) if c == "|"]
    assert text(recall_table([])).splitlines()[1].split()[0] == "R@1"


def test_the_summary_puts_published_figures_below_the_measured_ones_of_the_same_model_and_protocol():
    rows = [Row("COCO 1K fold 1", result(1)), Row("COCO 1K mean", result(530)), Row("COCO 5K", result(440))]
    models = [ModelResult("mine", rows, ESL_A), ModelResult("other", rows[1:2], "ESL-A, grid features (wsl), BERT")]
    lines = [" ".join(line.split()) for line in text(summary_table(models)).splitlines()[2:]]
    assert len(lines) == 7
    assert lines[0].startswith("COCO 1K mean mine 12.3") and lines[0].endswith("530.0")
    assert lines[1] == f"COCO 1K mean {ESL_A}, published 82.2 96.9 98.9 - - | 66.5 92.1 96.7 - - | 533.4"
    assert lines[2].startswith("COCO 1K mean other")
    assert lines[3].startswith("COCO 5K mine") and lines[4].startswith(f"COCO 5K {ESL_A}, published")
    assert lines[5] == "-: not published" and lines[6].startswith("chosen on test: ")
    assert has_published(models) and not has_published(models[1:])


def test_every_row_names_its_split_and_the_one_that_chose_the_epoch_where_it_is_known():
    measured = [Row("COCO 1K mean", result(), "testall", "dev"), Row("COCO 5K", result(), "testall", None)]
    lines = text(summary_table([ModelResult("mine", measured, ESL_A)])).splitlines()
    head, *body = [" ".join(line.split()) for line in lines[1:]]
    assert head.startswith("split chosen on R@1")
    assert body[0].startswith("COCO 1K mean mine testall dev 12.3")
    assert body[1].startswith(f"COCO 1K mean {ESL_A}, published testall test 82.2 96.9 98.9 - -")
    assert body[2].startswith("COCO 5K mine testall - 12.3")
    assert body[-3].startswith("-: the checkpoint does not say on which split its epoch was chosen")
    assert body[-2] == "-: not published" and body[-1].startswith("chosen on test: ")
    plain = text(recall_table([Row("COCO 5K", result(), "testall", "dev")]))
    assert "-:" not in plain and "chosen on test" not in plain


def test_published_figures_without_recalls_show_their_rsum_alone():
    models = [ModelResult("mine", [Row("Flickr30K 1K", result())], "VSE∞, region features, BERT")]
    line = " ".join(text(summary_table(models)).splitlines()[-2].split())
    assert line == "Flickr30K 1K VSE∞, region features, BERT, published - - - - - | - - - - - | 513.5"


def test_samples_and_limited_results_have_no_published_figures():
    names = ("COCO 200 images", "COCO (first 500 images)", "Flickr30K dev 1K")
    models = [ModelResult("mine", [Row(name, result()) for name in names], ESL_A)]
    assert "published" not in text(summary_table(models)) and not has_published(models)


def test_the_cxc_table_shows_tasks_that_were_left_out_as_dashes():
    tasks = {"i2t": TaskRecalls(1.0, 2.0, 3.0, 9), "t2i": TaskRecalls(4.0, 5.0, 6.0, 9)}
    *table, reason = text(cxc_table([("mine", tasks)], with_published=True)).splitlines()
    assert table[0].split() == ["I2T", "|", "T2I", "|", "T2T", "|", "I2I"]
    assert table[2].split() == "mine 1.0 2.0 3.0 | 4.0 5.0 6.0 | - - - | - - -".split()
    assert len(table) == 3 + len(PUBLISHED_CXC) and reason.startswith("-: not published, or a task without queries")
    assert table[-1].split() == "VSE∞ WSL grid, published 67.9 - - | 53.6 - - | 46.7 - - | 51.3 - -".split()


def test_the_correlation_table_shows_mean_and_deviation():
    table = text(correlation_table([("mine", {"sts": Correlation(72.94, 0.31, 100)})])).splitlines()
    assert table[1].split() == ["STS", "|", "SIS", "|", "SITS"]
    assert table[2].split() == ["mine", "72.9", "±", "0.3", "|", "-", "|", "-"]


def test_recalls_that_no_scores_could_bring_below_100_are_shown_as_such():
    few = recall_table(evaluate_matrix(data_set("f30k"), random_scores(5, 25)))
    note = "100 whatever the scores, for want of candidates: "
    assert few.notes[-1] == note + ", ".join(f"R@{k} text to image of Flickr30K 5 images" for k in (5, 10))
    scores = random_scores(5, 25)
    for k, direction in ((5, "text to image"), (10, "text to image")):
        worst = evaluate_matrix(data_set("f30k"), np.where(np.arange(25) // 5 == np.arange(5)[:, None], -9, scores))
        assert getattr(worst[0].result.t2i, f"r{k}") == 100 and f"R@{k} {direction}" in worst[0].certain
    tiny = evaluate_matrix(data_set("own"), random_scores(2, 6))[0]
    assert tiny.certain == ("R@5 image to text", "R@10 image to text", "R@5 text to image", "R@10 text to image")
    assert not recall_table(evaluate_matrix(data_set("f30k"), random_scores(11, 55))).notes
    assert "certain" not in tiny.as_dict()
