"""Scenes of the sample data set, coloured shapes in a place, and captions of them from a small English grammar."""

from __future__ import annotations

import math
from collections import Counter, namedtuple

import numpy as np

CAPTIONS_PER_IMAGE = 5

# What there is and the words for it: the common word first, then synonyms.
SHAPES = {
    "ball": ("ball", "circle", "disc"), "box": ("box", "square", "block"), "triangle": ("triangle", "pyramid"),
    "star": ("star",), "heart": ("heart",), "ring": ("ring", "hoop"), "cross": ("cross", "plus"),
    "diamond": ("diamond", "kite"), "moon": ("moon", "crescent"), "flower": ("flower", "blossom"),
}  # fmt: skip
COLOURS = {
    "red": ("red", "crimson"), "orange": ("orange",), "yellow": ("yellow", "golden"), "green": ("green", "emerald"),
    "blue": ("blue",), "purple": ("purple", "violet"), "pink": ("pink", "rosy"), "white": ("white",),
    "black": ("black", "dark"),
}  # fmt: skip
PLACES = {
    "meadow": ("on the grass", "in a meadow", "on a grassy field"),
    "beach": ("on the beach", "on the sand", "by the sea"),
    "snow": ("in the snow", "on a snowy day", "in winter"),
    "night": ("at night", "under the stars", "in the dark night"),
    "room": ("in a room", "on the wooden floor", "inside a house"),
    "street": ("on the street", "on the road", "by a brick wall"),
}
_WORDS = {
    **SHAPES, **COLOURS, **PLACES, "small": ("small", "little", "tiny"), "large": ("big", "large", "huge"),
    "left": ("to the left of", "left of"), "right": ("to the right of", "right of"),
    "above": ("above", "over"), "below": ("below", "under"), "near": ("next to", "beside", "near"),
}  # fmt: skip
_NUMBERS = {1: "a", 2: "two", 3: "three", 4: "four"}
_WHERE = (  # the thirds of the picture, row by row
    ("in the upper left corner", "at the top", "in the upper right corner"),
    ("on the left", "in the middle", "on the right"),
    ("in the lower left corner", "at the bottom", "in the lower right corner"),
)
# {a}, {b}, {c}: groups; {is}, {sit}, {it}: is or are, sits or sit, it or them, as a is one thing or more; {a_at}: where
# in the picture; {rel}: how a lies to b; {rel_back}: how b lies to a; {all}: the number of things.
_TEMPLATES = (
    "{a} {is} {rel} {b} .", "{a} {rel} {b} {place} .", "{a} and {b} {place} .", "there {is} {a} and {b} {place} .",
    "{a} {sit} {rel} {b} .", "{a} {a_at} and {b} {b_at} .", "{place} , {a} {is} {rel} {b} .",
    "{place} there {is} {a} with {b} .", "we see {a} , and {b} {rel_back} {it} .", "a picture of {a} {rel} {b} .",
    "{all} shapes {place} , with {a} and {b} .", "someone put {a} {rel} {b} {place} .",
)  # fmt: skip
_TEMPLATES_OF_THREE = (
    "{a} , {b} and {c} .", "{a} , {b} and {c} {place} .", "{a} {is} {rel} {b} and {c} .",
    "{a} with {b} , and {c} {c_at} .",
)  # fmt: skip
_LOOKS = [(shape, colour) for shape in SHAPES for colour in COLOURS]
_RADII = (("small", 9.0, 11.0), ("medium", 14.5, 17.5), ("large", 22.0, 26.0))  # smallest and largest, in pixels

Thing = namedtuple("Thing", "shape colour size x y radius tilt")  # centre x, y and radius in pixels, tilt in radians
Scene = namedtuple("Scene", "place width height horizon things")  # pixels; the horizon is the y where the ground starts


def random_scene(rng: np.random.Generator) -> Scene:
    """Two to four things, at least two of them different in shape or colour, that overlap only when room is short."""
    width, height = rng.integers((152, 112), (168, 128), endpoint=True).tolist()
    count = rng.choice((2, 3, 4), p=(0.3, 0.4, 0.3))
    twin = count > 2 and rng.random() < 0.35  # the last thing is like the first
    looks = rng.choice(len(_LOOKS), count - twin, replace=False)
    kinds = [(*_LOOKS[look], *_RADII[rng.integers(len(_RADII))]) for look in looks]
    things: list[Thing] = []
    for shape, colour, size, smallest, largest in kinds + kinds[: int(twin)]:
        radius = rng.uniform(smallest, largest)
        x, y = _free_spot(rng, things, radius, width, height)
        things.append(Thing(shape, colour, size, x, y, radius, rng.uniform(-0.25, 0.25)))
    horizon = round(height * rng.uniform(0.38, 0.55))
    return Scene(list(PLACES)[rng.integers(len(PLACES))], width, height, horizon, tuple(things))


def _free_spot(rng: np.random.Generator, things: list[Thing], radius: float, width: int, height: int) -> list[float]:
    """A centre inside the picture that keeps clear of the other things, or the clearest of forty."""
    clearest = (-math.inf, [])
    for _ in range(40):
        spot = rng.uniform(radius + 2, (width - radius - 2, height - radius - 2)).tolist()
        gap = min((math.dist(spot, (t.x, t.y)) - radius - t.radius for t in things), default=math.inf)
        clearest = max(clearest, (gap, spot))
        if gap > 3:
            break
    return clearest[1]


def all_mentions() -> list[tuple[str, ...]]:
    """Everything that a caption can mention, in a fixed order."""
    names = [("shape", shape) for shape in SHAPES] + [("colour", colour) for colour in COLOURS]
    return [("thing", *look) for look in _LOOKS] + names + [("place", place) for place in PLACES]


def mentions_of(scene: Scene) -> Counter:
    """What a caption that leaves nothing out would mention."""
    mentions = Counter([("place", scene.place)])
    for shape, colour, *_ in scene.things:
        mentions.update([("thing", shape, colour), ("colour", colour), ("shape", shape)])
    return mentions


def write_captions(scene: Scene, rng: np.random.Generator) -> dict[str, Counter]:
    """Five different captions, tokens separated by spaces, and how often each mentions what (as in `all_mentions`)."""
    alike: dict[tuple, list[Thing]] = {}  # by shape, colour and size; a caption names such things together
    for thing in scene.things:
        alike.setdefault(thing[:3], []).append(thing)
    groups = list(alike.values())
    templates = _TEMPLATES + _TEMPLATES_OF_THREE * 2 if len(groups) > 2 else _TEMPLATES
    captions: dict[str, Counter] = {}
    while len(captions) < CAPTIONS_PER_IMAGE:
        template = templates[rng.integers(len(templates))]
        text, mentions = _fill(template, scene, [groups[i] for i in rng.permutation(len(groups))], rng)
        captions.setdefault(text, mentions)
    return captions


def vocabulary() -> list[str]:
    """The lower-case words of the grammar, sorted; a word that is another one with s or es is left out."""
    texts = [*_TEMPLATES, *_TEMPLATES_OF_THREE, *_NUMBERS.values(), "an is are sit it them shape"]
    texts += [text for row in (*_WHERE, *_WORDS.values()) for text in row]
    words = {word for text in texts for word in text.split() if word.isalpha()}
    return sorted(words - {word + ending for word in words for ending in ("s", "es")})


def _fill(template: str, scene: Scene, groups: list[list[Thing]], rng: np.random.Generator) -> tuple[str, Counter]:
    """A template in words, about the first two or three of the groups, and what it mentions."""
    mentions: Counter = Counter()
    one = len(groups[0]) == 1
    words = {"is": "is" if one else "are", "sit": "sits" if one else "sit", "it": "it" if one else "them"}
    words["all"] = _NUMBERS[len(scene.things)]
    centres = [np.mean([(thing.x, thing.y) for thing in group], axis=0) for group in groups]
    for letter, group, (x, y) in zip("abc" if "{c}" in template else "ab", groups, centres, strict=False):
        words[letter] = _phrase(group, mentions, rng)
        words[f"{letter}_at"] = _WHERE[int(3 * y / scene.height)][int(3 * x / scene.width)]
    words["rel"] = _relation(*(centres[1] - centres[0]), rng)
    words["rel_back"] = _relation(*(centres[0] - centres[1]), rng)
    if "{place}" in template:
        words["place"] = _choose(scene.place, rng)
        mentions["place", scene.place] += 1
    text = template.format(**words)
    return text[0].upper() + text[1:], mentions


def _phrase(group: list[Thing], mentions: Counter, rng: np.random.Generator) -> str:
    """A noun phrase such as "two tiny red balls"; what it says is added to `mentions`."""
    (shape, colour, size, *_), count = group[0], len(group)
    words = [_choose(shape, rng)]
    mentions["shape", shape] += count
    if rng.random() < 0.92:
        words.insert(0, _choose(colour, rng))
        mentions["colour", colour] += count
        mentions["thing", shape, colour] += count
    if size in _WORDS and rng.random() < 0.4:
        words.insert(0, _choose(size, rng))
    if count > 1:
        words[-1] += "es" if words[-1].endswith(("x", "s")) else "s"
    number = "an" if count == 1 and words[0][0] in "aeiou" else _NUMBERS[count]
    return " ".join([number, *words])


def _relation(dx: float, dy: float, rng: np.random.Generator) -> str:
    """How something lies to what is dx pixels to its right and dy pixels below, in words."""
    if math.hypot(dx, dy) < 45 and rng.random() < 0.5:
        return _choose("near", rng)
    if abs(dx) > abs(dy):
        return _choose("left" if dx > 0 else "right", rng)
    return _choose("above" if dy > 0 else "below", rng)


def _choose(name: str, rng: np.random.Generator) -> str:
    """The common word for `name` in seven cases of ten, else any of its row."""
    options = _WORDS[name]
    return options[0] if rng.random() < 0.7 else options[rng.integers(len(options))]
