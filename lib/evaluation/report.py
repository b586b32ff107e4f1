"""Which protocols a matrix is evaluated under, and the text tables of their figures.

A row is a result with a label that names its protocol, such as "COCO 1K fold 1", "COCO 1K mean", "COCO 5K" or
"Flickr30K 1K". A part of a data set is labelled as such: "COCO (first 500 images)"; one's own data by its own name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from lib.errors import InputError
from lib.evaluation.cxc import Correlation, TaskRecalls
from lib.evaluation.metrics import Recalls, Retrieval, folds, mean_retrieval, retrieval_metrics
from lib.evaluation.published import PUBLISHED_CXC, published

FIGURES = ("R@1", "R@5", "R@10", "MedR", "MeanR")
CXC_TASKS = {"i2t": "I2T", "t2i": "T2I", "t2t": "T2T", "i2i": "I2I"}
CORRELATIONS = {"sts": "STS", "sis": "SIS", "sits": "SITS"}


class Row(NamedTuple):
    """A result and the label that names its protocol."""

    label: str
    result: Retrieval

    def as_dict(self) -> dict:
        """The figures as plain numbers for JSON, with the label as `protocol`."""
        return {"protocol": self.label, **self.result.as_dict()}


class ModelResult(NamedTuple):
    """What a model reached; `model` says what it is, as published figures are looked up (None: look up none)."""

    name: str
    rows: Sequence[Row]
    model: str | None = None


def evaluate_matrix(
    data,
    scores: np.ndarray | Sequence[np.ndarray],
    image_of_caption: np.ndarray | None = None,
    split: str | None = None,
    limit: int | None = None,
) -> list[Row]:
    """The rows of a data set's split for a matrix (N, C), or for the matrices of its folds.

    `data` is the data set's row (lib.datasets.DataSet), split None counts as the one that it evaluates. Where a split
    has folds, each is a row, then their mean, then the whole. `limit` says that only the first images of the split were
    scored. Raises InputError as `ranks` does.
    """
    if not isinstance(scores, np.ndarray):
        sizes = {len(fold) for fold in scores}
        if len(sizes) > 1:
            raise InputError(f"folds of {', '.join(map(str, sorted(sizes)))} images; expected equal numbers of images")
        parts = [retrieval_metrics(fold) for fold in scores]
        return _fold_rows(data.label, sizes.pop(), parts, mean_retrieval(parts))
    split, n_images = split or data.evaluated, len(scores)
    n_folds = 0 if limit else data.folds.get(split, 0)
    rows = []
    if n_folds and n_images % n_folds == 0:
        rows = _fold_rows(data.label, n_images // n_folds, *folds(scores, image_of_caption, n_folds))
    name = data.label if split == data.evaluated else f"{data.label} {split}"
    # "COCO 1K" would read as the mean of folds, so a whole beside small folds says its number of images
    small = rows and n_images // n_folds % 1000
    size = f"{n_images} images" if small else _size(n_images)
    label = f"{name} (first {n_images} images)" if limit else f"{name} {size}"
    return [*rows, Row(label, retrieval_metrics(scores, image_of_caption))]


def _fold_rows(name: str, size: int, parts: Sequence[Retrieval], mean: Retrieval) -> list[Row]:
    rows = [Row(f"{name} {_size(size)} fold {number}", part) for number, part in enumerate(parts, 1)]
    return [*rows, Row(f"{name} {_size(size)} mean", mean)]


def _size(n_images: int) -> str:
    return f"{n_images // 1000}K" if n_images and n_images % 1000 == 0 else f"{n_images} images"


def format_table(rows: Iterable[tuple[str, Retrieval]]) -> str:
    """An aligned table of (label, result) rows: R@1 R@5 R@10 in %, MedR, MeanR of both directions, and RSUM."""
    return _table(
        ["image to text", "text to image", ""],
        [list(FIGURES), list(FIGURES), ["RSUM"]],
        [(label, _figures(result)) for label, result in rows],
    )


def format_summary(models: Iterable[ModelResult]) -> str:
    """One table of several models, protocol by protocol, without the rows of single folds.

    Below a measured row stand the published figures of the same model and protocol, marked as published.
    """
    models = list(models)
    labels = dict.fromkeys(row.label for model in models for row in model.rows if " fold " not in row.label)
    rows = []
    for label in labels:
        for model in models:
            measured = [row for row in model.rows if row.label == label]
            rows += [(f"{label}  {model.name}", _figures(row.result)) for row in measured]
            known = published(model.model, label)
            if measured and known:
                i2t, t2i = (known.recalls[:3], known.recalls[3:]) if known.recalls else ((None,) * 3, (None,) * 3)
                figures = [[*i2t, None, None], [*t2i, None, None], [known.rsum]]
                rows.append((f"{label}  {known.model}, published", figures))
    return _table(["image to text", "text to image", ""], [list(FIGURES), list(FIGURES), ["RSUM"]], rows)


def format_cxc(rows: Iterable[tuple[str, Mapping[str, TaskRecalls]]], with_published: bool = False) -> str:
    """The CxC recalls of (label, {task: recalls}) rows; `with_published` adds the R@1 of published models."""
    body = []
    for label, tasks in rows:
        recalls = [tasks.get(task) for task in CXC_TASKS]
        body.append((label, [[r.r1, r.r5, r.r10] if r else [None] * 3 for r in recalls]))
    if with_published:
        for name, tasks in PUBLISHED_CXC.items():
            body.append((f"{name}, published", [[tasks[task], None, None] for task in CXC_TASKS]))
    return _table(list(CXC_TASKS.values()), [list(FIGURES[:3]) for _ in CXC_TASKS], body)


def format_correlations(rows: Iterable[tuple[str, Mapping[str, Correlation]]]) -> str:
    """The sampled Spearman correlations (times 100) of (label, {task: correlation}) rows as mean ± std."""
    body = []
    for label, tasks in rows:
        known = [tasks.get(task) for task in CORRELATIONS]
        body.append((label, [[f"{c.mean:.1f} ± {c.std:.1f}" if c else None] for c in known]))
    return _table(["Spearman", "", ""], [[name] for name in CORRELATIONS.values()], body)


def _figures(result: Retrieval) -> list[list[float]]:
    def of(recalls: Recalls) -> list[float]:
        return [recalls.r1, recalls.r5, recalls.r10, recalls.medr, recalls.meanr]

    return [of(result.i2t), of(result.t2i), [result.rsum]]


def _table(titles: list[str], columns: list[list[str]], rows: list[tuple[str, list[list]]]) -> str:
    """Groups of columns under their titles, separated by bars; numbers with one decimal, `-` where there is none."""
    cells = [(label, [[_cell(value) for value in group] for group in groups]) for label, groups in rows]
    first = max([len(label) for label, _ in rows], default=0)
    widths = [
        [max(5, len(name), *(len(groups[g][c]) for _, groups in cells)) for c, name in enumerate(names)]
        for g, names in enumerate(columns)
    ]

    def line(label: str, groups: Iterable[str]) -> str:
        return f"{label:<{first}}  {' | '.join(groups)}".rstrip()

    def join(group: list[str], group_widths: list[int]) -> str:
        return " ".join(cell.rjust(width) for cell, width in zip(group, group_widths, strict=True))

    spans = [sum(group) + len(group) - 1 for group in widths]
    lines = [line("", (title.ljust(span) for title, span in zip(titles, spans, strict=True)))] if any(titles) else []
    lines.append(line("", map(join, columns, widths)))
    lines += [line(label, map(join, groups, widths)) for label, groups in cells]
    return "\n".join(lines)


def _cell(value) -> str:
    if value is None:
        return "-"
    return value if isinstance(value, str) else f"{value:.1f}"


def has_published(models: Iterable[ModelResult]) -> bool:
    """Whether `format_summary` has a published figure to show beside a measured one."""
    return any(published(model.model, row.label) for model in models for row in model.rows)
