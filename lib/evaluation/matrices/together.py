"""Saved matrices with what their JSON files say of them, and the split's images and captions that they are of.

Letters: N images, C captions.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lib.core.errors import InputError, shown
from lib.datasets import DATA_SETS, data_set
from lib.datasets.layout import find_split, read_id_mapping
from lib.datasets.splits import Split, open_split
from lib.evaluation.matrices.stored import load_scores
from lib.evaluation.queries import Items


class Saved(NamedTuple):
    """A saved matrix as one part (N, C), or its five folds; `info` is what the JSON file beside it says."""

    path: Path
    folds: list[np.ndarray]
    info: dict[str, Any] | None

    @property
    def shapes(self) -> list[tuple[int, int]]:
        return [fold.shape for fold in self.folds]


class Setting(NamedTuple):
    """What saved matrices are of: data set, split (None: the one that is evaluated), limit, and captions' images."""

    dataset: str
    split: str | None = None
    limit: int | None = None
    image_of_caption: np.ndarray | None = None

    @property
    def split_name(self) -> str:
        return self.split or data_set(self.dataset).evaluated


def open_saved(
    paths: Sequence[str | Path], dataset: str | None = None, split: str | None = None, progress=iter
) -> tuple[list[Saved], Setting]:
    """Read matrices that belong together; `dataset` and `split` stand where no JSON file says.

    Raises InputError for what `load_scores` refuses, for other shapes than the first one's, and where the JSON files
    contradict each other.
    """
    if dataset:
        data_set(dataset, "--dataset")
    saved = []
    for path in progress([Path(path) for path in paths]):
        scores, info = load_scores(path)
        saved.append(Saved(path, scores if isinstance(scores, list) else [scores], info))
    for each in saved:
        if each.shapes != saved[0].shapes:
            raise InputError(
                f"{each.path} is {_describe(each.shapes)}, but {saved[0].path} is {_describe(saved[0].shapes)}; "
                "only matrices of the same images and captions can be used together"
            )
    return saved, _common_setting(saved, {"dataset": dataset, "split": split})


def open_items(data_path: str | Path, setting: Setting, shapes: list[tuple[int, int]]) -> tuple[Split, Items]:
    """The split that matrices are of, and its images and captions; InputError unless they are as many as there."""
    name, split_name = setting.dataset, setting.split_name
    without_ids = find_split(data_path, name, split_name, need_features=False).ids is None
    split = open_split(data_path, name, split_name, need_features=without_ids, limit=setting.limit)
    images, captions = np.sum(shapes, axis=0).tolist()
    if (images, captions) != (split.n_images, split.n_captions):
        raise InputError(
            f"the matrix is {images} x {captions}, but {split_name} in {data_path} has {split.n_images} images and "
            f"{split.n_captions} captions; name the data that it was made from with --data_path, --dataset and --split"
        )
    return split, items_of(split, data_path)


def check_protocols(names: Sequence[str], setting: Setting) -> None:
    """InputError for a protocol that is not defined for this split, or for a part of it."""
    data = data_set(setting.dataset)
    for name in names:
        if name not in data.protocols or setting.split_name != data.evaluated or setting.limit:
            where = [f"{row.evaluated} split of {other}" for other, row in DATA_SETS.items() if name in row.protocols]
            raise InputError(f"--evaluate_{name} is for the whole {' or '.join(where)}; drop --split and --limit")


def items_of(split: Split, data_path: str | Path) -> Items:
    """The images and captions of a split, with the image files where `id_mapping.json` is there."""
    names = read_id_mapping(data_path) if (Path(data_path) / "id_mapping.json").is_file() else {}
    files = [names.get(str(image_id)) for image_id in split.image_ids.tolist()]
    return Items(split.image_ids, files, split.captions, split.image_of_caption)


def _describe(shapes: list[tuple[int, int]]) -> str:
    texts = [f"{images} x {captions}" for images, captions in shapes]
    return texts[0] if len(texts) == 1 else f"{len(texts)} folds of {', '.join(dict.fromkeys(texts))}"


def _common_setting(saved: list[Saved], given: dict[str, str | None]) -> Setting:
    """What the JSON files agree on; raises InputError where they don't."""
    setting = {}
    for key in Setting._fields:
        stated = [(str(each.path), each.info.get(key)) for each in saved if each.info is not None]
        if key in given:
            stated = [(source, value) for source, value in stated if value is not None]
            for source, value in stated:
                if not isinstance(value, str):
                    beside = Path(source).with_suffix(".json")
                    raise InputError(f"{beside}: {key} is {shown(value)}, expected a name; save the results again")
        if given.get(key):
            stated.insert(0, (f"--{key}", given[key]))
        for source, value in stated[1:]:
            if value != stated[0][1]:
                values = "" if key == "image_of_caption" else f" ({shown(value)} and {shown(stated[0][1])})"
                raise InputError(
                    f"{source} and {stated[0][0]} differ in {key}{values}; they can't be evaluated together"
                )
        setting[key] = stated[0][1] if stated else None
    if (owners := setting["image_of_caption"]) is not None:
        setting["image_of_caption"] = np.asarray(owners)
    setting["dataset"] = setting["dataset"] or _guess_dataset([each.path for each in saved])
    return Setting(**setting)


def _guess_dataset(paths: list[Path]) -> str:
    """From the names (`results_coco.npy`), since no JSON file says so; folders of five folds are COCO's."""
    names = {word for path in paths for word in re.split(r"[_.]", path.name.lower())} & set(DATA_SETS)
    if not names and all(path.is_dir() for path in paths):
        return "coco"
    if len(names) != 1:
        raise InputError(f"{paths[0]}: no JSON file beside it says which dataset this is; give --dataset")
    return names.pop()
