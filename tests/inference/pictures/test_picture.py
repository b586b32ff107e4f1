"""The picture of the attention: what it shows where, its size, and the forms of its file."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from lib.inference.pictures.matches import grid_boxes, match_words
from lib.inference.pictures.picture import FORMS, draw_picture, save_picture


def pixels(figure) -> np.ndarray:
    """A figure drawn at 100 dots per inch: a unit of its layout is a pixel."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=100)
    return np.asarray(Image.open(file).convert("RGB"))


def texts(figure) -> list[str]:
    return [text.get_text() for text in figure.axes[0].texts]


def test_the_picture_shows_a_word_s_box_in_its_colour():
    image = np.full((100, 100, 3), 128, np.uint8)
    words, similarity = ["[CLS]", "ball", "[SEP]"], np.array([[0.0, 0], [0, 1], [0, 0]])
    here = np.array([[0, 0, 10, 10], [40, 40, 80, 80]])
    elsewhere = np.array([[0, 0, 10, 10], [20, 60, 70, 90]])
    shown = [pixels(draw_picture(words, similarity, "t", "", image, boxes)) for boxes in (here, elsewhere)]
    assert shown[0].shape == shown[1].shape
    colour = np.array(match_words(words, similarity).colours[1])
    right = 24 + round(80 * 5.6)  # the right edge of the first box
    edges = [(picture[150:, right - 1 : right + 2] == colour).all(-1).any(1).sum() for picture in shown]
    assert edges[0] > 150 and edges[1] < 20


def test_without_an_image_or_boxes_the_heat_map_stands_alone_and_a_grid_adds_a_small_map_of_each_word():
    words, similarity = ["[CLS]", "Red", "ball", "[SEP]"], np.random.default_rng(0).standard_normal((4, 4))
    image, boxes = np.full((60, 80, 3), 128, np.uint8), grid_boxes(4, 80, 60)
    alone = draw_picture(words, similarity, "t")
    assert (pixels(alone) == pixels(draw_picture(words, similarity, "t", image=image))).all()  # no boxes
    regions = draw_picture(words, similarity, "t", image=image, boxes=boxes)
    grid = draw_picture(words, similarity, "t", image=image, grid=True)
    assert regions.get_figwidth() == grid.get_figwidth() > alone.get_figwidth()
    assert grid.get_figheight() > regions.get_figheight() > alone.get_figheight()
    assert texts(regions).count("Red") == 1 and texts(grid).count("Red") == 2
    assert "regions, from 0" in texts(regions) and "cells, from 0" in texts(grid)
    assert not [text for text in texts(grid) if "region" in text]


def test_the_width_in_inches_scales_the_whole_picture():
    words, similarity = ["a", "ball"], np.eye(2)
    wide, narrow = draw_picture(words, similarity, "t"), draw_picture(words, similarity, "t", width=2)
    assert narrow.get_figwidth() == pytest.approx(2)
    share = narrow.get_figheight() / wide.get_figheight()
    assert share == pytest.approx(2 / wide.get_figwidth())
    sizes = [[text.get_fontsize() for text in figure.axes[0].texts] for figure in (wide, narrow)]
    np.testing.assert_allclose(np.array(sizes[1]), share * np.array(sizes[0]))


@pytest.mark.parametrize(("suffix", "begins"), list(zip(FORMS, (b"\x89PNG", b"%PDF", b"<?xml"), strict=True)))
def test_each_form_is_what_its_name_says_and_equal_pictures_are_equal_files(tmp_path, suffix, begins):
    image = np.full((20, 20, 3), 200, np.uint8)
    for name in ("a", "b"):
        figure = draw_picture(["costs", "$5", "or_$6"], np.eye(3, 4), "it costs $5 or $6", image=image, grid=True)
        save_picture(figure, tmp_path / f"{name}{suffix}", 100)  # dollars are no formula
    first, second = ((tmp_path / f"{name}{suffix}").read_bytes() for name in ("a", "b"))
    assert first.startswith(begins) and first == second
    if suffix == ".png":
        save_picture(figure, tmp_path / "c.png", 200)
        sizes = [np.array(Image.open(tmp_path / f"{name}.png").size) for name in ("a", "c")]
        assert np.abs(2 * sizes[0] - sizes[1]).max() <= 2
    if suffix == ".pdf":
        assert b"/Type3" not in first and b"CreationDate" not in first
