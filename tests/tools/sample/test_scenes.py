"""Captions say what is in a scene, in right English."""

from __future__ import annotations

import numpy as np

from lib.tools.sample.scenes import Scene, Thing, all_mentions, mentions_of, random_scene, vocabulary, write_captions


def test_captions_differ_and_say_only_what_is_in_the_scene():
    for seed in range(50):
        rng = np.random.default_rng(seed)
        scene = random_scene(rng)
        there = mentions_of(scene)
        captions = write_captions(scene, rng)
        assert len(captions) == 5
        for text, mentions in captions.items():
            assert mentions <= there and mentions
            assert text[0].isupper() and text.endswith(" .") and "{" not in text
            assert set(mentions) <= set(all_mentions())


def test_relations_and_plurals_are_right():
    left = Thing("box", "red", "medium", 30, 60, 16, 0)
    right = Thing("star", "orange", "medium", 130, 60, 16, 0)
    scene = Scene("room", 160, 120, 60, (left, right))
    texts = [text for seed in range(20) for text in write_captions(scene, np.random.default_rng(seed))]
    for text in texts:
        box_first = min(text.find(w) % 999 for w in (" box", " square", " block")) < text.find(" star")
        of_it = text.endswith(" it .")  # "we see a box , and a star to the right of it"
        assert ("right of" if box_first != of_it else "left of") not in text
        assert "a orange" not in text.lower()
    twins = Scene("room", 160, 120, 60, (left, right, Thing("box", "red", "medium", 80, 20, 16, 0)))
    texts = [text for seed in range(20) for text in write_captions(twins, np.random.default_rng(seed))]
    assert any("wo red boxes" in text for text in texts) and not any("boxs" in text for text in texts)


def test_the_vocabulary_is_sorted_and_without_template_marks():
    words = vocabulary()
    assert words == sorted(set(words)) and all(word.isalpha() and word.islower() for word in words)
