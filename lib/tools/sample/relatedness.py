"""CxC-like annotations of the sample data set: how related images and captions are, from what is in them.

Each scene and each caption is a vector of counts over (colour and shape together, colour, shape, place), weighted 2, 1,
1, 1; relatedness is 5 times the cosine, so 5 means that both name the same and 0 that they have nothing in common. A
caption names only a part of its scene; its own image counts as 5 all the same.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np

from lib.files import atomic_write
from lib.tools.sample.captions import CAPTIONS_PER_IMAGE, all_mentions

RATED_FROM = 2.0  # pairs of images or of captions below this get no rating
POSITIVE_FROM = 3.0  # an image and a caption match from here on, as in CxC
_WEIGHTS = {"thing": 2, "colour": 1, "shape": 1, "place": 1}


def count_vectors(items: list[Counter]) -> np.ndarray:
    """Weighted counts (N, mentions), whole numbers as float32."""
    keys = all_mentions()
    return np.array([[item[key] * _WEIGHTS[key[0]] for key in keys] for item in items], np.float32)


def relatedness(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """5 times the cosine of every pair (N, M), from 0 to 5, rounded to three digits. Zero vectors get 0."""
    lengths = [np.sqrt((x.astype(np.float64) ** 2).sum(1)) for x in (first, second)]
    product = (first @ second.T).astype(np.float64)  # exact: sums of small whole numbers
    return np.round(5 * product / np.maximum(np.outer(*lengths), 1e-12), 3)


def write_annotations(
    folder: str | Path, image_ids: list[int], caption_ids: list[int], scenes: list[Counter], captions: list[Counter]
) -> None:
    """Write the five files of `cxc_annots/`: five captions per image, in order; the most related come first.

    A pair of captions is rated when it shares an image or stands at the same place of two rated images.
    """
    folder = Path(folder)
    images, texts = count_vectors(scenes), count_vectors(captions)
    between_images = relatedness(images, images)
    across = relatedness(texts, images)  # (captions, images)
    own = np.repeat(np.arange(len(image_ids)), CAPTIONS_PER_IMAGE)
    across[np.arange(len(own)), own] = 5

    i2i, t2t = {}, {}
    for i, image_id in enumerate(image_ids):
        rated = np.flatnonzero(between_images[i] >= RATED_FROM)
        rated = rated[rated != i]
        i2i[str(image_id)] = _ratings(image_ids, rated, between_images[i, rated])
        first = i * CAPTIONS_PER_IMAGE
        siblings = np.arange(first, first + CAPTIONS_PER_IMAGE)
        for caption in siblings:
            others = np.concatenate([siblings[siblings != caption], rated * CAPTIONS_PER_IMAGE + caption - first])
            scores = relatedness(texts[caption : caption + 1], texts[others])[0]
            t2t[str(caption_ids[caption])] = _ratings(caption_ids, others, scores)
    t2i, i2t = {}, {}
    for j, caption_id in enumerate(caption_ids):
        matching = np.flatnonzero(across[j] >= POSITIVE_FROM)
        t2i[str(caption_id)] = _ratings(image_ids, matching, across[j, matching])
    for i, image_id in enumerate(image_ids):
        matching = np.flatnonzero(across[:, i] >= POSITIVE_FROM)
        i2t[str(image_id)] = _ratings(caption_ids, matching, across[matching, i])

    for name, content in (("cxc_it", {"t2i": t2i, "i2t": i2t}), ("cxc_i2i", i2i), ("cxc_t2t", t2t)):
        with atomic_write(folder / f"{name}.json") as temporary:
            temporary.write_text(json.dumps(content) + "\n", encoding="utf-8")
    for name, ids in (("testall_ids", np.repeat(image_ids, CAPTIONS_PER_IMAGE)), ("testall_capids", caption_ids)):
        with atomic_write(folder / f"{name}.txt") as temporary:
            temporary.write_text("".join(f"{number}\n" for number in ids), encoding="utf-8")


def _ratings(ids: list[int], chosen: np.ndarray, scores: np.ndarray) -> list[list]:
    """[[id, score], ...] of chosen positions, the most related first."""
    order = np.argsort(-scores, kind="stable")
    return [[int(ids[chosen[k]]), float(scores[k])] for k in order]
