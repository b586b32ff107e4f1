"""CxC-like annotations of the sample data set: how related images and captions are, from what is in them.

Each scene and each caption is a vector of counts over (colour and shape together, colour, shape, place), weighted 2, 1,
1, 1; relatedness is 5 times the cosine, so 5 means that both name the same and 0 that they have nothing in common. A
caption names only a part of its scene; its own image counts as 5 all the same.
"""

from __future__ import annotations

import json
from collections import Counter

import numpy as np

from lib.tools.sample.scenes import CAPTIONS_PER_IMAGE, all_mentions

RATED_FROM = 2.0  # pairs of images or of captions below this get no rating
POSITIVE_FROM = 3.0  # an image and a caption match from here on, as in CxC


def count_vectors(items: list[Counter]) -> np.ndarray:
    """Weighted counts (N, mentions), whole numbers as float32."""
    weights = {mention: 2 if mention[0] == "thing" else 1 for mention in all_mentions()}
    return np.array([[weight * item[mention] for mention, weight in weights.items()] for item in items], np.float32)


def relatedness(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """5 times the cosine of every pair (N, M), from 0 to 5, rounded to three digits. Zero vectors get 0."""
    lengths = [np.sqrt((x.astype(np.float64) ** 2).sum(1)) for x in (first, second)]
    product = (first @ second.T).astype(np.float64)  # exact: sums of small whole numbers
    return np.round(5 * product / np.maximum(np.outer(*lengths), 1e-12), 3)


def annotations(image_ids: list[int], caption_ids: list[int], scenes: list[Counter], captions: list[Counter]) -> dict:
    """The lines of every file of `cxc_annots/` by its name; `scenes` and the five captions of each are mentions.

    A pair of captions is rated when it shares an image or stands at the same place of two rated images.
    """
    images, texts = count_vectors(scenes), count_vectors(captions)
    positions = np.arange(len(texts)).reshape(len(images), CAPTIONS_PER_IMAGE)  # (images, 5)
    across = relatedness(texts, images)  # (captions, images)
    across[positions.T, np.arange(len(images))] = 5
    between_images = relatedness(images, images)
    np.fill_diagonal(between_images, 0)

    t2t = {}
    for (image, place), caption in np.ndenumerate(positions):
        others = [*np.delete(positions[image], place), *positions[between_images[image] >= RATED_FROM, place]]
        scores = relatedness(texts[[caption]], texts[others])  # (1, others)
        t2t |= _ratings([caption_ids[caption]], [caption_ids[other] for other in others], scores)
    t2i = _ratings(caption_ids, image_ids, across, POSITIVE_FROM)
    i2t = _ratings(image_ids, caption_ids, across.T, POSITIVE_FROM)
    i2i = _ratings(image_ids, image_ids, between_images, RATED_FROM)
    return {
        "cxc_it.json": [json.dumps({"t2i": t2i, "i2t": i2t})],
        "cxc_i2i.json": [json.dumps(i2i)],
        "cxc_t2t.json": [json.dumps(t2t)],
        "testall_ids.txt": np.repeat(image_ids, CAPTIONS_PER_IMAGE),
        "testall_capids.txt": caption_ids,
    }


def _ratings(queries: list[int], items: list[int], scores: np.ndarray, lowest: float = 0.0) -> dict[int, list]:
    """{query: [[item, score], ...]} of scores (queries, items) from `lowest` on, the most related item first."""
    ratings = {}
    for query, row in zip(queries, scores, strict=True):
        best = np.argsort(-row, kind="stable")[: np.count_nonzero(row >= lowest)]
        ratings[query] = [[items[i], float(row[i])] for i in best]
    return ratings
