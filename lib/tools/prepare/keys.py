"""Which image id a key of a feature source means: a COCO id, the name of an image file, or an id of our own."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import PurePosixPath

from lib.errors import InputError

KEY_KINDS = ("auto", "id", "file")
_COCO_NAME = re.compile(r"COCO_[a-z]+\d{4}_(\d+)", re.ASCII)


class ImageKeys:
    """Finds the image id that a source's key stands for: the id itself (`67`, `000000391895`,
    `COCO_val2014_000000391895`) or the name of the image's file (`1000092795`, as Flickr30K features are keyed).

    `kind` "auto" takes both and refuses a key that is one image's id and another's file name; "id" and "file" decide.
    """

    def __init__(self, ids: Iterable[int], id_mapping: dict[str, str], kind: str = "auto"):
        self._wanted = set(ids)
        self._ids = set() if kind == "file" else self._wanted | {int(key) for key in id_mapping}
        self._id_of_name: dict[str, int | None] = {}
        for key, path in id_mapping.items() if kind != "id" else ():
            name = _name(path)
            # two images in different folders may share a name: then it stands for neither
            self._id_of_name[name] = None if name in self._id_of_name else int(key)

    def find(self, key: str, where: str) -> int | None:
        """The wanted image id that `key` stands for, or None. Raises InputError when it can stand for two images."""
        name = _name(key)
        by_name = self._id_of_name.get(name)
        by_id = int(name) if name.isdecimal() else None
        if by_id not in self._ids:
            by_id = None
        if by_id is not None and by_name is not None and by_id != by_name and {by_id, by_name} & self._wanted:
            raise InputError(
                f"{where}: {key} is image {by_id} by id and image {by_name} by file name; say --keys id or --keys file"
            )
        found = by_name if by_id is None else by_id
        return found if found in self._wanted else None


def _name(path: str) -> str:
    """File name without folder and image suffix; numbers and COCO names as the bare number."""
    name = re.sub(r"\.(jpe?g|png)$", "", PurePosixPath(path.strip()).name, flags=re.IGNORECASE)
    if match := _COCO_NAME.fullmatch(name):
        name = match[1]
    return str(int(name)) if name.isascii() and name.isdecimal() and len(name) <= 18 else name
