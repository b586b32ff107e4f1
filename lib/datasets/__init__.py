"""What a run reads. DATA_SETS names the known data sets; any other name is that of somebody's own data.

A new data set is a row of the table; its files lie where `layout` says.
"""

from __future__ import annotations

import re
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
    published: bool = False  # whether published figures may stand beside measured ones


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
    ),
    "f30k": DataSet("Flickr30K", images="flickr30k-images", captions_per_image=5, dev_captions=5000, published=True),
}

DATA_NAME = f"{', '.join(DATA_SETS)}, or a name for your own data"  # for the help of flags


def data_set(name: str, flag: str = "--data_name") -> DataSet:
    """The row of `name`; a name without one is that of somebody's own data and stands as it is in every table.

    Raises InputError for a name that can't be part of a file name.
    """
    if not PLAIN_NAME.fullmatch(name):
        raise InputError(f"{flag} {name!r}: expected {', '.join(DATA_SETS)} or a plain name for your own data")
    return DATA_SETS.get(name) or DataSet(label=name)
