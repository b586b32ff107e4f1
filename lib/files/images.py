"""Image files of unknown origin: opened within limits, decoded to RGB."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import stat
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from lib.core.errors import InputError, shown
from lib.files.kinds import LONGEST, image_kind, stand_in


@dataclasses.dataclass(frozen=True)
class ImageLimits:
    """Limits of the image files that are read.

    `outside`: also read images outside the image folder (absolute paths or `..`).
    """

    max_pixels: int = 50_000_000
    outside: bool = False


DEFAULT_LIMITS = ImageLimits()
FORMATS = {  # the only decoders that are tried, and the suffixes by which a folder's images are found
    "JPEG": (".jpg", ".jpeg"),
    "PNG": (".png",),
    "BMP": (".bmp",),
    "TIFF": (".tif", ".tiff"),
    "WEBP": (".webp",),
}
SUFFIXES = sum(FORMATS.values(), ())
_SIXTEEN_BIT = ("I", "I;16", "I;16L", "I;16B", "I;16N")


@contextlib.contextmanager
def open_image(
    path: str | Path, image_id: int | str | None = None, limits: ImageLimits = DEFAULT_LIMITS
) -> Iterator[Image.Image]:
    """The image in a file, its header read; whatever its decoder raises within the block is an InputError that names
    file and id, as is a missing file, one that is no regular file, and one of too many pixels."""
    what = shown(path, 300) if image_id is None else f"{shown(path, 300)} (image id {image_id})"
    before = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = limits.max_pixels  # decoders look at it before they take memory
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # opening a pipe would wait for ever
            raise InputError(f"{what}: is no regular file; expected an image file")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # an error follows
            opened = Image.open(path, formats=list(FORMATS))
        with opened as image:
            if image.width * image.height == 0:
                raise ValueError(f"{image.width} x {image.height} pixels")
            if image.width * image.height > limits.max_pixels:
                raise Image.DecompressionBombError
            yield image
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"{what}: no such image file") from None
    except Image.DecompressionBombError:
        raise InputError(
            f"{what}: has more than {limits.max_pixels:,} pixels, as it is or resized; make it smaller, or raise "
            "--max_pixels"
        ) from None
    except MemoryError:
        raise InputError(f"{what}: too little memory to decode it; make it smaller") from None
    except UnidentifiedImageError:
        raise InputError(f"{what}: {_unread(path)}") from None
    except Exception as error:  # decoders raise anything: OSError, SyntaxError, ValueError, struct.error, zlib.error, …
        reason = shown(" ".join(str(error).split()), 200) or type(error).__name__
        raise InputError(f"{what}: corrupt or truncated image ({reason}); replace the file") from None
    finally:
        Image.MAX_IMAGE_PIXELS = before


def _unread(path: str | Path) -> str:
    """The reason why no decoder takes a file."""
    with open(path, "rb") as file:
        beginning = file.read(LONGEST)
    if kind := stand_in(beginning):
        return f"expected an image, but it is {kind}"
    if kind := image_kind(beginning):
        return f"is {kind}; convert it, the formats that are read are {', '.join(FORMATS)}"
    return f"corrupt or truncated image (none of {', '.join(FORMATS)}); replace the file"


def read_image(
    path: str | Path,
    image_id: int | str | None = None,
    decode: Callable[[Image.Image], np.ndarray] | None = None,
    limits: ImageLimits = DEFAULT_LIMITS,
) -> np.ndarray:
    """Decode a file to RGB, uint8 (H, W, 3), or with `decode` as that does; raises InputError naming file and id when
    it is missing, corrupt, truncated or too large.

    Grey levels are repeated, palettes looked up, CMYK converted, alpha dropped without blending; 16-bit samples keep
    their high byte. The EXIF orientation is ignored, as in the released code. Flipped bits inside the compressed data
    of a JPEG that still decodes can't be noticed: the format has no checksum.
    """
    with open_image(path, image_id, limits) as image:
        if image.mode in _SIXTEEN_BIT:
            pixels = _from_sixteen_bits(np.asarray(image))
            return decode(Image.fromarray(pixels)) if decode else pixels
        if decode:
            return decode(image)
        return np.array(image if image.mode == "RGB" else _to_rgb(image))


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
