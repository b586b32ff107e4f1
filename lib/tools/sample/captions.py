"""Captions of the sample data set: English sentences about a scene, from a small grammar with a closed vocabulary."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

import numpy as np

from lib.tools.sample.scenes import COLOURS, PLACES, SHAPES, Group, Scene

CAPTIONS_PER_IMAGE = 5

# The first entry of a row is the common word, the others are synonyms.
_NOUNS = {
    "ball": ("ball", "circle", "disc"),
    "box": ("box", "square", "block"),
    "triangle": ("triangle", "pyramid"),
    "star": ("star",),
    "heart": ("heart",),
    "ring": ("ring", "hoop"),
    "cross": ("cross", "plus"),
    "diamond": ("diamond", "kite"),
    "moon": ("moon", "crescent"),
    "flower": ("flower", "blossom"),
}
_ADJECTIVES = {
    "red": ("red", "crimson"),
    "orange": ("orange",),
    "yellow": ("yellow", "golden"),
    "green": ("green", "emerald"),
    "blue": ("blue",),
    "purple": ("purple", "violet"),
    "pink": ("pink", "rosy"),
    "white": ("white",),
    "black": ("black", "dark"),
    "small": ("small", "little", "tiny"),
    "large": ("big", "large", "huge"),
}
_PLACES = {
    "meadow": ("on the grass", "in a meadow", "on a grassy field"),
    "beach": ("on the beach", "on the sand", "by the sea"),
    "snow": ("in the snow", "on a snowy day", "in winter"),
    "night": ("at night", "under the stars", "in the dark night"),
    "room": ("in a room", "on the wooden floor", "inside a house"),
    "street": ("on the street", "on the road", "by a brick wall"),
}
_RELATIONS = {
    "left": ("to the left of", "left of"),
    "right": ("to the right of", "right of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
    "near": ("next to", "beside", "near"),
}
_WHERE = {  # (row, column) of the picture's thirds
    (0, 0): "in the upper left corner",
    (0, 1): "at the top",
    (0, 2): "in the upper right corner",
    (1, 0): "on the left",
    (1, 1): "in the middle",
    (1, 2): "on the right",
    (2, 0): "in the lower left corner",
    (2, 1): "at the bottom",
    (2, 2): "in the lower right corner",
}
_NUMBERS = {1: "a", 2: "two", 3: "three", 4: "four"}
# {a}, {b}, {c}: groups; {a_is}, {a_sits}, {a_it}: is or are, sits or sit, it or them; {a_at}: where in the picture;
# {rel}: how a lies to b; {rel_back}: how b lies to a; {all}: the number of things.
_TEMPLATES = (
    "{a} {a_is} {rel} {b} .",
    "{a} {rel} {b} {place} .",
    "{a} and {b} {place} .",
    "there {a_is} {a} and {b} {place} .",
    "{a} {a_sits} {rel} {b} .",
    "{a} {a_at} and {b} {b_at} .",
    "{place} , {a} {a_is} {rel} {b} .",
    "{place} there {a_is} {a} with {b} .",
    "we see {a} , and {b} {rel_back} {a_it} .",
    "a picture of {a} {rel} {b} .",
    "{all} shapes {place} , with {a} and {b} .",
    "someone put {a} {rel} {b} {place} .",
)
_TEMPLATES_OF_THREE = (
    "{a} , {b} and {c} .",
    "{a} , {b} and {c} {place} .",
    "{a} {a_is} {rel} {b} and {c} .",
    "{a} with {b} , and {c} {c_at} .",
)


@dataclass(frozen=True)
class Caption:
    """A sentence, its tokens separated by spaces, and how often it mentions what (keys as in `all_mentions`)."""

    text: str
    mentions: Counter


def write_captions(scene: Scene, rng: np.random.Generator) -> list[Caption]:
    """Five different captions of a scene, each from another template and about its own choice of groups."""
    groups = scene.groups
    templates = list(_TEMPLATES)
    if len(groups) > 2:
        templates += _TEMPLATES_OF_THREE * 2
    captions: dict[str, Caption] = {}
    while len(captions) < CAPTIONS_PER_IMAGE:
        template = templates[rng.integers(len(templates))]
        caption = _fill(template, scene, [groups[i] for i in rng.permutation(len(groups))], rng)
        captions.setdefault(caption.text, caption)
    return list(captions.values())


def all_mentions() -> list[tuple[str, ...]]:
    """Everything that a caption can mention, in a fixed order."""
    things = [("thing", colour, shape) for colour in COLOURS for shape in SHAPES]
    parts = [("colour", colour) for colour in COLOURS] + [("shape", shape) for shape in SHAPES]
    return things + parts + [("place", place) for place in PLACES]


def mentions_of(scene: Scene) -> Counter:
    """What a caption that leaves nothing out would mention."""
    mentions = Counter({("place", scene.place): 1})
    for thing in scene.things:
        mentions.update([("thing", thing.colour, thing.shape), ("colour", thing.colour), ("shape", thing.shape)])
    return mentions


def vocabulary() -> list[str]:
    """The lower-case words of the grammar, sorted. Plurals are not listed: they are the noun with s or es."""
    texts = [
        *_TEMPLATES,
        *_TEMPLATES_OF_THREE,
        *_NUMBERS.values(),
        *_WHERE.values(),
        "an is are sits sit it them shape",
    ]
    for table in (_NOUNS, _ADJECTIVES, _PLACES, _RELATIONS):
        texts += [text for row in table.values() for text in row]
    return sorted({word for text in texts for word in text.split() if word.isalpha()} - {"shapes"})


def _fill(template: str, scene: Scene, groups: list[Group], rng: np.random.Generator) -> Caption:
    """A template in words, about the first two or three of the groups."""
    mentions: Counter = Counter()
    words = {"all": _NUMBERS[len(scene.things)]}
    for letter, group in zip("abc", groups, strict=False):
        if f"{{{letter}}}" not in template:
            continue
        words[letter] = _phrase(group, mentions, rng)
        words[f"{letter}_is"], words[f"{letter}_sits"] = ("is", "sits") if group.count == 1 else ("are", "sit")
        words[f"{letter}_it"] = "it" if group.count == 1 else "them"
        words[f"{letter}_at"] = _WHERE[min(2, int(3 * group.y / scene.height)), min(2, int(3 * group.x / scene.width))]
    words["rel"], words["rel_back"] = _relation(*groups[:2], rng), _relation(groups[1], groups[0], rng)
    if "{place}" in template:
        words["place"] = _choose(_PLACES[scene.place], rng)
        mentions["place", scene.place] += 1
    text = template.format(**words)
    return Caption(text[0].upper() + text[1:], mentions)


def _phrase(group: Group, mentions: Counter, rng: np.random.Generator) -> str:
    """A noun phrase such as "two tiny red balls"; what it says is added to `mentions`."""
    words = [_choose(_NOUNS[group.shape], rng)]
    mentions["shape", group.shape] += group.count
    if rng.random() < 0.92:
        words.insert(0, _choose(_ADJECTIVES[group.colour], rng))
        mentions["colour", group.colour] += group.count
        mentions["thing", group.colour, group.shape] += group.count
    if group.size in _ADJECTIVES and rng.random() < 0.4:
        words.insert(0, _choose(_ADJECTIVES[group.size], rng))
    if group.count > 1:
        words[-1] += "es" if words[-1].endswith(("x", "s")) else "s"
    number = "an" if group.count == 1 and words[0][0] in "aeiou" else _NUMBERS[group.count]
    return " ".join([number, *words])


def _relation(a: Group, b: Group, rng: np.random.Generator) -> str:
    """How a lies to b, in words."""
    dx, dy = b.x - a.x, b.y - a.y
    if math.hypot(dx, dy) < 45 and rng.random() < 0.5:
        return _choose(_RELATIONS["near"], rng)
    if abs(dx) > abs(dy):
        return _choose(_RELATIONS["left" if dx > 0 else "right"], rng)
    return _choose(_RELATIONS["above" if dy > 0 else "below"], rng)


def _choose(options: tuple[str, ...], rng: np.random.Generator) -> str:
    """The common word in seven cases of ten, else any of the row."""
    return options[0] if rng.random() < 0.7 else options[rng.integers(len(options))]
