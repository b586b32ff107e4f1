"""The picture of an ESL head's attention: which words of a caption matched which regions of an image.

Left the image with the region that each word matched best, right the whole word-region similarity as a heat map; for
grid cells also one small map of the image per word, on the scale of the heat map. Drawn with matplotlib.

Letters: R regions or grid cells, W words, H and W side lengths in pixels where an image's shape is meant. Lengths are
in units of which a picture is about 1,400 wide, whatever its width on paper.
"""

from __future__ import annotations

import functools
import warnings
from pathlib import Path

import numpy as np

from lib.files.writing import atomic_write
from lib.inference.pictures.matches import Matches, grid_boxes, heat_colours, match_words, veil_colours
from lib.inference.pictures.words import is_word

MARGIN, GAP = 24, 14
IMAGE_SIDE = 560  # the longer side of the image panel
MAP_WIDTH, MOST_CELL_WIDTH = 660, 20  # of the heat map and of one of its columns
ROW_HEIGHTS = 20, 34
TILE = 132  # longer side of a word's small map
UNITS_PER_INCH = 100
RASTER_FROM = 400  # columns of a heat map that is not drawn cell by cell
INK, QUIET, LINE, PAPER = (28, 30, 34), (120, 124, 130), (214, 217, 222), (255, 255, 255)
FORMS = {".png": {}, ".pdf": {"CreationDate": None}, ".svg": {"Date": None}}  # no dates: equal input, equal file


def draw_picture(
    words: list[str],
    similarity: np.ndarray,
    title: str,
    subtitle: str = "",
    image: np.ndarray | None = None,
    boxes: np.ndarray | None = None,
    grid: bool = False,
    width: float | None = None,
):
    """A matplotlib Figure of word-region similarity (W, R), one row per entry of `words`; `width` in inches.

    With an RGB image (H, W, 3) and boxes (R, 4) in its pixels (`grid`: R cells of a square grid instead), also the
    image with the strongest region of each word.
    """
    from matplotlib.figure import Figure

    matches, regions = match_words(words, similarity), "cells" if grid else "regions"
    if grid and image is not None:
        boxes = grid_boxes(similarity.shape[1], image.shape[1], image.shape[0])
    photo = None if image is None or boxes is None else _Photo(matches, image, boxes)
    heat_map = _HeatMap(matches, regions, photo.height if photo else 0)
    beside = photo.width + 2 * GAP if photo else 0
    body = max(beside + heat_map.width, 480)
    heading = _Heading(title, subtitle, body)
    places = [(heading, 0, 0), (heat_map, beside, heading.height + GAP)]
    height = heading.height + GAP + max(heat_map.height, photo.height if photo else 0)
    if photo:
        places.append((photo, 0, heading.height + GAP))
    if photo and grid:
        places.append((_WordMaps(matches, image, body), 0, height + GAP))
        height += GAP + places[-1][0].height

    size = np.array([body + 2 * MARGIN, height + 2 * MARGIN])
    inches = size / UNITS_PER_INCH if width is None else size * width / size[0]
    figure = Figure(figsize=tuple(inches), facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, size[0]), ylim=(size[1], 0), autoscale_on=False)
    axes.axis("off")
    for panel, x, y in places:
        panel.draw(_Pen(axes, 72 * inches[0] / size[0], MARGIN + x, MARGIN + y))
    return figure


def save_picture(figure, target: Path, dpi: float) -> None:
    """Write a figure as PNG, PDF or SVG, by the name; fonts are embedded as TrueType."""
    import matplotlib

    settings = {"pdf.fonttype": 42, "svg.hashsalt": "picture"}
    with atomic_write(target) as temporary, warnings.catch_warnings(), matplotlib.rc_context(settings):
        warnings.filterwarnings("ignore", "Glyph .* missing from")  # shown as a box; nothing else can be done
        form = target.suffix.lower()
        figure.savefig(temporary, format=form[1:], dpi=dpi, metadata=FORMS[form])


class _Pen:
    """Draws in units from a corner of a panel."""

    def __init__(self, axes, point: float, x: float, y: float):
        self.axes, self.point, self.x, self.y = axes, point, x, y  # point: typographic points of a unit

    def text(self, x: float, y: float, text: str, size: float, colour=INK, align="left", at="baseline", bold=False):
        self.axes.text(
            self.x + x, self.y + y, text, fontsize=size * self.point, color=_rgb(colour), ha=align, va=at,
            fontweight="bold" if bold else "normal", parse_math=False, linespacing=1.25, zorder=4,
        )  # fmt: skip

    def box(self, x1: float, y1: float, x2: float, y2: float, line=None, width: float = 1, fill=None, order: int = 3):
        from matplotlib.patches import Rectangle

        self.axes.add_patch(Rectangle(
            (self.x + x1, self.y + y1), x2 - x1, y2 - y1, linewidth=width * self.point if line else 0, zorder=order,
            edgecolor=_rgb(line) if line else "none", facecolor=_rgb(fill) if fill else "none", joinstyle="miter",
        ))  # fmt: skip

    def image(self, pixels: np.ndarray, x: float, y: float, width: float, height: float) -> None:
        extent = (self.x + x, self.x + x + width, self.y + y + height, self.y + y)
        self.axes.imshow(pixels, extent=extent, aspect="auto", interpolation="bicubic", zorder=1)

    def cells(self, colours: np.ndarray, x: float, y: float, width: float, height: float, line: float = 0) -> None:
        """A mesh of colours (rows, columns, 3 or 4) with white lines between its cells."""
        rows, columns = colours.shape[:2]
        self.axes.pcolormesh(
            self.x + x + np.linspace(0, width, columns + 1), self.y + y + np.linspace(0, height, rows + 1), colours,
            edgecolors="white" if line else "none", linewidth=line * self.point, zorder=2,
            rasterized=columns > RASTER_FROM,
        )  # fmt: skip


class _Heading:
    """The caption, and a quieter line below it."""

    def __init__(self, title: str, subtitle: str, width: float):
        self.lines = [(line, 20, INK, 27, True) for line in _wrap(title, 20, width, bold=True)]
        if subtitle:
            self.lines += [(line, 14, QUIET, 21, False) for line in _wrap(subtitle, 14, width)]
        self.width, self.height = width, sum(line[3] for line in self.lines) + 6

    def draw(self, pen: _Pen) -> None:
        y = 0
        for text, size, colour, height, bold in self.lines:
            y += height
            pen.text(0, y - 6, text, size, colour, bold=bold)


class _Photo:
    """The image with the boxes of regions that are some word's best, each with its words."""

    def __init__(self, matches: Matches, image: np.ndarray, boxes: np.ndarray):
        self.matches, self.image, self.boxes = matches, image, boxes
        self.scale = IMAGE_SIDE / max(image.shape[:2])
        self.height, self.width = (side * self.scale for side in image.shape[:2])

    def draw(self, pen: _Pen) -> None:
        pen.image(self.image, 0, 0, self.width, self.height)
        areas = np.prod(self.boxes[:, 2:] - self.boxes[:, :2], 1)  # (R,)
        regions = sorted(self.matches.labels, key=lambda region: -areas[region])  # large ones first, small ones on top
        limit = np.array([self.width - 2, self.height - 2] * 2)
        corners = {region: np.clip(self.boxes[region] * self.scale, 2, limit).tolist() for region in regions}
        for region in regions:
            x1, y1, x2, y2 = corners[region]
            x2, y2 = max(x1 + 4, x2), max(y1 + 4, y2)
            pen.box(x1, y1, x2, y2, PAPER, 6)  # a rim that sets it off
            pen.box(x1, y1, x2, y2, self.matches.colours[region], 3)
        taken: list[tuple[float, float, float, float]] = []
        for region in reversed(regions):
            words = f"{region}  {' '.join(dict.fromkeys(self.matches.labels[region]))}"
            self.label(pen, words, corners[region], self.matches.colours[region], taken)

    def label(self, pen: _Pen, text: str, box: list[float], colour, taken: list) -> None:
        """Write `text` on its colour at the box, where no label stands yet."""
        lines = _wrap(text, 15, min(220, self.width - 12))
        width, height = max(_length(line, 15) for line in lines) + 10, 19 * len(lines) + 4
        x1, y1, x2, y2 = box
        wanted = [(x1 - 2, y1 - height), (x1 - 2, y2), (x2 - width + 2, y1 - height), (x2 - width + 2, y2), (x1, y1),
                  (x2, y1), (x1 - width, y1)]  # fmt: skip
        wanted += [(x1, y) for y in range(0, int(self.height), 6)]
        wanted += [(x, y) for y in range(0, int(self.height), 12) for x in range(0, int(self.width), 40)]
        inside = [(min(max(x, 0), self.width - width), y) for x, y in wanted if 0 <= y <= self.height - height]
        free = [(x, y) for x, y in inside if not any(_overlap((x, y, x + width, y + height), other) for other in taken)]
        x, y = [*free, *inside, (0, 0)][0]
        taken.append((x, y, x + width, y + height))
        pen.box(x, y, x + width, y + height, PAPER, 1, fill=colour)
        for number, line in enumerate(lines):
            pen.text(x + 5, y + 17 + 19 * number, line, 15, PAPER)


class _HeatMap:
    """Words as rows, regions as columns, the strongest region of each word outlined, and the colour scale."""

    top, bottom = 44, 74

    def __init__(self, matches: Matches, regions: str, wanted_height: float):
        self.matches, self.regions = matches, regions
        rows, columns = matches.similarity.shape
        self.cell = min(MOST_CELL_WIDTH, MAP_WIDTH / columns)
        self.row = float(np.clip((wanted_height - self.top - self.bottom) // rows, *ROW_HEIGHTS))
        self.left = max(96.0, *(_length(word, 15) + 12 for word in matches.words))
        self.map_width, self.map_height = columns * self.cell, rows * self.row
        self.width, self.height = self.left + max(self.map_width, 220) + 2, self.top + self.map_height + self.bottom

    def draw(self, pen: _Pen) -> None:
        matches, left, top = self.matches, self.left, self.top
        count = matches.similarity.shape[1]
        pen.text(left, 12, f"word-{self.regions[:-1]} similarity, {count} {self.regions}", 12, QUIET)
        colours = heat_colours(matches.similarity, matches.largest)
        pen.cells(colours, left, top, self.map_width, self.map_height, line=1 if self.cell >= 6 else 0)
        pen.box(left, top, left + self.map_width, top + self.map_height, LINE)
        for place, (word, region) in enumerate(zip(matches.words, matches.best.tolist(), strict=True)):
            x, y, real = left + region * self.cell, top + place * self.row, is_word(word)
            colour = matches.colours[region] if real else QUIET
            pen.text(left - 8, y + self.row / 2, word, 15, colour, "right", "center_baseline")
            pen.box(x, y, x + self.cell, y + self.row, INK if real else QUIET, 2, order=4)
        end = 0.0
        for region in sorted(matches.labels):
            middle, half = left + (region + 0.5) * self.cell, _length(str(region), 12) / 2
            if middle - half > end:  # where columns are narrow, only numbers that have room
                pen.text(middle, top - 5, str(region), 12, matches.colours[region], "center")
                end = middle + half + 2
        below = top + self.map_height
        pen.text(left + self.map_width / 2, below + 14, f"{self.regions}, from 0", 12, QUIET, "center")
        self.scale(pen, left, below + 26)

    def scale(self, pen: _Pen, x: float, y: float) -> None:
        """The colours from the largest negative to the largest positive value."""
        pen.cells(heat_colours(np.linspace(-1, 1, 101)[None], 1.0), x, y, 200, 10)
        pen.box(x, y, x + 200, y + 10, LINE)
        for place, value, align in ((0, -1, "left"), (100, 0, "center"), (200, 1, "right")):
            pen.text(x + place, y + 24, f"{value * self.matches.largest:+.3g}" if value else "0", 12, QUIET, align)


class _WordMaps:
    """The image once per word, each under the colours of that word's row of the heat map."""

    def __init__(self, matches: Matches, image: np.ndarray, width: float):
        self.matches, self.image, self.width = matches, image, width
        self.places = [place for place, word in enumerate(matches.words) if is_word(word)]
        scale = TILE / max(image.shape[:2])
        self.tile_height, self.tile_width = (side * scale for side in image.shape[:2])
        self.columns = max(1, int((width + GAP) // (self.tile_width + GAP)))
        self.height = 22 + -(-len(self.places) // self.columns) * (self.tile_height + 32)

    def draw(self, pen: _Pen) -> None:
        pen.text(0, 12, "where each word matches, in the colours of the scale above", 12, QUIET)
        step = max(1, max(self.image.shape[:2]) // (4 * TILE))  # pixels that a small map can't show
        grey = self.image[::step, ::step].mean(2, keepdims=True).repeat(3, 2).astype(np.uint8)  # (H, W, 3)
        side = round(self.matches.similarity.shape[1] ** 0.5)
        for number, place in enumerate(self.places):
            row, column = divmod(number, self.columns)
            x, y = column * (self.tile_width + GAP), 22 + row * (self.tile_height + 32)
            pen.text(x, y + 18, self.matches.words[place], 15)
            pen.image(grey, x, y + 24, self.tile_width, self.tile_height)
            veil = veil_colours(self.matches.similarity[place].reshape(side, side), self.matches.largest)
            pen.cells(veil, x, y + 24, self.tile_width, self.tile_height)


def _rgb(colour: tuple[int, int, int]) -> tuple[float, ...]:
    return tuple(value / 255 for value in colour)


def _wrap(text: str, size: float, width: float, bold: bool = False) -> list[str]:
    lines = [""]
    for word in text.split(" "):
        longer = f"{lines[-1]} {word}" if lines[-1] else word
        if lines[-1] and _length(longer, size, bold) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def _overlap(one: tuple, other: tuple) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


@functools.cache
def _length(text: str, size: float, bold: bool = False) -> float:
    """Width of a text of this size, in the units of the size."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import TextPath

    if not text.strip():
        return 0.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        font = FontProperties(weight="bold" if bold else "normal")
        path = TextPath((0, 0), text.replace("$", "S"), size=size, prop=font)
    return float(path.get_extents().x1)
