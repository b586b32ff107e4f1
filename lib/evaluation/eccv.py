"""ECCV Caption (Chun et al., ECCV 2022): positives that COCO's test captions miss, by its package `eccv-caption`.

The package brings its data: the ids of COCO's 25,000 test captions, their images, and the positives of COCO, CxC and
ECCV Caption. It is imported when it is asked for.

Letters: N images, C captions.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lib.core.errors import InputError
from lib.evaluation.cxc.annotations import GALLERY_FILES, GalleryIds, Rows
from lib.evaluation.metrics import RECALLS_AT
from lib.evaluation.queries import Answers, answer
from lib.evaluation.tables import Table
from lib.files.reading import read_ids

FOLDS = 5
RECALLS = {"coco_1k": "COCO 1K", "coco_5k": "COCO 5K", "cxc": "CxC"}
ECCV = {"eccv_map_at_r": "mAP@R", "eccv_rprecision": "R-P", "eccv_r1": "R@1"}


class Reference(NamedTuple):
    """The package's Metrics, and the gallery that the matrix is of."""

    metrics: Any
    gallery: GalleryIds


def package_metrics():
    """The package's Metrics with its data; InputError where it is not installed."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "failed to import")  # ujson, which it does without
            from eccv_caption import Metrics
    except ImportError:
        raise InputError("--evaluate_eccv needs the package eccv-caption; pip install eccv-caption==0.1.0") from None
    return Metrics()


def read_eccv(folders: Iterable[Path], image_ids: np.ndarray, metrics=None) -> Reference:
    """A matrix's captions by their ids: of `testall_capids.txt` in one of the folders, else in the package's order.

    Raises InputError unless the captions are those of the package, and the images those that they belong to.
    """
    metrics = metrics or package_metrics()
    image_of = {caption: images[0] for caption, images in metrics.coco_gts["t2i"].items()}
    listed = next((folder / GALLERY_FILES[1] for folder in folders if (folder / GALLERY_FILES[1]).is_file()), None)
    caption_ids = np.asarray(metrics.coco_ids) if listed is None else read_ids(listed)
    where = listed or "the captions of COCO's test images in the order of eccv-caption"
    unknown = [caption for caption in caption_ids.tolist() if caption not in image_of]
    if unknown:
        raise InputError(f"{where}: {len(unknown)} captions ({unknown[0]} first) are none of COCO's 5,000 test images")
    own = np.array([image_of[caption] for caption in caption_ids.tolist()])  # (C,)
    rows = Rows(image_ids)(own)  # (C,)
    expected = len(metrics.coco_gts["i2t"])
    if len(image_ids) != expected or (rows < 0).any() or (np.diff(rows) < 0).any():
        wrong = np.flatnonzero((rows < 0) | (np.diff(rows, prepend=0) < 0))
        hint = f"; caption {caption_ids[wrong[0]]} is of image {own[wrong[0]]}" if len(wrong) else ""
        raise InputError(
            f"{where}: not those of the split's {len(image_ids)} images in their order{hint}; ECCV Caption judges "
            f"COCO's {expected} test images, prepare captions writes testall_ids.txt and {GALLERY_FILES[1]}"
        )
    return Reference(metrics, GalleryIds(np.asarray(image_ids), caption_ids, rows))


def coco_test_gallery(metrics=None) -> GalleryIds:
    """COCO's 5,000 test images and their 25,000 captions, in the package's order."""
    metrics = metrics or package_metrics()
    image_ids = np.array([metrics.coco_gts["t2i"][caption][0] for caption in metrics.coco_ids.tolist()])  # (C,)
    return read_eccv([], image_ids[np.flatnonzero(np.diff(image_ids, prepend=-1))], metrics).gallery


def evaluate_eccv(scores: np.ndarray, reference: Reference) -> dict[str, Any]:
    """mAP@R, R-Precision and R@1 on ECCV Caption, and R@K on COCO 1K, COCO 5K and CxC, in percent, by the package.

    Ties are broken as in `lib.evaluation.queries`; the package gets the best items that it looks at. Raises InputError
    for a matrix of another shape and for NaN.
    """
    metrics, gallery = reference
    shape = len(gallery.image_ids), len(gallery.caption_ids)
    if scores.shape != shape:
        raise InputError(f"ECCV Caption: similarity matrix {scores.shape}, expected {shape}")
    most = max(len(items) for positives in metrics.eccv_gts.values() for items in positives.values())
    whole = _by_id(answer(scores, gallery.image_of_caption, max(most, *RECALLS_AT)), gallery)
    figures = {"coco_1k": _recalls(metrics.coco_1k_recalls, _in_folds(scores, reference))}
    figures |= {name: _recalls(getattr(metrics, f"{name}_recalls"), whole) for name in ("coco_5k", "cxc")}
    with contextlib.redirect_stderr(io.StringIO()):  # its progress bar can't be switched off
        eccv = metrics.eccv_metrics(whole, "all")
    figures["eccv"] = {name: _percent(eccv[key]) for key, name in ECCV.items()}
    return {"eccv_caption": figures}


def _recalls(of_package, best: dict[str, dict[int, list[int]]]) -> dict[str, dict[str, float]]:
    return {f"R@{k}": _percent(of_package(best, "all", K=k)) for k in RECALLS_AT}


def _percent(figures: dict[str, float]) -> dict[str, float]:
    return {direction: 100 * float(value) for direction, value in figures.items()}


def _in_folds(scores: np.ndarray, reference: Reference) -> dict[str, dict[int, list[int]]]:
    """For each query the best items of its own fold: all that the package's COCO 1K looks at."""
    metrics, gallery = reference
    place = Rows(np.asarray(metrics.coco_ids))(gallery.caption_ids)  # (C,) where the package lists a caption
    fold = place // (len(place) // FOLDS)
    best: dict[str, dict[int, list[int]]] = {"i2t": {}, "t2i": {}}
    for number in range(FOLDS):
        captions = np.flatnonzero(fold == number)
        images, owners = np.unique(gallery.image_of_caption[captions], return_inverse=True)
        part = GalleryIds(gallery.image_ids[images], gallery.caption_ids[captions], owners)
        for direction, lists in _by_id(answer(scores[np.ix_(images, captions)], owners), part).items():
            best[direction] |= lists
    return best


def _by_id(answers: dict[str, Answers], gallery: GalleryIds) -> dict[str, dict[int, list[int]]]:
    """Id of a query → ids of its best items, as the package takes them."""
    images, captions = gallery.image_ids, gallery.caption_ids
    return {
        "i2t": dict(zip(images.tolist(), captions[answers["i2t"].items].tolist(), strict=True)),
        "t2i": dict(zip(captions.tolist(), images[answers["t2i"].items].tolist(), strict=True)),
    }


def eccv_tables(rows: Sequence[tuple[str, dict[str, Any]]]) -> list[Table]:
    """ECCV Caption, and the recalls of the other positives, of several models."""
    titles = {"i2t": "image to text", "t2i": "text to image"}
    models = [(name, figures["eccv_caption"]) for name, figures in rows]
    recalls = [f"R@{k}" for k in RECALLS_AT]

    def table(keys: dict[str, str], columns: list[str]) -> Table:
        body = [
            ([name, label], [[figures[key][column][direction] for column in columns] for direction in titles])
            for key, label in keys.items()
            for name, figures in models
        ]
        return Table(["", ""], [(title, columns) for title in titles.values()], body)

    return [table({"eccv": "ECCV Caption"}, list(ECCV.values())), table(RECALLS, recalls)]
