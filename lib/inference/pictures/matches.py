"""What a picture of an ESL head's attention shows: which words matched which regions, and the colours of similarity.

Letters: R regions or grid cells, W words.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from lib.inference.pictures.words import FRAME, is_word

NEGATIVE, POSITIVE = np.array([33, 102, 172.0]), np.array([178, 24, 43.0])
PALETTE = (
    (214, 39, 40), (31, 119, 180), (44, 140, 44), (148, 103, 189), (204, 102, 0),
    (23, 140, 155), (200, 60, 140), (120, 80, 60), (90, 90, 200), (110, 120, 0),
)  # fmt: skip


class Matches(NamedTuple):
    """Word-region similarity (W, R) of a caption's words and, for each region that is some word's best, those words."""

    words: list[str]
    similarity: np.ndarray
    best: np.ndarray  # (W,) each word's strongest region
    labels: dict[int, list[str]]  # region -> words, in the order of the caption; frame and punctuation left out
    colours: dict[int, tuple[int, int, int]]

    @property
    def largest(self) -> float:
        """The value of full colour: the largest one among the real words, so that [CLS] and [SEP] don't pale them."""
        real = [place for place, word in enumerate(self.words) if word not in FRAME]
        return float(np.abs(self.similarity[real] if real else self.similarity).max())


def match_words(words: list[str], similarity: np.ndarray) -> Matches:
    """Find the strongest region of each word."""
    best = similarity.argmax(1)
    labels: dict[int, list[str]] = {}
    for word, region in zip(words, best.tolist(), strict=True):
        if is_word(word):
            labels.setdefault(region, []).append(word)
    colours = {region: PALETTE[place % len(PALETTE)] for place, region in enumerate(labels)}
    return Matches(words, similarity, best, labels, colours)


def grid_boxes(cells: int, width: int, height: int) -> np.ndarray:
    """Boxes (R, 4), x1 y1 x2 y2 in pixels, of a square grid of R cells over an image, row by row; ValueError for an R
    that is no square."""
    side = round(cells**0.5)
    if side * side != cells:
        raise ValueError(f"{cells} cells form no square grid")
    rows, columns = np.divmod(np.arange(cells), side)
    corners = np.stack([columns, rows, columns + 1, rows + 1], 1) / side  # (R, 4)
    return corners * np.array([width, height, width, height])


def heat_colours(values: np.ndarray, largest: float) -> np.ndarray:
    """Blue for negative, white for 0, red for positive values, full from `largest` on: (...) -> (..., 3) uint8."""
    strength, full = _strength(values, largest)
    return np.rint(255 + (full - 255) * strength).astype(np.uint8)


def veil_colours(values: np.ndarray, largest: float) -> np.ndarray:
    """The same colours to lie over a photograph, clear for 0: (...) -> (..., 4) from 0 to 1."""
    strength, full = _strength(values, largest)
    return np.concatenate([full / 255, 0.75 * strength], -1)


def _strength(values: np.ndarray, largest: float) -> tuple[np.ndarray, np.ndarray]:
    share = np.clip(values / largest if largest > 0 else np.zeros_like(values), -1, 1)[..., None]  # (..., 1)
    return np.abs(share) ** 0.8, np.where(share < 0, NEGATIVE, POSITIVE)
