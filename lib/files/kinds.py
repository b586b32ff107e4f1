"""Kinds of files that stand where another is expected, recognised by their first bytes, so that messages name them."""

from __future__ import annotations

import re

LONGEST = 64  # bytes that `stand_in` and `image_kind` look at

_STAND_INS = {
    rb"version https://git-lfs": "a Git LFS pointer; fetch the file itself with 'git lfs pull'",
    rb"# xet version": "a xet pointer; fetch the file itself with 'git xet pull' or the hub's download",
    rb"\x1f\x8b": "a gzip archive; unpack it first",
    rb"\x80[\x02-\x05]": "a Python pickle, which could run code; save its content in the expected form",
    rb"\s*<(!doctype\s+html|html)": "a web page; the download went wrong, repeat it",
}
_IMAGES = {
    rb"GIF8[79]a": "GIF",
    rb".{4}ftypavi[fs]": "AVIF",
    rb".{4}ftyp(heic|heix|mif1)": "HEIC",
    rb"\x00\x00\x00\x0cjP  |\xff\x4f\xff\x51": "JPEG 2000",
    rb"8BPS": "PSD",
    rb"%PDF": "PDF",
    rb"\s*<(\?xml|svg)": "SVG",
}


def stand_in(beginning: bytes) -> str | None:
    """The kind of a pointer, archive, pickle or web page, and what to do about it; None for other files."""
    return _first_match(_STAND_INS, beginning)


def image_kind(beginning: bytes) -> str | None:
    """The kind of an image that is not read here; None for other files."""
    return _first_match(_IMAGES, beginning)


def _first_match(kinds: dict[bytes, str], beginning: bytes) -> str | None:
    return next((kind for pattern, kind in kinds.items() if re.match(pattern, beginning, re.I | re.S)), None)
