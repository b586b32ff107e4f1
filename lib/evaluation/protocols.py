"""Judgements beyond a split's recalls. A new protocol is a file and a row of PROTOCOLS; a data set's row names it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lib.core.errors import InputError
from lib.evaluation.cxc.annotations import Annotations, read_annotations
from lib.evaluation.cxc.scores import cxc_correlations, cxc_recalls
from lib.evaluation.eccv import Reference, eccv_tables, evaluate_eccv, read_eccv
from lib.evaluation.report import correlation_table, cxc_table
from lib.evaluation.tables import Table


class Scores(NamedTuple):
    """What a protocol may judge: scores (N, C), and where known a vector per image (N, E) and caption (C, E)."""

    matrix: np.ndarray
    image_vectors: np.ndarray | None = None
    caption_vectors: np.ndarray | None = None


class Protocol(NamedTuple):
    """`read(data_path, image ids of the split)` gives what `evaluate(scores, it)` compares with; that gives figures by
    name, as they stand in the JSON; `tables((model, figures) rows, with published ones below)` shows them.
    Published figures speak of a gallery of `published_images`."""

    help: str
    read: Callable[[Path, np.ndarray], Any]
    evaluate: Callable[[Scores, Any], dict[str, Any]]
    tables: Callable[[Sequence[tuple[str, dict[str, Any]]], bool], list[Table]]
    published_images: int | None = None


def read_cxc(data_path: str | Path, image_ids: np.ndarray) -> Annotations:
    """The annotations in `cxc_annots`; InputError unless they are of the split's images in the split's order."""
    folder = Path(data_path) / "cxc_annots"
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; CxC needs its annotations there (JSON files or the official CSVs)")
    annotations = read_annotations(folder)
    theirs = annotations.image_ids
    if not np.array_equal(theirs, image_ids):
        where = f"{len(theirs)} there, {len(image_ids)} in the split"
        if len(theirs) == len(image_ids):
            first = np.flatnonzero(theirs != image_ids)[0]
            where = f"image {first} is {theirs[first]} there and {image_ids[first]} in the split"
        raise InputError(
            f"{folder}: testall_ids.txt lists other images than the split ({where}); both must be COCO's testall in "
            "the same order"
        )
    return annotations


def evaluate_cxc(scores: Scores, annotations: Annotations) -> dict[str, Any]:
    """Recalls of the four retrieval tasks and the correlations with human ratings."""
    judged = *scores, annotations
    return {"cxc": cxc_recalls(*judged), "cxc_correlations": cxc_correlations(*judged)}


def cxc_tables(rows: Sequence[tuple[str, dict[str, Any]]], with_published: bool) -> list[Table]:
    """Recalls and correlations of several models."""
    recalls = cxc_table([(name, figures["cxc"]) for name, figures in rows], with_published)
    return [recalls, correlation_table([(name, figures["cxc_correlations"]) for name, figures in rows])]


def read_eccv_captions(data_path: str | Path, image_ids: np.ndarray) -> Reference:
    """The captions of COCO's testall by their ids; `testall_capids.txt` may stand in any folder of the layout."""
    folders = ("precomp", "coco_precomp", "coco", "cxc_annots")
    return read_eccv([Path(data_path) / name for name in folders], image_ids)


PROTOCOLS = {
    "cxc": Protocol("CxC (COCO testall): recalls and correlations", read_cxc, evaluate_cxc, cxc_tables, 5000),
    "eccv": Protocol(
        "ECCV Caption (COCO testall): mAP@R, R-Precision, and CxC and COCO recalls, by the package eccv-caption",
        read_eccv_captions,
        lambda scores, reference: evaluate_eccv(scores.matrix, reference),
        lambda rows, with_published: eccv_tables(rows),
    ),
}
