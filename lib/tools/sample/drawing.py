"""Drawing a scene: a soft background, then every thing antialiased, shaded and outlined.

Arrays are (H, W, 3) float32 from 0 to 255.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np
from PIL import Image, ImageDraw

from lib.tools.sample.scenes import Scene, Thing

RGB = {
    "red": (208, 36, 40),
    "orange": (245, 134, 28),
    "yellow": (250, 216, 50),
    "green": (42, 150, 66),
    "blue": (40, 84, 204),
    "purple": (124, 54, 172),
    "pink": (246, 138, 188),
    "white": (246, 246, 242),
    "black": (34, 34, 40),
}
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


def draw_scene(scene: Scene, rng: np.random.Generator) -> Image.Image:
    """The picture of a scene; `rng` decides what the scene leaves open: clouds, texture, exact tints."""
    canvas = _background(scene, rng)
    for thing in sorted(scene.things, key=lambda t: t.y):
        if thing.y + thing.radius > scene.horizon:
            _shadow(canvas, thing)
        tint = np.asarray(RGB[thing.colour], np.float32) + rng.uniform(-10, 10, 3).astype(np.float32)
        _paint(canvas, thing, tint)
    return Image.fromarray(np.clip(canvas, 0, 255).astype(np.uint8))


def extent(thing: Thing) -> tuple[float, float, float, float]:
    """The tight box x1 y1 x2 y2 of a thing in pixels."""
    points = np.concatenate([_turned(polygon, thing) for polygon, solid in outline(thing.shape) if solid])
    (x1, y1), (x2, y2) = points.min(0), points.max(0)
    return float(x1), float(y1), float(x2), float(y2)


@cache
def outline(shape: str) -> tuple[tuple[np.ndarray, bool], ...]:
    """Polygons (points, 2) of a shape within the unit circle, in drawing order; False marks one that cuts a hole."""
    if shape == "ball":
        return ((_circle(), True),)
    if shape == "box":
        return ((np.array([(-0.8, -0.8), (0.8, -0.8), (0.8, 0.8), (-0.8, 0.8)]), True),)
    if shape == "triangle":
        return ((np.array([(0, -0.95), (0.95, 0.75), (-0.95, 0.75)]), True),)
    if shape == "star":
        angles = np.arange(10) * math.pi / 5
        radii = np.where(np.arange(10) % 2 == 0, 1.0, 0.42)
        return ((np.stack([radii * np.sin(angles), -radii * np.cos(angles)], 1), True),)
    if shape == "heart":
        t = np.linspace(0, 2 * math.pi, 48, endpoint=False)
        x = 16 * np.sin(t) ** 3
        y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))
        return ((np.stack([x, y - 2.5], 1) / 16.5, True),)
    if shape == "ring":
        return ((_circle(), True), (_circle(0.52), False))
    if shape == "cross":
        a, b = 0.32, 0.95
        points = [
            (-a, -b),
            (a, -b),
            (a, -a),
            (b, -a),
            (b, a),
            (a, a),
            (a, b),
            (-a, b),
            (-a, a),
            (-b, a),
            (-b, -a),
            (-a, -a),
        ]
        return ((np.array(points), True),)
    if shape == "diamond":
        return ((np.array([(0, -1), (0.66, 0), (0, 1), (-0.66, 0)]), True),)
    if shape == "moon":
        return ((_circle(), True), (_circle(0.84, (0.5, -0.22)), False))
    if shape == "flower":
        petals = [_circle(0.4, (0.58 * math.sin(a), -0.58 * math.cos(a))) for a in np.arange(5) * 2 * math.pi / 5]
        return tuple((polygon, True) for polygon in [*petals, _circle(0.4)])
    raise ValueError(f"unknown shape {shape!r}")


def _circle(radius: float = 1.0, centre: tuple[float, float] = (0.0, 0.0)) -> np.ndarray:
    angles = np.linspace(0, 2 * math.pi, 40, endpoint=False)
    return np.stack([np.sin(angles), np.cos(angles)], 1) * radius + np.asarray(centre)


def _turned(polygon: np.ndarray, thing: Thing) -> np.ndarray:
    """Points of a unit polygon in picture coordinates."""
    sine, cosine = math.sin(thing.tilt), math.cos(thing.tilt)
    return polygon @ np.array([(cosine, sine), (-sine, cosine)]) * thing.radius + (thing.x, thing.y)


def _coverage(thing: Thing, left: int, top: int, size: int) -> np.ndarray:
    """How much of each pixel of a square patch the thing covers, 0 to 1 (size, size)."""
    mask = Image.new("L", (size * _SUPERSAMPLING,) * 2)
    draw = ImageDraw.Draw(mask)
    for polygon, solid in outline(thing.shape):
        points = (_turned(polygon, thing) - (left, top)) * _SUPERSAMPLING
        draw.polygon([tuple(point) for point in points.tolist()], fill=255 if solid else 0)
    return np.asarray(mask.reduce(_SUPERSAMPLING), np.float32) / 255


def _paint(canvas: np.ndarray, thing: Thing, tint: np.ndarray) -> None:
    """Blend a thing into the canvas: a rim in a darker (for black: lighter) tint, light from the upper left."""
    size = 2 * math.ceil(thing.radius) + 4
    left, top = math.floor(thing.x) - size // 2, math.floor(thing.y) - size // 2
    cover = _coverage(thing, left, top, size)
    inner = np.minimum(cover, _eroded(cover))
    ramp = np.linspace(-1, 1, size, dtype=np.float32)
    light = 1 - 0.16 * (ramp[:, None] + ramp[None, :])  # (size, size)
    rim = tint * 0.45 if tint.mean() > 60 else tint + 90
    colour = rim + (tint * light[..., None] - rim) * inner[..., None]
    _blend(canvas, left, top, colour, cover)


def _eroded(cover: np.ndarray) -> np.ndarray:
    """Coverage with about one pixel taken off all around."""
    padded = np.pad(cover, 1)
    return np.minimum.reduce([padded[1:-1, :-2], padded[1:-1, 2:], padded[:-2, 1:-1], padded[2:, 1:-1]])


def _shadow(canvas: np.ndarray, thing: Thing) -> None:
    """A soft dark ellipse under a thing that stands on the ground."""
    half_width, half_height = thing.radius * 0.95, thing.radius * 0.3
    size = 2 * math.ceil(thing.radius) + 4
    left, top = math.floor(thing.x) - size // 2, math.floor(thing.y + thing.radius * 0.92) - size // 2
    y, x = np.mgrid[:size, :size].astype(np.float32)
    distance = ((x - size / 2) / half_width) ** 2 + ((y - size / 2) / half_height) ** 2
    _blend(canvas, left, top, np.zeros(3, np.float32), 0.38 * np.clip(1.2 - distance, 0, 1))


def _blend(canvas: np.ndarray, left: int, top: int, colour: np.ndarray, opacity: np.ndarray) -> None:
    """Blend a colour (size, size, 3) or (3,) into the part of a square patch that lies on the canvas."""
    height, width = canvas.shape[:2]
    size = len(opacity)
    rows = slice(max(0, -top), min(size, height - top))
    columns = slice(max(0, -left), min(size, width - left))
    patch = canvas[top + rows.start : top + rows.stop, left + columns.start : left + columns.stop]
    patch += (np.broadcast_to(colour, (size, size, 3))[rows, columns] - patch) * opacity[rows, columns, None]


def _background(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """Sky and ground (H, W, 3) float32 with a little of what belongs there."""
    height, width, horizon = scene.height, scene.width, scene.horizon
    sky_top, sky_low, ground_far, ground_near = (np.asarray(c, np.float32) for c in _GRADIENTS[scene.place])
    sky_share = np.linspace(0, 1, height, dtype=np.float32)[:, None] * height / horizon
    ground_share = (np.arange(height, dtype=np.float32)[:, None] - horizon) / (height - horizon)
    sky = sky_top + (sky_low - sky_top) * np.clip(sky_share, 0, 1)  # (H, 3)
    ground = ground_far + (ground_near - ground_far) * np.clip(ground_share, 0, 1)  # (H, 3)

    x = np.arange(width, dtype=np.float32)
    hills = 3.5 if scene.place in ("meadow", "snow") else 0.0
    edge = horizon + hills * np.sin(x / width * rng.uniform(5, 9) + rng.uniform(0, 6))  # (W,)
    below = np.clip(np.arange(height)[:, None] - edge + 0.5, 0, 1)[..., None].astype(np.float32)  # (H, W, 1)
    canvas = sky[:, None] * (1 - below) + ground[:, None] * below

    if scene.place in ("meadow", "beach"):
        for _ in range(3):
            _cloud(canvas, rng.uniform(0, width), rng.uniform(4, horizon * 0.6), rng.uniform(10, 22))
    if scene.place == "beach":
        canvas[horizon - 12 : horizon] = (64, 142, 180)
        canvas[horizon - 2 : horizon] = (222, 238, 240)
    if scene.place in ("night", "snow"):
        area = horizon if scene.place == "night" else height
        spots = rng.integers((0, 0), (area, width), size=(45, 2))
        canvas[spots[:, 0], spots[:, 1]] += 120
    if scene.place == "room":
        canvas[:horizon] += 5 * np.sign(np.sin(x * 0.45))[:, None]
        canvas[horizon + 5 :: 9] -= 26
        canvas[horizon - 2 : horizon + 1] = (238, 228, 212)
    if scene.place == "street":
        canvas[:horizon:7] += 24
        canvas[horizon : horizon + 4] = (170, 170, 168)
        lane = (horizon + height) // 2
        canvas[lane : lane + 3, (x.astype(int) // 14) % 2 == 0] = (226, 222, 206)
    return canvas + _texture(height, width, rng) * np.where(below > 0.5, 9, 3)


def _cloud(canvas: np.ndarray, x: float, y: float, radius: float) -> None:
    rows, columns = np.mgrid[: canvas.shape[0], : canvas.shape[1]].astype(np.float32)
    distance = ((columns - x) / radius) ** 2 + ((rows - y) / (radius * 0.32)) ** 2
    canvas += (250 - canvas) * (0.75 * np.clip(1 - distance, 0, 1))[..., None]


def _texture(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """Soft mottling plus fine grain, about -1 to 1 (H, W, 1)."""
    coarse = Image.fromarray(rng.standard_normal((15, 20)).astype(np.float32)).resize((width, height), Image.BICUBIC)
    fine = rng.standard_normal((height, width)).astype(np.float32)
    return (0.6 * np.asarray(coarse) + 0.3 * fine)[..., None]
