"""Scenes of the sample data set: coloured shapes in a place. What is there, not how it looks or reads."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

SHAPES = ("ball", "box", "triangle", "star", "heart", "ring", "cross", "diamond", "moon", "flower")
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "white", "black")
SIZES = ("small", "medium", "large")
PLACES = ("meadow", "beach", "snow", "night", "room", "street")

_RADIUS = {"small": (9.0, 11.0), "medium": (14.5, 17.5), "large": (22.0, 26.0)}  # pixels
_WIDTHS, _HEIGHTS = (152, 168), (112, 128)  # pixels, smallest and largest


@dataclass(frozen=True)
class Thing:
    """One drawn shape; x, y (centre) and radius in pixels, tilt in radians."""

    shape: str
    colour: str
    size: str
    x: float
    y: float
    radius: float
    tilt: float


@dataclass(frozen=True)
class Group:
    """Things of one shape, colour and size, which a caption names together; x, y: mean centre in pixels."""

    shape: str
    colour: str
    size: str
    x: float
    y: float
    count: int


@dataclass(frozen=True)
class Scene:
    """A place with two to four things; width, height and horizon (the y where the ground starts) in pixels."""

    place: str
    width: int
    height: int
    horizon: int
    things: tuple[Thing, ...]

    @property
    def groups(self) -> list[Group]:
        """The things, with equal ones put together; a scene has at least two groups."""
        kinds: dict[tuple, list[Thing]] = {}
        for thing in self.things:
            kinds.setdefault((thing.shape, thing.colour, thing.size), []).append(thing)
        return [
            Group(
                *kind, sum(t.x for t in members) / len(members), sum(t.y for t in members) / len(members), len(members)
            )
            for kind, members in kinds.items()
        ]


def random_scene(rng: np.random.Generator) -> Scene:
    """A scene in which no two groups share shape and colour, and things overlap only when there is no room left."""
    width = int(rng.integers(_WIDTHS[0], _WIDTHS[1] + 1))
    height = int(rng.integers(_HEIGHTS[0], _HEIGHTS[1] + 1))
    things: list[Thing] = []
    for shape, colour, size in _kinds(rng):
        radius = float(rng.uniform(*_RADIUS[size]))
        x, y = _free_spot(rng, things, radius, width, height)
        things.append(Thing(shape, colour, size, x, y, radius, float(rng.uniform(-0.25, 0.25))))
    horizon = round(height * rng.uniform(0.38, 0.55))
    return Scene(PLACES[rng.integers(len(PLACES))], width, height, horizon, tuple(things))


def _kinds(rng: np.random.Generator) -> list[tuple[str, str, str]]:
    """Shape, colour and size of every thing; of three or more, the last is sometimes a twin of the first."""
    count = int(rng.choice((2, 3, 4), p=(0.3, 0.4, 0.3)))
    twin = count > 2 and rng.random() < 0.35
    kinds = [
        (SHAPES[number // len(COLOURS)], COLOURS[number % len(COLOURS)], SIZES[rng.integers(len(SIZES))])
        for number in rng.choice(len(SHAPES) * len(COLOURS), size=count - twin, replace=False)
    ]
    return kinds + kinds[:1] if twin else kinds


def _free_spot(
    rng: np.random.Generator, things: list[Thing], radius: float, width: int, height: int
) -> tuple[float, float]:
    """A centre inside the picture that keeps clear of the other things, or the clearest of forty."""
    best, best_gap = (0.0, 0.0), -math.inf
    for _ in range(40):
        x = float(rng.uniform(radius + 2, width - radius - 2))
        y = float(rng.uniform(radius + 2, height - radius - 2))
        gap = min((math.hypot(x - t.x, y - t.y) - radius - t.radius for t in things), default=math.inf)
        if gap > best_gap:
            best, best_gap = (x, y), gap
        if gap > 3:
            break
    return best
