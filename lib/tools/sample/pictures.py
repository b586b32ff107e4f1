"""Pictures of the sample data set: drawing a scene, boxing what is in it, and the features of the boxes.

A region feature is ReLU(P d) / 1024, where d holds whole numbers from the pixels inside the box and from its corners:

* thumbnail: the box shrunk to 8 x 8 pixels, RGB (192);
* silhouette: by how much each thumbnail pixel differs from the mean of the thumbnail's edge (64);
* colours: the mean of the edge and the mean of what differs from it, RGB, each four times (24);
* geometry: x1, y1, x2, y2, width, height and area relative to the picture, each four times (28).

P (img_dim, 308), the same for every data set, holds -1, 0 and +1 (random projection, Achlioptas 2003). Sums of whole
numbers are exact in float32, so features depend neither on the number of threads nor on the linear algebra library.
"""

from __future__ import annotations

import math
from functools import cache
from itertools import pairwise

import numpy as np
from PIL import Image, ImageDraw

from lib.tools.sample.scenes import Scene, Thing

REGIONS = 36
_RGB = {
    "red": (208, 36, 40), "orange": (245, 134, 28), "yellow": (250, 216, 50), "green": (42, 150, 66),
    "blue": (40, 84, 204), "purple": (124, 54, 172), "pink": (246, 138, 188), "white": (246, 246, 242),
    "black": (34, 34, 40),
}  # fmt: skip
# Sky at the top, sky at the horizon, ground at the horizon, ground at the bottom.
_GRADIENTS = {
    "meadow": ((108, 170, 232), (206, 230, 248), (122, 178, 88), (78, 134, 54)),
    "beach": ((126, 190, 238), (226, 240, 246), (238, 220, 168), (214, 186, 126)),
    "snow": ((162, 178, 196), (214, 222, 232), (236, 240, 246), (212, 222, 234)),
    "night": ((12, 16, 44), (46, 50, 96), (40, 46, 60), (22, 26, 36)),
    "room": ((224, 204, 178), (212, 188, 160), (156, 106, 66), (116, 74, 42)),
    "street": ((196, 150, 128), (180, 132, 112), (128, 130, 134), (92, 94, 98)),
}
_SUPERSAMPLING = 4
_MARGIN = 32  # pixels around the picture, more than a thing or its shadow reaches beyond it


def _circle(radius: float | np.ndarray = 1.0, centre: tuple[float, float] = (0.0, 0.0), points: int = 40) -> np.ndarray:
    """Corners (points, 2) of a regular polygon, or with two radii (points, 1) in turn of a star."""
    angles = np.linspace(0, 2 * math.pi, points, endpoint=False)
    return np.stack([np.sin(angles), np.cos(angles)], 1) * radius + centre


def _heart() -> np.ndarray:
    t = np.linspace(0, 2 * math.pi, 48, endpoint=False)
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return np.stack([16 * np.sin(t) ** 3, -y - 2.5], 1) / 16.5  # (48, 2)


# Polygons (points, 2) within the unit circle, y downwards: what is filled and what is cut out of it.
_FILLED = {
    "ball": [_circle()], "ring": [_circle()], "moon": [_circle()],
    "box": [[(-0.8, -0.8), (0.8, -0.8), (0.8, 0.8), (-0.8, 0.8)]],
    "triangle": [[(0, -0.95), (0.95, 0.75), (-0.95, 0.75)]], "diamond": [[(0, -1), (0.66, 0), (0, 1), (-0.66, 0)]],
    "star": [_circle(np.tile([[1.0], [0.42]], (5, 1)), points=10) * (1, -1)],
    "heart": [_heart()],
    "cross": [[
        (-0.32, -0.95), (0.32, -0.95), (0.32, -0.32), (0.95, -0.32), (0.95, 0.32), (0.32, 0.32),
        (0.32, 0.95), (-0.32, 0.95), (-0.32, 0.32), (-0.95, 0.32), (-0.95, -0.32), (-0.32, -0.32),
    ]],
    "flower": [*(_circle(0.4, centre) for centre in _circle(0.58, points=5) * (1, -1)), _circle(0.4)],
}  # fmt: skip
_CUT_OUT = {"ring": [_circle(0.52)], "moon": [_circle(0.84, (0.5, -0.22))]}


def draw_scene(scene: Scene, rng: np.random.Generator) -> Image.Image:
    """The picture of a scene; `rng` decides what the scene leaves open: clouds, texture, exact tints."""
    canvas = np.pad(_background(scene, rng), ((_MARGIN, _MARGIN), (_MARGIN, _MARGIN), (0, 0)))
    for thing in sorted(scene.things, key=lambda t: t.y):
        cover = _coverage(thing)
        size, radius = len(cover), thing.radius
        if thing.y + radius > scene.horizon:
            distance = _distance((size, size), size / 2, size / 2, radius * 0.95, radius * 0.3)
            _blend(canvas, thing.x, thing.y + radius * 0.92, 0, 0.38 * np.clip(1.2 - distance, 0, 1))  # a soft shadow
        tint = np.float32(_RGB[thing.colour]) + np.float32(rng.uniform(-10, 10, 3))
        rim = tint * 0.45 if tint.mean() > 60 else tint + 90
        ramp = np.linspace(-1, 1, size, dtype=np.float32)
        light = 1 - 0.16 * (ramp[:, None] + ramp)  # (size, size), from the upper left
        shifted = [np.roll(cover, step, axis) for axis in (0, 1) for step in (-1, 1)]
        inner = np.minimum.reduce([cover, *shifted])  # (size, size), about one pixel taken off all around
        _blend(canvas, thing.x, thing.y, rim + (tint * light[..., None] - rim) * inner[..., None], cover)
    return Image.fromarray(np.clip(canvas[_MARGIN:-_MARGIN, _MARGIN:-_MARGIN], 0, 255).astype(np.uint8))  # (H, W, 3)


def _polygons(thing: Thing, table: dict[str, list]) -> list[np.ndarray]:
    """The polygons (points, 2) that a table has for a thing, in pixels of the picture."""
    sine, cosine = math.sin(thing.tilt), math.cos(thing.tilt)
    turn = np.array([(cosine, sine), (-sine, cosine)])
    return [polygon @ turn * thing.radius + (thing.x, thing.y) for polygon in table.get(thing.shape, [])]


def _coverage(thing: Thing) -> np.ndarray:
    """How much of each pixel of a patch around a thing it covers, 0 to 1 (size, size)."""
    half = math.ceil(thing.radius) + 2
    corner = np.floor((thing.x, thing.y)) - half
    mask = Image.new("L", (2 * half * _SUPERSAMPLING, 2 * half * _SUPERSAMPLING))
    for table, fill in ((_FILLED, 255), (_CUT_OUT, 0)):
        for polygon in _polygons(thing, table):
            ImageDraw.Draw(mask).polygon(((polygon - corner) * _SUPERSAMPLING).ravel().tolist(), fill=fill)
    return np.asarray(mask.reduce(_SUPERSAMPLING), np.float32) / 255


def _blend(canvas: np.ndarray, x: float, y: float, colour: np.ndarray | float, opacity: np.ndarray) -> None:
    """Blend a colour (size, size, 3) into the patch around x, y (in pixels of the picture); opacity (size, size)."""
    size = len(opacity)
    left, top = math.floor(x) - size // 2 + _MARGIN, math.floor(y) - size // 2 + _MARGIN
    patch = canvas[top : top + size, left : left + size]
    patch += (colour - patch) * opacity[..., None]


def _distance(shape: tuple[int, int], x: float, y: float, half_width: float, half_height: float) -> np.ndarray:
    """Squared distance of every pixel from the centre of an ellipse (H, W) float32; it is 1 on the ellipse."""
    rows, columns = np.indices(shape, np.float32)
    return ((columns - x) / half_width) ** 2 + ((rows - y) / half_height) ** 2


def _background(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """Sky and ground (H, W, 3) with a little of what belongs there, mottled and grainy."""
    place, width, height, horizon, _ = scene
    x, y = np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32)
    sky_top, sky_low, ground_far, ground_near = np.float32(_GRADIENTS[place])
    sky_share = np.linspace(0, 1, height, dtype=np.float32)[:, None] * height / horizon
    ground_share = (y[:, None] - horizon) / (height - horizon)
    sky = sky_top + (sky_low - sky_top) * np.clip(sky_share, 0, 1)  # (H, 3)
    ground = ground_far + (ground_near - ground_far) * np.clip(ground_share, 0, 1)  # (H, 3)
    hills = 3.5 if place in ("meadow", "snow") else 0.0
    edge = horizon + hills * np.sin(x / width * rng.uniform(5, 9) + rng.uniform(0, 6))  # (W,)
    below = np.clip(np.arange(height)[:, None] - edge + 0.5, 0, 1)[..., None].astype(np.float32)  # (H, W, 1)
    canvas = sky[:, None] * (1 - below) + ground[:, None] * below  # (H, W, 3)

    if place in ("meadow", "beach"):
        for _ in range(3):
            cloud_x, cloud_y, radius = rng.uniform((0, 4, 10), (width, horizon * 0.6, 22)).tolist()
            distance = _distance((height, width), cloud_x, cloud_y, radius, radius * 0.32)
            canvas += (250 - canvas) * (0.75 * np.clip(1 - distance, 0, 1))[..., None]
    if place == "beach":
        canvas[horizon - 12 : horizon] = (64, 142, 180)
        canvas[horizon - 2 : horizon] = (222, 238, 240)
    if place in ("night", "snow"):
        spots = rng.integers((0, 0), (horizon if place == "night" else height, width), size=(45, 2))
        canvas[spots[:, 0], spots[:, 1]] += 120
    if place == "room":
        canvas[:horizon] += 5 * np.sign(np.sin(x * 0.45))[:, None]
        canvas[horizon + 5 :: 9] -= 26
        canvas[horizon - 2 : horizon + 1] = (238, 228, 212)
    if place == "street":
        canvas[:horizon:7] += 24
        canvas[horizon : horizon + 4] = (170, 170, 168)
        lane = (horizon + height) // 2
        canvas[lane : lane + 3, (x.astype(int) // 14) % 2 == 0] = (226, 222, 206)
    mottling = Image.fromarray(np.float32(rng.standard_normal((15, 20)))).resize((width, height), Image.BICUBIC)
    texture = 0.6 * np.asarray(mottling) + 0.3 * np.float32(rng.standard_normal((height, width)))  # (H, W)
    return canvas + texture[..., None] * np.where(below > 0.5, 9, 3)


def scene_boxes(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """Boxes x1 y1 x2 y2 in pixels (36, 4) float32, in random order, as a detector would propose them.

    Every thing is boxed five times with jitter, and one half of its height and of its width once; each thing shares a
    box with the next. The rest is the whole picture, sky, ground and random pieces of the picture.
    """
    width, height, horizon = scene.width, scene.height, scene.horizon
    outlines = [np.concatenate(_polygons(thing, _FILLED)) for thing in scene.things]
    tight = [np.concatenate([points.min(0), points.max(0)]) for points in outlines]
    boxes = [(0, 0, width, height), (0, 0, width, horizon), (0, horizon, width, height)]
    for x1, y1, x2, y2 in tight:
        side = np.array([x2 - x1, y2 - y1, x2 - x1, y2 - y1])
        margin = side * (-0.08, -0.08, 0.08, 0.08)
        boxes += list((x1, y1, x2, y2) + margin + side * rng.uniform(-0.06, 0.06, (5, 4)))
        middle_x, middle_y = (x1 + x2) / 2, (y1 + y2) / 2
        boxes.append((x1, y1, x2, middle_y) if rng.random() < 0.5 else (x1, middle_y, x2, y2))
        boxes.append((x1, y1, middle_x, y2) if rng.random() < 0.5 else (middle_x, y1, x2, y2))
    for first, second in pairwise(tight):
        boxes.append((*np.minimum(first, second)[:2], *np.maximum(first, second)[2:]))
    while len(boxes) < REGIONS:
        w, h = rng.uniform(0.15, 0.6, 2) * (width, height)
        x, y = rng.uniform(0, (width - w, height - h))
        boxes.append((x, y, x + w, y + h))
    clipped = np.clip(boxes, 0, (width, height, width, height))
    return np.float32(clipped[rng.permutation(REGIONS)])  # (36, 4)


def region_features(image: Image.Image, boxes: np.ndarray, img_dim: int) -> np.ndarray:
    """Features (R, img_dim) float32 of R boxes (R, 4), in pixels of an RGB image."""
    thumbnails = [image.resize((8, 8), Image.Resampling.BOX, box=tuple(box)) for box in boxes.tolist()]
    pixels = np.stack(thumbnails).astype(np.int64)  # (R, 8, 8, 3)
    on_edge = np.pad(np.zeros((6, 6), bool), 1, constant_values=True)
    edge = pixels[:, on_edge].mean(1).round().astype(np.int64)  # (R, 3)
    contrast = np.abs(pixels - edge[:, None, None]).sum(-1)  # (R, 8, 8)
    front = (pixels * contrast[..., None]).sum((1, 2)) // np.maximum(contrast.sum((1, 2)), 1)[:, None]  # (R, 3)
    corners = boxes.astype(np.float64) / (image.size * 2)
    sides = corners[:, 2:] - corners[:, :2]
    geometry = (np.hstack([corners, sides, sides.prod(1, keepdims=True)]) * 255).round()  # (R, 7)
    parts = [pixels.reshape(len(boxes), -1) - 128, contrast.reshape(len(boxes), -1) // 2]
    parts += [np.tile(part - 128, 4) for part in (edge, front, geometry)]
    descriptors = np.hstack(parts).astype(np.float32)  # (R, 308)
    return np.maximum(descriptors @ _projection(img_dim).T, 0) / np.float32(1024)  # (R, img_dim)


@cache
def _projection(img_dim: int) -> np.ndarray:
    """The fixed matrix (img_dim, 308): one entry in three is not zero."""
    signs = np.random.default_rng(20230823).integers(0, 6, (img_dim, 308))
    return np.float32(signs == 0) - np.float32(signs == 1)
