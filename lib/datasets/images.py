"""Image files of a data set: found by id, checked before a run starts, read as encoder input."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from lib.core.errors import InputError, listed, shown
from lib.files.images import DEFAULT_LIMITS, SUFFIXES, ImageLimits, read_image
from lib.files.reading import read_lines

if TYPE_CHECKING:
    from torch import Tensor


class ImageFolder:
    """The raw images of a split: row i of the split is the image with id `ids[i]`.

    `names` maps an id to a path under `folder` (id_mapping.json; its keys may be strings); without `ids` the rows are
    all it names, in its order. Nothing is read before it's needed. Raises InputError for a key that is no integer.
    """

    def __init__(
        self,
        folder: str | Path,
        names: Mapping[int, str] | Mapping[str, str],
        ids: Sequence[int] | None = None,
        limits: ImageLimits = DEFAULT_LIMITS,
    ):
        self.folder, self.limits = Path(folder), limits
        try:
            names = {int(key): name for key, name in names.items()}
        except ValueError as error:
            raise InputError(f"id mapping of the images in {folder}: ids must be integers ({error})") from None
        self.ids = [int(image_id) for image_id in (names if ids is None else ids)]
        self.names = {image_id: names[image_id] for image_id in self.ids if image_id in names}

    def __len__(self) -> int:
        return len(self.ids)

    def path(self, row: int) -> Path:
        """Path of the image of a row; raises InputError when the mapping has no entry for its id, or one that leaves
        the folder."""
        image_id = self.ids[row]
        if image_id not in self.names:
            raise InputError(f"image id {image_id}: not in the id mapping of the images in {self.folder}")
        path = self.folder / self.names[image_id]
        if not self.limits.outside and _leaves(self.names[image_id]):
            raise InputError(f"{shown(path, 300)} (image id {image_id}): {_OUTSIDE.format(self.folder)}")
        return path

    def read(self, row: int, decode: Callable[[Image.Image], np.ndarray] | None = None) -> np.ndarray:
        """The decoded image of a row, see `read_image`."""
        return read_image(self.path(row), self.ids[row], decode, self.limits)

    def check(self, ids: Iterable[int] | None = None) -> int:
        """Return how many different images there are; raises InputError with the number and the first few of those that
        lack an entry in the mapping or a file, or that leave the folder. One pass over the names; no file is opened."""
        ids = dict.fromkeys(self.ids if ids is None else ids)
        unmapped = [str(image_id) for image_id in ids if image_id not in self.names]
        if unmapped:
            raise InputError(
                f"{self.folder}: {_some(unmapped, 'image ids')} of {len(ids)} not in the id mapping; "
                "the ids and the mapping must come from the same data set"
            )
        return _check_names(self.folder, [self.names[image_id] for image_id in ids], self.limits.outside)


class RawImages:
    """The images of a split as the encoder takes them, float32 (3, S, S): decoded, where the transform has a
    `decode` by that, then `transform(image, rng)`."""

    def __init__(self, folder: ImageFolder, transform: Callable[[np.ndarray, np.random.Generator | None], Tensor]):
        self.folder, self.transform = folder, transform

    def __len__(self) -> int:
        return len(self.folder)

    def __call__(self, image: int, rng: np.random.Generator | None = None) -> Tensor:
        return self.transform(self.folder.read(image, getattr(self.transform, "decode", None)), rng)


def check_image_list(folder: str | Path, image_list: str | Path, limits: ImageLimits = DEFAULT_LIMITS) -> int:
    """Check that the file `image_list` names (one path under `folder` a line) only images that are there; return their
    number.

    Raises InputError with the number and the first few of those that are missing or leave the folder. One pass over the
    names; no image is opened.
    """
    names = [line.strip() for line in read_lines(image_list) if line.strip()]
    return _check_names(Path(folder), names, limits.outside)


def find_images(folder: str | Path) -> list[str]:
    """Paths under `folder` of all image files in it and its subfolders, each of these once whatever links there are,
    sorted; raises InputError when there are none."""
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; --images names the folder of the images")
    names, walked = [], set()
    for parent, folders, children in os.walk(folder, followlinks=True):
        folders.sort()
        if (real := os.path.realpath(parent)) in walked:
            folders.clear()
            continue
        walked.add(real)
        under = Path(parent).relative_to(folder)
        names += [(under / name).as_posix() for name in children if name.lower().endswith(SUFFIXES)]
    if not names:
        raise InputError(f"{folder}: no image files ({', '.join(SUFFIXES)}) there")
    return sorted(names)


def _leaves(name: str) -> bool:
    """Whether a path may lead out of the folder that it is under; links in there are its owner's choice."""
    return name.startswith("/") or ".." in name.split("/")


_OUTSIDE = "outside of {} (an absolute path, or one with ..); --allow_outside_images reads it all the same"


def _check_names(folder: Path, names: list[str], outside: bool) -> int:
    by_parent = defaultdict(list)
    for name in names:
        parent, _, leaf = name.rpartition("/")
        by_parent[parent].append((leaf, name))
    strays = [name for name in names if not outside and _leaves(name)]
    if strays:
        raise InputError(f"{_some(strays, 'image files')} of {len(names)}: {_OUTSIDE.format(folder)}")
    missing = []
    for parent, children in by_parent.items():
        there = _entries(folder / parent)
        missing += [name for leaf, name in children if leaf not in there]
    if missing:
        raise InputError(
            f"{folder}: {_some(missing, 'image files')} of {len(names)} missing; complete the folder or name another"
        )
    return len(names)


def _entries(folder: Path) -> set[str]:
    """The names in a folder."""
    try:
        return {*os.listdir(folder)}
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return set()
    except OSError as error:
        raise InputError(f"{folder}: cannot be listed ({error.strerror})") from None


def _some(items: list[str], what: str) -> str:
    return f"{len(items)} {what} ({listed(items, 3)})"
