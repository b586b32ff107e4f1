"""Which images a split needs, and which of them a key of a feature source refers to."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from lib.core.errors import InputError
from lib.datasets.layout import precomp_folder
from lib.datasets.splits import image_rows
from lib.files.reading import read_ids

KEY_KINDS = ("auto", "id", "file")
_COCO_NAME = re.compile(r"COCO_[a-z]+\d{4}_(\d+)", re.ASCII)


def needed_ids(data_path: Path, data_name: str, splits: list[str] | None = None) -> dict[str, list[int]]:
    """Split → the ids of its images in order, of the named splits or of every split that has an ids file.

    Raises InputError when a split has none, and when an id comes back after another one.
    """
    folder = precomp_folder(data_path, data_name)
    splits = splits or sorted(path.name.removesuffix("_ids.txt") for path in folder.glob("*_ids.txt"))
    absent = [f"{split}_ids.txt" for split in splits or ["{split}"] if not (folder / f"{split}_ids.txt").is_file()]
    if absent:
        raise InputError(
            f"{folder}: no {', '.join(absent)}, which says which images to take; `prepare captions` or `own` writes it"
        )
    return {split: _image_ids(folder / f"{split}_ids.txt") for split in splits}


def _image_ids(path: Path) -> list[int]:
    """The distinct image ids in order, whether each stands once or once per caption."""
    ids = read_ids(path)
    return image_rows(None, len(ids), ids, where=str(path)).image_ids.tolist()


class ImageKeys:
    """Finds the image id that a source's key stands for: the id itself (`67`, `000000391895`,
    `COCO_val2014_000000391895`) or the name of the image's file (`1000092795`, as Flickr30K features are keyed).

    `kind` says which of the two keys are, "id" or "file"; "auto" takes both.
    """

    def __init__(self, ids: Iterable[int], id_mapping: dict[str, str], kind: str = "auto"):
        self._wanted = set(ids)
        self._ids_of = defaultdict(set)  # key → the images it can stand for
        for image_id in {*self._wanted, *map(int, id_mapping)} if kind != "file" else ():
            self._ids_of[str(image_id)].add(image_id)
        for image_id, path in id_mapping.items() if kind != "id" else ():
            self._ids_of[_name(path)].add(int(image_id))

    def find(self, key: str, where: str) -> int | None:
        """The wanted image id that `key` stands for, or None. Raises InputError when it can stand for two images."""
        found = self._ids_of.get(_name(key), set())
        if len(found) > 1 and found & self._wanted:
            images = " and ".join(f"image {image_id}" for image_id in sorted(found))
            raise InputError(f"{where}: {key} is the id or file name of {images}; choose --keys id or --keys file")
        return next(iter(found & self._wanted), None)


def _name(path: str) -> str:
    """File name without folder and image suffix; numbers and COCO names as the bare number."""
    name = re.sub(r"\.(jpe?g|png)$", "", PurePosixPath(path.strip()).name, flags=re.IGNORECASE)
    if match := _COCO_NAME.fullmatch(name):
        name = match[1]
    return str(int(name)) if name.isascii() and name.isdecimal() and len(name) <= 18 else name
