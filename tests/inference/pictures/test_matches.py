"""Which word belongs to which region, grid cells, and colours."""

from __future__ import annotations

import numpy as np
import pytest

from lib.inference.pictures.matches import NEGATIVE, POSITIVE, grid_boxes, heat_colours, match_words, veil_colours


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


def test_a_veil_over_a_photograph_has_the_colours_of_the_heat_map_and_is_clear_at_zero():
    values = np.array([0.0, 2.0, -1.0])
    colours = veil_colours(values, 2.0)
    assert colours[0, 3] == 0 and colours[1, 3] == 0.75  # what lies below is always seen
    np.testing.assert_allclose(colours[1, :3] * 255, POSITIVE)
    np.testing.assert_allclose(colours[2, :3] * 255, NEGATIVE)
    strength = (255 - heat_colours(values, 2.0)[2, 0]) / (255 - NEGATIVE[0])
    assert colours[2, 3] == pytest.approx(0.75 * strength, abs=0.01)
