"""What a run reads. DATA_SETS names the known data sets; any other name is that of somebody's own data.

A new data set is a row of the table; its files lie where `layout` says.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass, field

from lib.core.errors import InputError

PLAIN_NAME = re.compile(r"\w[\w.-]*")


@dataclass(frozen=True)
class DataSet:
    """What sets a data set apart from others of the same layout."""

    label: str  # its name in tables
    images: str = "images"  # folder of the raw images under --data_path
    splits: tuple[str, ...] = ("train", "dev", "test")
    evaluated: str = "test"  # the split that eval.py takes by default
    folds: dict[str, int] = field(default_factory=dict)  # split -> diagonal folds, reported beside the whole
    protocols: tuple[str, ...] = ()  # of lib.evaluation.protocols, on the whole split `evaluated`
    captions_per_image: int = 1  # where neither an ids file nor the number of feature rows tells
    dev_captions: int | None = None  # `dev` is cut to these
    published: bool = False  # True if published figures may stand beside measured ones
    spellings: tuple[str, ...] = ()  # other names of it, in small letters without - and _


DATA_SETS = {
    "coco": DataSet(
        "COCO",
        splits=("train", "dev", "test", "testall"),
        evaluated="testall",
        folds={"testall": 5},
        protocols=("cxc", "eccv"),
        captions_per_image=5,
        dev_captions=5000,  # as in the released code
        published=True,
        spellings=("mscoco", "coco2014", "mscoco2014"),
    ),
    "f30k": DataSet(
        "Flickr30K",
        images="flickr30k-images",
        captions_per_image=5,
        dev_captions=5000,
        published=True,
        spellings=("flickr30k", "flickr30"),
    ),
}

DATA_NAME = f"{', '.join(DATA_SETS)}, or a name for your own data"  # for the help of flags


def data_set(name: str, flag: str = "--data_name") -> DataSet:
    """The row of `name`; a name without one is that of somebody's own data and stands as it is in every table.

    Raises InputError for a name that can't be part of a file name.
    """
    if not PLAIN_NAME.fullmatch(name):
        raise InputError(f"{flag} {name!r}: expected {', '.join(DATA_SETS)} or a plain name for your own data")
    return DATA_SETS.get(_row_of(name)) or DataSet(label=name)


def known_name(name: str) -> str:
    """The row's name of a data set that is spelled another way, as coco_precomp; a note says so. Others stay."""
    known = _row_of(name)
    if known in (None, name):
        return name
    print(f"note: {name} means {known}; for data of your own choose another name", file=sys.stderr)
    return known


def _row_of(name: str) -> str | None:
    """The row that a name means: MS-COCO, coco_precomp; None if it is somebody's own data."""
    bare = re.sub(r"[-_.]", "", name.lower().removesuffix("_precomp"))
    return next((row for row, data in DATA_SETS.items() if bare in (row, *data.spellings)), None)
