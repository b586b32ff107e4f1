"""Image files: decoding any of them to RGB, finding them by id, and telling which are missing before a run starts."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from lib.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")

_SIXTEEN_BIT = ("I", "I;16", "I;16L", "I;16B", "I;16N")


def read_image(
    path: str | Path, image_id: int | str | None = None, decode: Callable[[Image.Image], np.ndarray] | None = None
) -> np.ndarray:
    """Decode a file to RGB, uint8 (H, W, 3), or with `decode` as that does; raises InputError naming file and id when
    it is missing, corrupt or truncated.

    Grey levels are repeated, palettes looked up, CMYK converted, alpha dropped without blending; 16-bit samples keep
    their high byte. The EXIF orientation is ignored, as in the released code. Flipped bits inside the compressed data
    of a JPEG that still decodes can't be noticed: the format has no checksum.
    """
    what = f"{path}" if image_id is None else f"{path} (image id {image_id})"
    try:
        with Image.open(path) as image:
            if image.mode in _SIXTEEN_BIT:
                pixels = _from_sixteen_bits(np.asarray(image))
                return decode(Image.fromarray(pixels)) if decode else pixels
            if decode:
                return decode(image)
            return np.array(image if image.mode == "RGB" else _to_rgb(image))
    except FileNotFoundError:
        raise InputError(f"{what}: no such image file") from None
    except MemoryError:
        raise
    except Exception as error:  # decoders raise anything: OSError, SyntaxError, ValueError, struct.error, zlib.error, …
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{what}: corrupt or truncated image ({reason}); replace the file") from None


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise ValueError("floating-point pixels, expected 8 or 16 bits per sample")
    if image.mode == "P":
        image.info.pop("transparency", None)
    return image.convert("RGB")


def _from_sixteen_bits(grey: np.ndarray) -> np.ndarray:
    if grey.min() < 0 or grey.max() > 0xFFFF:
        raise ValueError("32-bit samples, expected 8 or 16 bits")
    return np.repeat((grey >> 8).astype(np.uint8)[:, :, None], 3, axis=2)  # (H, W, 3)


class ImageFolder:
    """The raw images of a split: row i of the split is the image with id `ids[i]`.

    `names` maps an id to a path under `folder` (id_mapping.json; its keys may be strings); without `ids` the rows are
    all it names, in its order. Nothing is read before it's needed. Raises InputError for a key that is no integer.
    """

    def __init__(
        self, folder: str | Path, names: Mapping[int, str] | Mapping[str, str], ids: Sequence[int] | None = None
    ):
        self.folder = Path(folder)
        try:
            names = {int(key): name for key, name in names.items()}
        except ValueError as error:
            raise InputError(f"id mapping of the images in {folder}: ids must be integers ({error})") from None
        self.ids = [int(image_id) for image_id in (names if ids is None else ids)]
        self.names = {image_id: names[image_id] for image_id in self.ids if image_id in names}

    def __len__(self) -> int:
        return len(self.ids)

    def path(self, row: int) -> Path:
        """Path of the image of a row; raises InputError when the mapping has no entry for its id."""
        image_id = self.ids[row]
        try:
            return self.folder / self.names[image_id]
        except KeyError:
            raise InputError(f"image id {image_id}: not in the id mapping of the images in {self.folder}") from None

    def read(self, row: int, decode: Callable[[Image.Image], np.ndarray] | None = None) -> np.ndarray:
        """The decoded image of a row, see `read_image`."""
        return read_image(self.path(row), self.ids[row], decode)

    def check(self, ids: Iterable[int] | None = None) -> int:
        """Return how many different images there are; raises InputError with the number and the first few of those that
        lack an entry in the mapping or a file. One pass over the names; no file is opened."""
        ids = dict.fromkeys(self.ids if ids is None else ids)
        unmapped = [str(image_id) for image_id in ids if image_id not in self.names]
        if unmapped:
            raise InputError(
                f"{self.folder}: {_some(unmapped, 'image ids')} of {len(ids)} not in the id mapping; "
                "the ids and the mapping must come from the same data set"
            )
        return _check_names(self.folder, [self.names[image_id] for image_id in ids])


class RawImages:
    """The images of a split as the encoder takes them, float32 (3, S, S): decoded, where the transform has a
    `decode` by that, then `transform(image, rng)`."""

    def __init__(self, folder: ImageFolder, transform: Callable[[np.ndarray, np.random.Generator | None], Tensor]):
        self.folder, self.transform = folder, transform

    def __len__(self) -> int:
        return len(self.folder)

    def __call__(self, image: int, rng: np.random.Generator | None = None) -> Tensor:
        return self.transform(self.folder.read(image, getattr(self.transform, "decode", None)), rng)


def check_image_list(folder: str | Path, image_list: str | Path) -> int:
    """Check that the file `image_list` names (one path under `folder` a line) only images that are there; return their
    number.

    Raises InputError with the number and the first few of the missing ones. One pass over the names; no image is
    opened.
    """
    try:
        lines = Path(image_list).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise InputError(f"{image_list}: cannot be read ({reason}); expected one image path a line") from None
    names = [line.strip() for line in lines if line.strip()]
    if not names:
        raise InputError(f"{image_list}: empty, expected one image path a line")
    return _check_names(Path(folder), names)


def find_images(folder: str | Path) -> list[str]:
    """Paths under `folder` of all image files in it and its subfolders, sorted; raises InputError when there are
    none."""
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; --images names the folder of the images")
    names = [
        (Path(parent) / name).relative_to(folder).as_posix()
        for parent, _, children in os.walk(folder, followlinks=True)
        for name in children
        if name.lower().endswith(SUFFIXES)
    ]
    if not names:
        raise InputError(f"{folder}: no image files ({', '.join(SUFFIXES)}) there")
    return sorted(names)


def _check_names(folder: Path, names: list[str]) -> int:
    by_parent = defaultdict(list)
    for name in names:
        parent, _, leaf = name.rpartition("/")
        by_parent[parent].append((leaf, name))
    missing = []
    for parent, children in by_parent.items():
        present = _entries(folder / parent)
        missing += [name for leaf, name in children if leaf not in present]
    if missing:
        raise InputError(
            f"{folder}: {_some(missing, 'image files')} of {len(names)} missing; complete the folder or name another"
        )
    return len(names)


def _entries(folder: Path) -> set[str]:
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries}
    except (FileNotFoundError, NotADirectoryError):
        return set()
    except OSError as error:
        raise InputError(f"{folder}: cannot be listed ({error.strerror})") from None


def _some(items: list[str], what: str) -> str:
    return f"{len(items)} {what} ({', '.join(items[:3])}{', …' if len(items) > 3 else ''})"
