"""WordPiece against BERT's own tokenizer, and the vocabulary that --bert_path may name."""

from __future__ import annotations

import json

import numpy as np
import pytest

from lib.core.errors import InputError
from lib.datasets.tokenisers import TOKENISERS, WordPiece, load_tokenizer
from tests.datasets.tokenisers.conftest import CLS, MASK, OPTIONS, SEP, SPECIAL, UNK, WORDS, piece


def test_pieces_and_words_follow_bert(tokenizer, wordpiece):
    captions = ["A mans playing.", "dogs (man)", "\u200b", "Playing cat"]
    expected = [
        [*map(piece, ["a", "man", "##s", "play", "##ing", "."])],
        [*map(piece, ["dog", "##s", "(", "man", ")"])],
        [],
        [*map(piece, ["play", "##ing"]), UNK],
    ]
    split = wordpiece.split(captions)
    assert [ids for ids, _ in split] == expected
    assert [words for _, words in split] == [[0, 1, 1, 2, 2, 3], [0, 0, 1, 2, 3], [], [0, 0, 1]]
    for caption, (ids, _) in zip(captions, split, strict=True):
        framed = wordpiece.framed(np.array(ids, np.int32))
        assert framed.dtype == np.int64 and framed.tolist() == tokenizer(caption)["input_ids"]


def test_special_tokens_written_in_a_caption_are_text(tokenizer, wordpiece):
    [(ids, _)] = wordpiece.split(["a [PAD] man"])
    assert ids == [*map(piece, ["a", "[", "pad", "]", "man"])]
    assert not tokenizer.backend_tokenizer.encode_special_tokens


def test_the_text_of_a_word_joins_its_pieces(wordpiece):
    for names, text in ((["play", "##ing"], "playing"), (["dog"], "dog"), (["[CLS]"], "[CLS]"), (["[UNK]"], "[UNK]")):
        assert wordpiece.text(np.array([*map(piece, names)])) == text


def test_room_and_frame_are_those_of_the_bert(tokenizer, wordpiece):
    assert (wordpiece.frame, wordpiece.mask, wordpiece.vocab_size) == ((CLS, SEP), MASK, len(SPECIAL + WORDS))
    assert WordPiece(tokenizer, OPTIONS | {"max_position_embeddings": 9}).max_length == 9


def test_a_vocabulary_larger_than_the_models_is_refused(bert, tokenizer):
    size = len(SPECIAL + WORDS)
    assert WordPiece(tokenizer, OPTIONS | {"vocab_size": size}).vocab_size == size
    message = f"--bert_path here: the tokenizer has {size} entries, the model's BERT {size - 1}"
    with pytest.raises(InputError, match=message):
        WordPiece(tokenizer, OPTIONS | {"vocab_size": size - 1}, "here")
    with pytest.raises(InputError, match=f"--bert_path {bert}: "):
        TOKENISERS["wordpiece"](OPTIONS | {"vocab_size": 3}, {"bert_path": bert})


def test_the_row_of_a_tokeniser_opens_the_folder_of_bert_path(bert, wordpiece):
    opened = TOKENISERS["wordpiece"](OPTIONS, {"bert_path": bert})
    assert opened.split(["a mans playing"]) == wordpiece.split(["a mans playing"])


def test_saved_tokenizer_keeps_neither_its_truncation_nor_its_padding(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    path = tmp_path / "tokenizer.json"
    saved = json.loads(path.read_text())
    saved["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    path.write_text(json.dumps(saved))
    split = WordPiece(load_tokenizer(tmp_path), OPTIONS).split(["man " * 9, "man"])
    assert [len(ids) for ids, _ in split] == [9, 1]


def test_folder_without_tokenizer_is_one_clear_line(tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        load_tokenizer(tmp_path / "missing")
    with pytest.raises(InputError, match="neither tokenizer.json nor vocab.txt"):
        load_tokenizer(tmp_path)
    (tmp_path / "vocab.txt").write_text("a\nman\n")
    with pytest.raises(InputError, match=r"must start with \[PAD\]"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(InputError, match="no usable BERT tokenizer") as error:
        load_tokenizer(tmp_path)
    assert "\n" not in str(error.value)
