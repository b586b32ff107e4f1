"""The picture of an ESL head's attention: which words of a caption matched which regions of an image.

Left the image with the region that each word matched best, right the whole word-region similarity as a heat map; for
grid cells also one small map of the image per word. Drawn with Pillow alone.

Letters: R regions or grid cells, W words, H and W side lengths in pixels where an image's shape is meant.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

MARGIN, GAP = 24, 14
IMAGE_SIDE = 560  # pixels of the longer side of the image panel
MAP_WIDTH, MOST_CELL_WIDTH = 660, 20  # of the heat map and of one of its columns
ROW_HEIGHTS = 20, 34
TILE = 132  # side of a word's small map
INK, QUIET, LINE, PAPER = (28, 30, 34), (120, 124, 130), (214, 217, 222), (255, 255, 255)
NEGATIVE, POSITIVE = np.array([33, 102, 172.0]), np.array([178, 24, 43.0])
PALETTE = (
    (214, 39, 40), (31, 119, 180), (44, 140, 44), (148, 103, 189), (204, 102, 0),
    (23, 140, 155), (200, 60, 140), (120, 80, 60), (90, 90, 200), (110, 120, 0),
)  # fmt: skip
FRAME = ("[CLS]", "[SEP]", "<start>", "<end>")


class Matches(NamedTuple):
    """Word-region similarity (W, R) of a caption's words and, for each region that is some word's best, those words."""

    words: list[str]
    similarity: np.ndarray
    best: np.ndarray  # (W,) each word's strongest region
    labels: dict[int, list[str]]  # region -> words, in the order of the caption; frame and punctuation left out
    colours: dict[int, tuple[int, int, int]]


def match_words(words: list[str], similarity: np.ndarray) -> Matches:
    """Find the strongest region of each word."""
    best = similarity.argmax(1)
    labels: dict[int, list[str]] = {}
    for word, region in zip(words, best.tolist(), strict=True):
        if word not in FRAME and any(letter.isalnum() for letter in word):
            labels.setdefault(region, []).append(word)
    colours = {region: PALETTE[place % len(PALETTE)] for place, region in enumerate(labels)}
    return Matches(words, similarity, best, labels, colours)


def grid_boxes(cells: int, width: int, height: int) -> np.ndarray:
    """Boxes (R, 4), x1 y1 x2 y2 in pixels, of a square grid of R cells over an image, row by row; ValueError for an R
    that is no square."""
    side = round(cells**0.5)
    if side * side != cells:
        raise ValueError(f"{cells} cells are no square grid")
    rows, columns = np.divmod(np.arange(cells), side)
    corners = np.stack([columns, rows, columns + 1, rows + 1], 1) / side  # (R, 4)
    return corners * np.array([width, height, width, height])


def draw_picture(
    words: list[str],
    similarity: np.ndarray,
    title: str,
    subtitle: str = "",
    image: np.ndarray | None = None,
    boxes: np.ndarray | None = None,
    grid: bool = False,
) -> Image.Image:
    """Draw word-region similarity (W, R), one row per entry of `words`.

    With an RGB image (H, W, 3) and boxes (R, 4) in its pixels (`grid`: R cells of a square grid instead), also the
    image with the strongest region of each word.
    """
    matches = match_words(words, similarity)
    if grid and image is not None:
        boxes = grid_boxes(similarity.shape[1], image.shape[1], image.shape[0])
    left = None if image is None or boxes is None else _image_panel(matches, image, boxes)
    right = _heat_map(matches, left.height if left else 0)
    body = right if left is None else _beside(left, right)
    if grid and image is not None:
        body = _below(body, _word_maps(matches, image, body.width))
    return _framed(_below(_heading(title, subtitle, max(body.width, 480)), body))


def heat_colours(values: np.ndarray, largest: float) -> np.ndarray:
    """Blue for negative, white for 0, red for positive values, full from `largest` on: (...) -> (..., 3) uint8."""
    share = np.clip(values / largest if largest > 0 else np.zeros_like(values), -1, 1)[..., None]  # (..., 1)
    full = np.where(share < 0, NEGATIVE, POSITIVE)
    return np.rint(255 + (full - 255) * np.abs(share) ** 0.8).astype(np.uint8)


def _image_panel(matches: Matches, image: np.ndarray, boxes: np.ndarray) -> Image.Image:
    height, width = image.shape[:2]
    scale = IMAGE_SIDE / max(height, width)
    panel = _scaled(image, scale)
    draw = ImageDraw.Draw(panel)
    regions = sorted(matches.labels, key=lambda region: -_area(boxes[region]))  # large ones first, small ones on top
    limit = np.array([panel.width - 2, panel.height - 2] * 2)
    corners = {region: np.clip(boxes[region] * scale, 1, limit) for region in regions}
    for region in regions:
        x1, y1, x2, y2 = corners[region].tolist()
        x2, y2 = max(x1 + 4, x2), max(y1 + 4, y2)
        draw.rectangle((x1 - 1, y1 - 1, x2 + 1, y2 + 1), outline=PAPER, width=5)  # a rim that sets it off
        draw.rectangle((x1, y1, x2, y2), outline=matches.colours[region], width=3)
    taken: list[tuple[float, float, float, float]] = []
    for region in reversed(regions):
        _label(draw, f"{region}  {' '.join(dict.fromkeys(matches.labels[region]))}", corners[region], panel.size,
               matches.colours[region], taken)  # fmt: skip
    return panel


def _label(draw, text: str, box: np.ndarray, size: tuple[int, int], colour, taken: list) -> None:
    """Write `text` on its colour at the box, where no label stands yet."""
    font = _font(15)
    text = "\n".join(_wrap(text, font, min(220, size[0] - 12)))
    left, top, right, bottom = draw.multiline_textbbox((0, 0), text, font=font, spacing=3)
    width, height = right - left + 10, bottom - top + 8
    x1, y1, x2, y2 = box.tolist()
    wanted = [(x1 - 2, y1 - height), (x1 - 2, y2), (x2 - width + 2, y1 - height), (x2 - width + 2, y2), (x1, y1),
              (x2, y1), (x1 - width, y1)]  # fmt: skip
    wanted += [(x1, y) for y in range(0, size[1], 6)]
    wanted += [(x, y) for y in range(0, size[1], 12) for x in range(0, size[0], 40)]
    places = [(min(max(x, 0), size[0] - width), y) for x, y in wanted if 0 <= y <= size[1] - height] or [(0, 0)]
    free = [(x, y) for x, y in places if not any(_overlap((x, y, x + width, y + height), other) for other in taken)]
    x, y = (free or places)[0]
    taken.append((x, y, x + width, y + height))
    draw.rectangle((x, y, x + width, y + height), fill=colour, outline=PAPER)
    draw.multiline_text((x + 5 - left, y + 4 - top), text, font=font, fill=PAPER, spacing=3)


def _heat_map(matches: Matches, wanted_height: int) -> Image.Image:
    """Words as rows, regions as columns, the strongest region of each word outlined, and the colour scale."""
    words, similarity = matches.words, matches.similarity
    cell = max(1, min(MOST_CELL_WIDTH, MAP_WIDTH // similarity.shape[1]))
    top, bottom = 44, 56
    row = int(np.clip((wanted_height - top - bottom) // len(words), *ROW_HEIGHTS))
    font, small = _font(15), _font(12)
    left = max(96, *(round(font.getlength(word)) + 12 for word in words))
    width, height = similarity.shape[1] * cell, len(words) * row
    panel = Image.new("RGB", (left + max(width, 220) + 2, top + height + bottom), PAPER)
    draw = ImageDraw.Draw(panel)
    largest = _largest(matches)
    colours = Image.fromarray(heat_colours(similarity, largest))
    panel.paste(colours.resize((width, height), Image.Resampling.NEAREST), (left, top))
    draw.text((left, 2), f"word-region similarity, {similarity.shape[1]} regions", font=small, fill=QUIET)
    if cell >= 6:
        for x in range(left, left + width + 1, cell):
            draw.line((x, top, x, top + height), fill=PAPER)
    for place, word in enumerate(words):
        y = top + place * row
        draw.line((left, y, left + width, y), fill=PAPER)
        colour = matches.colours.get(int(matches.best[place]), INK) if _is_labelled(matches, place) else QUIET
        draw.text((left - 8, y + row // 2), word, font=font, fill=colour, anchor="rm")
        x = left + int(matches.best[place]) * cell
        draw.rectangle((x - 1, y, x + cell, y + row), outline=INK if colour != QUIET else QUIET, width=2)
    draw.rectangle((left - 1, top - 1, left + width, top + height), outline=LINE)
    end = 0.0
    for region in sorted(matches.labels):
        middle, half = left + (region + 0.5) * cell, small.getlength(str(region)) / 2
        if middle - half > end:  # where columns are narrow, only numbers that have room
            draw.text((middle, top - 5), str(region), font=small, fill=matches.colours[region], anchor="mb")
            end = middle + half + 2
    _scale(panel, draw, left, top + height + 16, largest)
    return panel


def _scale(panel: Image.Image, draw, x: int, y: int, largest: float) -> None:
    bar = heat_colours(np.linspace(-1, 1, 200)[None].repeat(10, 0), 1.0)  # (10, 200, 3)
    panel.paste(Image.fromarray(bar), (x, y))
    draw.rectangle((x - 1, y - 1, x + 200, y + 10), outline=LINE)
    for place, value in ((0, -largest), (100, 0.0), (200, largest)):
        anchor = {0: "lt", 100: "mt", 200: "rt"}[place]
        draw.text((x + place, y + 15), f"{value:+.3g}" if value else "0", font=_font(12), fill=QUIET, anchor=anchor)


def _word_maps(matches: Matches, image: np.ndarray, width: int) -> Image.Image:
    """One small image per word, coloured from the cell that the word matches least to the one that it matches most."""
    shown = [place for place in range(len(matches.words)) if _is_labelled(matches, place)]
    scale = TILE / max(image.shape[:2])
    grey = np.asarray(_scaled(image, scale).convert("L").convert("RGB"), np.float64)  # (H, W, 3)
    side = round(matches.similarity.shape[1] ** 0.5)
    step, line, top = grey.shape[1] + GAP, grey.shape[0] + 32, 22
    columns = max(1, (width + GAP) // step)
    panel = Image.new("RGB", (width, top + -(-len(shown) // columns) * line), PAPER)
    draw = ImageDraw.Draw(panel)
    legend = "where each word matches: its weakest cell is white, its strongest red"
    draw.text((0, 2), legend, font=_font(12), fill=QUIET)
    for number, place in enumerate(shown):
        x, y = number % columns * step, top + number // columns * line
        row = matches.similarity[place] - matches.similarity[place].min()  # (R,)
        colours = heat_colours(row.reshape(side, side), float(row.max()))
        cells = Image.fromarray(colours).resize(grey.shape[1::-1], Image.Resampling.NEAREST)
        mixed = 0.45 * (0.35 * grey + 0.65 * 255) + 0.55 * np.asarray(cells)
        draw.text((x, y + 18), matches.words[place], font=_font(15), fill=INK, anchor="ls")
        panel.paste(Image.fromarray(np.rint(mixed).astype(np.uint8)), (x, y + 24))
    return panel


def _largest(matches: Matches) -> float:
    """The value of full colour: the largest one among the real words, so that [CLS] and [SEP] don't pale them."""
    real = [place for place, word in enumerate(matches.words) if word not in FRAME]
    return float(np.abs(matches.similarity[real] if real else matches.similarity).max())


def _is_labelled(matches: Matches, place: int) -> bool:
    return matches.words[place] in matches.labels.get(int(matches.best[place]), ())


def _heading(title: str, subtitle: str, width: int) -> Image.Image:
    large, small = _font(20, bold=True), _font(14)
    lines = [(line, large, INK, 27) for line in _wrap(title, large, width)]
    lines += [(line, small, QUIET, 21) for line in _wrap(subtitle, small, width)]
    panel = Image.new("RGB", (width, sum(height for *_, height in lines) + 6), PAPER)
    draw, y = ImageDraw.Draw(panel), 0
    for text, font, colour, height in lines:
        draw.text((0, y + height - 6), text, font=font, fill=colour, anchor="ls")
        y += height
    return panel


def _wrap(text: str, font, width: float) -> list[str]:
    lines = [""]
    for word in text.split(" "):
        longer = f"{lines[-1]} {word}" if lines[-1] else word
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def _scaled(image: np.ndarray, scale: float) -> Image.Image:
    height, width = image.shape[:2]
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return Image.fromarray(image).resize(size, Image.Resampling.BICUBIC)


def _beside(left: Image.Image, right: Image.Image) -> Image.Image:
    panel = Image.new("RGB", (left.width + 2 * GAP + right.width, max(left.height, right.height)), PAPER)
    panel.paste(left, (0, 0))
    panel.paste(right, (left.width + 2 * GAP, 0))
    return panel


def _below(upper: Image.Image, lower: Image.Image) -> Image.Image:
    panel = Image.new("RGB", (max(upper.width, lower.width), upper.height + GAP + lower.height), PAPER)
    panel.paste(upper, (0, 0))
    panel.paste(lower, (0, upper.height + GAP))
    return panel


def _framed(image: Image.Image) -> Image.Image:
    panel = Image.new("RGB", (image.width + 2 * MARGIN, image.height + 2 * MARGIN), PAPER)
    panel.paste(image, (MARGIN, MARGIN))
    return panel


def _area(box: np.ndarray) -> float:
    return float((box[2] - box[0]) * (box[3] - box[1]))


def _overlap(one: tuple, other: tuple) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


@functools.cache
def _font(size: int, bold: bool = False):
    """DejaVu Sans where the system has it, for its many scripts, else Pillow's own."""
    try:
        return ImageFont.truetype("DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf", size)
    except OSError:
        return ImageFont.load_default(size)
