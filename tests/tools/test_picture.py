"""The picture of the attention: which word belongs to which region, colours, boxes and grid cells."""

from __future__ import annotations

import numpy as np
import pytest

from lib.tools.picture import POSITIVE, draw_picture, grid_boxes, heat_colours, match_words


def test_each_word_is_written_at_its_strongest_region_and_punctuation_nowhere():
    similarity = np.array([[9.0, 0, 0], [0, 1, 0], [0, 2, 1], [0, 0, 3], [5, 0, 0], [0, 7, 0]])
    matches = match_words(["[CLS]", "red", "ball", "here", ".", "[SEP]"], similarity)
    assert matches.labels == {1: ["red", "ball"], 2: ["here"]}
    assert matches.best.tolist() == [0, 1, 1, 2, 0, 1]


def test_grid_cells_tile_the_image_row_by_row():
    boxes = grid_boxes(4, 200, 100)
    assert boxes.tolist() == [[0, 0, 100, 50], [100, 0, 200, 50], [0, 50, 100, 100], [100, 50, 200, 100]]
    with pytest.raises(ValueError, match="no square"):
        grid_boxes(5, 10, 10)


def test_colours_are_white_at_zero_and_full_at_the_largest():
    colours = heat_colours(np.array([0.0, 2.0, -2.0, 5.0]), 2.0)
    assert colours[0].tolist() == [255] * 3 and colours[1].tolist() == POSITIVE.tolist() == colours[3].tolist()
    assert colours[2, 2] > colours[2, 0]  # blue
    assert (heat_colours(np.zeros(3), 0.0) == 255).all()  # nothing matched anything


def test_the_picture_shows_a_word_s_box_in_its_colour():
    image = np.full((100, 100, 3), 128, np.uint8)
    words, similarity = ["[CLS]", "ball", "[SEP]"], np.array([[0.0, 0], [0, 1], [0, 0]])
    here = np.array([[0, 0, 10, 10], [40, 40, 80, 80]])
    elsewhere = np.array([[0, 0, 10, 10], [20, 60, 80, 90]])
    pictures = [np.asarray(draw_picture(words, similarity, "t", "", image, boxes)) for boxes in (here, elsewhere)]
    assert pictures[0].shape == pictures[1].shape and (pictures[0] != pictures[1]).any()
    colour = np.array(match_words(words, similarity).colours[1])
    x, y = 24 + round(80 * 5.6), 24 + 60  # the right edge of the first box, below the heading
    column = (pictures[0][:, x - 1] == colour).all(-1)
    assert column.sum() > 100 and not (pictures[1][: y + 100, x - 1] == colour).all(-1).any()


def test_without_an_image_or_boxes_the_heat_map_stands_alone_and_a_grid_adds_a_small_map_of_each_word():
    words, similarity = ["[CLS]", "red", "ball", "[SEP]"], np.random.default_rng(0).standard_normal((4, 4))
    image, boxes = np.full((60, 80, 3), 128, np.uint8), grid_boxes(4, 80, 60)
    alone = draw_picture(words, similarity, "t")
    assert alone.tobytes() == draw_picture(words, similarity, "t", image=image).tobytes()  # no boxes
    regions = draw_picture(words, similarity, "t", image=image, boxes=boxes)
    grid = draw_picture(words, similarity, "t", image=image, grid=True)
    assert regions.width == grid.width > alone.width
    assert grid.height > regions.height > alone.height
