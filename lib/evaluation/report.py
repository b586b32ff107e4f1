"""Which protocols a matrix is evaluated under, and the tables of their figures.

A row is a result with a label that names its protocol, such as "COCO 1K fold 1", "COCO 1K mean", "COCO 5K" or
"Flickr30K 1K". A part of a data set is labelled as such: "COCO (first 500 images)"; one's own data by its own name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from lib.core.errors import InputError
from lib.evaluation.cxc.scores import Correlation, TaskRecalls
from lib.evaluation.metrics import (
    RECALLS_AT,
    Recalls,
    Retrieval,
    caption_owners,
    fold_blocks,
    mean_retrieval,
    ranks,
    recalls,
    retrieval,
)
from lib.evaluation.published import PUBLISHED_CXC, published
from lib.evaluation.tables import Table

FIGURES = ("R@1", "R@5", "R@10", "MedR", "MeanR")
CXC_TASKS = {"i2t": "I2T", "t2i": "T2I", "t2t": "T2T", "i2i": "I2I"}
CORRELATIONS = {"sts": "STS", "sis": "SIS", "sits": "SITS"}


class DataSetRow(Protocol):
    """The fields of a data set's row (lib.datasets.DataSet) that label its splits and divide them into folds."""

    label: str
    evaluated: str
    folds: Mapping[str, int]


class Row(NamedTuple):
    """A result, the label that names its protocol, its split, the split whose RSUM chose the epoch, where known, and
    the recalls that no scores could bring below 100."""

    label: str
    result: Retrieval
    split: str | None = None
    chosen_on: str | None = None
    certain: tuple[str, ...] = ()

    def as_dict(self) -> dict:
        """The figures as plain numbers for JSON, with the label as `protocol`."""
        known = {"protocol": self.label, "split": self.split, "chosen_on": self.chosen_on}
        return {**known, **self.result.as_dict()}


class ModelResult(NamedTuple):
    """What a model reached; `model` says what it is, as published figures are looked up (None: look up none)."""

    name: str
    rows: Sequence[Row]
    model: str | None = None


def evaluate_matrix(
    data: DataSetRow,
    scores: np.ndarray | Sequence[np.ndarray],
    image_of_caption: np.ndarray | None = None,
    split: str | None = None,
    limit: int | None = None,
    chosen_on: str | None = None,
) -> list[Row]:
    """The rows of a data set's split for a matrix (N, C), or for the matrices of its folds.

    Split None counts as the one that the data set evaluates. Where a split
    has folds, each is a row, then their mean, then the whole. `limit` says that only the first images of the split were
    scored, `chosen_on` on which split the epoch was chosen. Raises InputError as `ranks` does.
    """
    rows = []
    for label, galleries in ranked_galleries(data, scores, image_of_caption, split, limit):
        results = [retrieval(recalls(each.i2t), recalls(each.t2i)) for each in galleries]
        if len(results) > 1:
            rows += [Row(f"{label} fold {number}", result) for number, result in enumerate(results, 1)]
            label = f"{label} mean"
        rows.append(Row(label, mean_retrieval(results), certain=certain_recalls(galleries)))
    return [row._replace(split=split or data.evaluated, chosen_on=chosen_on) for row in rows]


def certain_recalls(galleries: Iterable[Ranked]) -> tuple[str, ...]:
    """The recalls that are 100 whatever the scores, since no query has K wrong candidates, as "R@10 text to image"."""
    galleries = list(galleries)
    images = max(len(each.i2t) - 1 for each in galleries)
    captions = max(len(each.t2i) - np.bincount(each.image_of_caption).min() for each in galleries)
    wrong = {"image to text": captions, "text to image": images}
    return tuple(f"R@{k} {direction}" for direction, most in wrong.items() for k in RECALLS_AT if most < k)


class Ranked(NamedTuple):
    """Ranks from 0 in one gallery: i2t (N,), t2i (C,), and the image of each caption (C,)."""

    i2t: np.ndarray
    t2i: np.ndarray
    image_of_caption: np.ndarray


def ranked_galleries(
    data: DataSetRow,
    scores: np.ndarray | Sequence[np.ndarray],
    image_of_caption: np.ndarray | None = None,
    split: str | None = None,
    limit: int | None = None,
) -> list[tuple[str, list[Ranked]]]:
    """Label and ranks of each protocol that `evaluate_matrix` reports: the galleries of the folds, and the whole."""
    if not isinstance(scores, np.ndarray):
        sizes = {len(fold) for fold in scores}
        if len(sizes) > 1:
            raise InputError(f"folds of {', '.join(map(str, sorted(sizes)))} images; expected equal numbers of images")
        return [(f"{data.label} {_size(sizes.pop())}", [_ranked(fold) for fold in scores])]
    split, n_images = split or data.evaluated, len(scores)
    n_folds = 0 if limit else data.folds.get(split, 0)
    galleries, small = [], 0
    if n_folds and n_images % n_folds == 0:
        size = n_images // n_folds
        blocks = fold_blocks(scores, image_of_caption, n_folds)
        galleries.append((f"{data.label} {_size(size)}", [_ranked(*block) for block in blocks]))
        small = size % 1000
    name = data.label if split == data.evaluated else f"{data.label} {split}"
    # "COCO 1K" would read as the mean of folds, so a whole beside small folds says its number of images
    size = f"{n_images} images" if small else _size(n_images)
    label = f"{name} (first {n_images} images)" if limit else f"{name} {size}"
    return [*galleries, (label, [_ranked(scores, image_of_caption)])]


def _ranked(scores: np.ndarray, image_of_caption: np.ndarray | None = None) -> Ranked:
    return Ranked(*ranks(scores, image_of_caption), caption_owners(scores.shape, image_of_caption))


def _size(n_images: int) -> str:
    return f"{n_images // 1000}K" if n_images and n_images % 1000 == 0 else f"{n_images} images"


RETRIEVAL = [("image to text", list(FIGURES)), ("text to image", list(FIGURES)), ("", ["RSUM"])]
UNCHOSEN = "the checkpoint does not say on which split its epoch was chosen, or it is the last epoch of a run"
UNPUBLISHED = "not published"
ON_TEST = "chosen on test: the epoch with the best figures on test itself, which makes them look better than they are"


def recall_table(rows: Iterable[Row | tuple[str, Retrieval]]) -> Table:
    """A table of rows: R@1 R@5 R@10 in %, MedR, MeanR of both directions, and RSUM."""
    return _retrieval_table([""], [([row.label], row, _figures(row.result)) for row in (Row(*row) for row in rows)])


def summary_table(models: Iterable[ModelResult]) -> Table:
    """One table of several models, protocol by protocol, without the rows of single folds.

    Below a measured row stand the published figures of the same model and protocol, marked as published.
    """
    models = list(models)
    labels = dict.fromkeys(row.label for model in models for row in model.rows if " fold " not in row.label)
    rows = []
    for label in labels:
        for model in models:
            measured = [row for row in model.rows if row.label == label]
            rows += [([label, model.name], row, _figures(row.result)) for row in measured]
            known = published(model.model, label)
            if measured and known:
                i2t, t2i = (known.recalls[:3], known.recalls[3:]) if known.recalls else ((None,) * 3, (None,) * 3)
                figures = [[*i2t, None, None], [*t2i, None, None], [known.rsum]]
                source = measured[0]._replace(chosen_on=known.chosen_on)
                rows.append(([label, f"{known.model}, published"], source, figures))
    return _retrieval_table(["", ""], rows)


def _retrieval_table(words: list[str], rows: list[tuple[list[str], Row, list[list]]]) -> Table:
    """Rows of words, what they are of, and their figures; split and choice of the epoch stand where they are known."""
    if any(row.split for _, row, _ in rows):
        words = [*words, "split", "chosen on"]
        rows = [([*own, row.split, row.chosen_on], row, figures) for own, row, figures in rows]
    missing = {"chosen on": UNCHOSEN} | dict.fromkeys([title for title, _ in RETRIEVAL], UNPUBLISHED)
    notes = (ON_TEST,) if any("test" in (row.chosen_on or "").split(", ") for _, row, _ in rows) else ()
    certain = dict.fromkeys(f"{name} of {row.label}" for _, row, _ in rows for name in row.certain)
    notes += (f"100 whatever the scores, for want of candidates: {', '.join(certain)}",) if certain else ()
    return Table(words, RETRIEVAL, [(own, figures) for own, _, figures in rows], missing, notes)


def cxc_table(rows: Iterable[tuple[str, Mapping[str, TaskRecalls]]], with_published: bool = False) -> Table:
    """The CxC recalls of (label, {task: recalls}) rows; `with_published` adds the R@1 of published models."""
    body = []
    for label, tasks in rows:
        recalls = [tasks.get(task) for task in CXC_TASKS]
        body.append(([label], [[r.r1, r.r5, r.r10] if r else [None] * 3 for r in recalls]))
    if with_published:
        for name, tasks in PUBLISHED_CXC.items():
            body.append(([f"{name}, published"], [[tasks[task], None, None] for task in CXC_TASKS]))
    groups = [(title, list(FIGURES[:3])) for title in CXC_TASKS.values()]
    reason = "not published, or a task without queries or without a vector for each item"
    return Table([""], groups, body, dict.fromkeys(CXC_TASKS.values(), reason))


def correlation_table(rows: Iterable[tuple[str, Mapping[str, Correlation]]]) -> Table:
    """The sampled Spearman correlations (times 100) of (label, {task: correlation}) rows as mean ± std."""
    body = []
    for label, tasks in rows:
        known = [tasks.get(task) for task in CORRELATIONS]
        body.append(([label], [[f"{c.mean:.1f} ± {c.std:.1f}" if c else None] for c in known]))
    groups = [(title, [name]) for title, name in zip(("Spearman", "", ""), CORRELATIONS.values(), strict=True)]
    reason = "the annotations rate no such pairs (all ratings are in CxC's CSV files), or no vectors were given"
    return Table([""], groups, body, dict.fromkeys(("Spearman", ""), reason))


def _figures(result: Retrieval) -> list[list[float]]:
    def of(recalls: Recalls) -> list[float]:
        return [recalls.r1, recalls.r5, recalls.r10, recalls.medr, recalls.meanr]

    return [of(result.i2t), of(result.t2i), [result.rsum]]


def has_published(models: Iterable[ModelResult]) -> bool:
    """Whether `summary_table` has a published figure to show beside a measured one."""
    return any(published(model.model, row.label) for model in models for row in model.rows)
