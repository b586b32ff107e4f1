"""Boxes and features of drawn pictures."""

from __future__ import annotations

import numpy as np
from PIL import Image

from lib.tools.sample.pictures import REGIONS, region_features, scene_boxes
from lib.tools.sample.scenes import random_scene


def test_a_region_feature_depends_on_the_pixels_inside_its_box_alone():
    pixels = np.random.default_rng(0).integers(0, 256, (120, 160, 3), dtype=np.uint8)
    changed = pixels.copy()
    changed[:, 80:] = 255 - changed[:, 80:]
    boxes = np.array([(10, 10, 70, 100), (90, 10, 150, 100)], np.float32)
    before, after = (region_features(Image.fromarray(p), boxes, 64) for p in (pixels, changed))
    assert np.array_equal(before[0], after[0]) and not np.array_equal(before[1], after[1])


def test_boxes_lie_in_the_picture_and_several_cover_each_thing():
    for seed in range(20):
        rng = np.random.default_rng(seed)
        scene = random_scene(rng)
        boxes = scene_boxes(scene, rng)
        assert boxes.shape == (REGIONS, 4)
        assert (boxes[:, :2] >= 0).all() and (boxes[:, 2:] <= (scene.width, scene.height)).all()
        assert (boxes[:, 2:] - boxes[:, :2] > 3).all()
        for thing in scene.things:
            centre = np.array([thing.x, thing.y])
            inside = ((boxes[:, :2] <= centre) & (centre <= boxes[:, 2:])).all(1)
            close = (boxes[:, 2:] - boxes[:, :2]).max(1) < 3 * thing.radius
            assert (inside & close).sum() >= 5
