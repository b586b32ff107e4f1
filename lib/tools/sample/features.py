"""Boxes of a scene and the features of what lies inside them.

A region feature is ReLU(P d) / FEATURE_SCALE. The descriptor d holds whole numbers, from the pixels inside the box and
its corners alone:

* thumbnail: the box shrunk to 8 x 8 pixels, RGB (192);
* silhouette: by how much each thumbnail pixel differs from the mean of the thumbnail's edge (64);
* colours: the mean of the edge and the mean of what differs from it, RGB, each four times (24);
* geometry: x1, y1, x2, y2, width, height and area relative to the picture, each four times (28).

P (img_dim, 308) is the same for every data set and holds -1, 0 and +1 (a database-friendly random projection,
Achlioptas 2003). Sums of whole numbers are exact in float32, so features don't depend on the number of threads or on
the linear algebra library. Letters: R regions.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from PIL import Image

from lib.tools.sample.drawing import extent
from lib.tools.sample.scenes import Scene

REGIONS = 36
FEATURE_SCALE = 1024.0
_SIDE = 8
_DESCRIPTOR = _SIDE * _SIDE * 4 + 24 + 28
_VIEWS_PER_THING = 5


def scene_boxes(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """Boxes x1 y1 x2 y2 in pixels (36, 4) float32, in random order, as a detector would propose them.

    Every thing is boxed five times with jitter, and one half of its height and of its width once; each thing shares a
    box with the next. The rest is the whole picture, sky, ground and random pieces of the picture.
    """
    width, height, horizon = scene.width, scene.height, scene.horizon
    tight = np.array([extent(thing) for thing in scene.things])  # (things, 4)
    boxes = [(0, 0, width, height), (0, 0, width, horizon), (0, horizon, width, height)]
    for x1, y1, x2, y2 in tight:
        side = np.array([x2 - x1, y2 - y1, x2 - x1, y2 - y1])
        margin = side * (-0.08, -0.08, 0.08, 0.08)
        boxes += list((x1, y1, x2, y2) + margin + side * rng.uniform(-0.06, 0.06, (_VIEWS_PER_THING, 4)))
        middle_x, middle_y = (x1 + x2) / 2, (y1 + y2) / 2
        boxes.append((x1, y1, x2, middle_y) if rng.random() < 0.5 else (x1, middle_y, x2, y2))
        boxes.append((x1, y1, middle_x, y2) if rng.random() < 0.5 else (middle_x, y1, x2, y2))
    for first, second in zip(tight, tight[1:], strict=False):
        boxes.append((*np.minimum(first[:2], second[:2]), *np.maximum(first[2:], second[2:])))
    while len(boxes) < REGIONS:
        w, h = rng.uniform(0.15, 0.6, 2) * (width, height)
        x, y = rng.uniform(0, width - w), rng.uniform(0, height - h)
        boxes.append((x, y, x + w, y + h))
    clipped = np.clip(np.array(boxes), 0, (width, height, width, height))
    return np.float32(clipped[rng.permutation(REGIONS)])  # (36, 4)


def region_features(image: Image.Image, boxes: np.ndarray, img_dim: int) -> np.ndarray:
    """Features (R, img_dim) float32 of boxes (R, 4), in pixels of the image."""
    projected = descriptors(image, boxes) @ projection(img_dim).T
    return np.maximum(projected, 0) / np.float32(FEATURE_SCALE)  # (R, img_dim)


def descriptors(image: Image.Image, boxes: np.ndarray) -> np.ndarray:
    """What the features are computed from: whole numbers (R, 308), as float32."""
    image = image.convert("RGB")
    size = (_SIDE, _SIDE)
    thumbnails = [image.resize(size, Image.Resampling.BOX, box=tuple(box)) for box in boxes.tolist()]
    pixels = np.stack([np.asarray(t, np.int64) for t in thumbnails])  # (R, 8, 8, 3)
    on_edge = np.ones(size, bool)
    on_edge[1:-1, 1:-1] = False
    edge = pixels[:, on_edge].mean(1).round().astype(np.int64)  # (R, 3)
    contrast = np.abs(pixels - edge[:, None, None]).sum(-1)  # (R, 8, 8)
    front = (pixels * contrast[..., None]).sum((1, 2)) // np.maximum(contrast.sum((1, 2)), 1)[:, None]  # (R, 3)
    width, height = image.size
    corners = np.asarray(boxes, np.float64) / (width, height, width, height)
    sides = corners[:, 2:] - corners[:, :2]
    geometry = np.concatenate([corners, sides, sides.prod(1, keepdims=True)], 1)  # (R, 7)
    parts = [
        (pixels - 128).reshape(len(boxes), -1),
        contrast.reshape(len(boxes), -1) // 2,
        np.tile(edge - 128, 4),
        np.tile(front - 128, 4),
        np.tile((geometry * 255).round() - 128, 4),
    ]
    return np.concatenate(parts, 1).astype(np.float32)  # (R, 308)


@cache
def projection(img_dim: int) -> np.ndarray:
    """The fixed matrix (img_dim, 308): one entry in three is not zero."""
    signs = np.random.default_rng(20230823).integers(0, 6, (img_dim, _DESCRIPTOR))
    return np.float32(signs == 0) - np.float32(signs == 1)
