"""Words of a caption in its own spelling, and those that carry its content."""

from __future__ import annotations

import pytest

from lib.inference.pictures.words import as_written, is_content, is_word


def test_words_keep_the_capitals_and_accents_of_the_caption():
    words = ["[CLS]", "a", "cafe", "in", "zurich", ",", "a", "[UNK]", "don", "'", "t", "[SEP]"]
    expected = ["[CLS]", "A", "Café", "in", "ZÜRICH", ",", "a", "[UNK]", "don", "'", "t", "[SEP]"]
    assert as_written(words, "A Café in ZÜRICH, a \u4e86 don't") == expected


@pytest.mark.parametrize("caption", ["", "İstanbul ﬁsh", "a\u200bb", "\u0301"])
def test_letters_without_a_plain_form_do_no_harm(caption):
    assert as_written(["[CLS]", "fish", "[SEP]"], caption)[0] == "[CLS]"


def test_content_is_neither_punctuation_nor_frame_nor_function_word():
    words = ["[CLS]", "The", "red", "ball", "is", "on", "2", "of", "them", ".", "-", "<end>", "[SEP]"]
    assert [word for word in words if is_content(word)] == ["red", "ball", "2"]
    assert [word for word in words if is_word(word)] == ["The", "red", "ball", "is", "on", "2", "of", "them"]
