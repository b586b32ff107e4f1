"""CxC-like annotations from what scenes and captions mention."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from lib.tools.sample.relatedness import count_vectors, relatedness
from lib.tools.sample.scenes import Scene, Thing, mentions_of
from tests.tools.sample.conftest import lines


def test_relatedness_is_five_for_equal_scenes_and_zero_without_anything_in_common():
    scenes = [
        Scene("room", 160, 120, 60, (Thing("box", "red", "small", 30, 60, 10, 0),)),
        Scene("room", 150, 110, 50, (Thing("box", "red", "large", 50, 60, 20, 0),)),
        Scene("room", 160, 120, 60, (Thing("box", "blue", "small", 30, 60, 10, 0),)),
        Scene("snow", 160, 120, 60, (Thing("star", "pink", "small", 30, 60, 10, 0),)),
    ]
    vectors = count_vectors([mentions_of(scene) for scene in scenes])
    assert relatedness(vectors, vectors)[0].tolist() == [5, 5, pytest.approx(5 * 2 / 7, abs=5e-4), 0]
    assert relatedness(count_vectors([Counter()]), vectors).tolist() == [[0, 0, 0, 0]]


def test_cxc_files_name_the_ids_of_testall_and_hold_own_pairs_and_symmetric_ratings(small):
    folder, precomp = small / "coco" / "cxc_annots", small / "coco" / "precomp"
    image_ids, caption_ids = lines(folder / "testall_ids.txt"), lines(folder / "testall_capids.txt")
    assert image_ids == lines(precomp / "testall_ids.txt")
    assert len(caption_ids) == len(set(caption_ids)) == 75
    both = json.loads((folder / "cxc_it.json").read_text())
    assert list(both["t2i"]) == caption_ids and list(both["i2t"]) == image_ids[::5]
    for number, caption_id in enumerate(caption_ids):
        assert [int(image_ids[number]), 5.0] in both["t2i"][caption_id]
        assert [int(caption_id), 5.0] in both["i2t"][image_ids[number]]
    pairs = {(t, i) for t, rated in both["t2i"].items() for i, _ in rated}
    assert pairs == {(str(t), int(i)) for i, rated in both["i2t"].items() for t, _ in rated}
    for name, ids in (("i2i", image_ids[::5]), ("t2t", caption_ids)):
        ratings = json.loads((folder / f"cxc_{name}.json").read_text())
        assert list(ratings) == ids
        flat = {(query, str(item)): score for query, rated in ratings.items() for item, score in rated}
        assert flat and all(query != item and 0 <= score <= 5 for (query, item), score in flat.items())
        assert all(flat[item, query] == score for (query, item), score in flat.items())
