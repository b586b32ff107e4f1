"""Reading captions, tokenising them once, the words of their tokens, and padding."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch

from lib.core.errors import InputError
from lib.core.fragments import Tokens
from lib.datasets import captions
from lib.datasets.captions import TokenisedCaptions, read_captions
from lib.datasets.tokenisers import WordPiece, load_tokenizer

VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "man", "##s", "play", "##ing", "(", ")", ".", "dog"]
LINES = ["A mans playing.", "dogs (man)", "\u200b", "Playing cat"]
CLS, SEP = 2, 3


def piece(name):
    return VOCABULARY.index(name)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bert")
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n")
    return load_tokenizer(folder)


@pytest.fixture(scope="module")
def tokeniser(tokenizer):
    return WordPiece(tokenizer, {"vocab_size": 30, "max_position_embeddings": 512})


@pytest.fixture(scope="module")
def short(tokenizer):
    """A tokeniser with room for ten tokens."""
    return WordPiece(tokenizer, {"vocab_size": 30, "max_position_embeddings": 10})


# --- Reading ----------------------------------------------------------------------------------------------------------


def test_only_newlines_end_a_caption(tmp_path):
    path = tmp_path / "caps.txt"
    path.write_bytes("one\u2028still one\r\ntwo\x85still two\x0b.\n  three  \n".encode())
    assert read_captions(path) == ["one\u2028still one", "two\x85still two\x0b.", "three"]
    path.write_bytes("\ufeffno newline at the end".encode())
    assert read_captions(path) == ["no newline at the end"]


def test_empty_caption_is_named_by_its_line(tmp_path):
    path = tmp_path / "caps.txt"
    for text, line in (("a\n\nb\n", 2), ("a\n \r\n", 2), ("a\nb\n\n", 3)):
        path.write_text(text, newline="")
        with pytest.raises(InputError, match=f"caps.txt, line {line}: empty caption"):
            read_captions(path)


def test_empty_or_missing_or_undecodable_file_is_named(tmp_path):
    path = tmp_path / "caps.txt"
    with pytest.raises(InputError, match="caps.txt: no such file"):
        read_captions(path)
    for text in ("", "\n"):
        path.write_text(text)
        with pytest.raises(InputError, match="caps.txt: the file is empty"):
            read_captions(path)
    path.write_bytes(b"fine\ncaf\xe9\n")
    with pytest.raises(InputError, match="line 2: not UTF-8"):
        read_captions(path)


# --- Tokenising -------------------------------------------------------------------------------------------------------


def test_ids_and_lengths_are_those_of_the_framed_captions(tokenizer, tokeniser):
    tokenised = TokenisedCaptions(LINES, tokeniser)
    assert len(tokenised) == 4 and tokenised.lengths.tolist() == [len(tokenised.ids(i)) for i in range(4)]
    assert tokenised.words[:6].tolist() == [0, 1, 1, 2, 2, 3]
    for index, caption in enumerate(LINES):
        ids = tokenised.ids(index)
        assert ids.dtype == np.int64 and ids.tolist() == tokenizer(caption)["input_ids"]


def test_chunks_do_not_change_the_result(tokeniser, monkeypatch):
    lines = ["a man", "playing (dogs)", "a", "mans playing dog ."]
    whole = TokenisedCaptions(lines, tokeniser)
    monkeypatch.setattr(captions, "CHUNK", 3)
    parts = TokenisedCaptions(lines, tokeniser)
    for name in ("tokens", "words", "offsets"):
        assert np.array_equal(getattr(whole, name), getattr(parts, name))


def test_many_captions_show_a_bar_where_someone_looks(tokeniser, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(captions, "CHUNK", 2)
    shown = {}
    for where, lines in ((Terminal(), LINES), (Terminal(), LINES[:2]), (io.StringIO(), LINES)):
        monkeypatch.setattr("sys.stderr", where)
        TokenisedCaptions(lines, tokeniser)
        shown[where.isatty(), len(lines)] = "tokenise" in where.getvalue()
    assert shown == {(True, 4): True, (True, 2): False, (False, 4): False}


def test_long_captions_are_cut_with_one_warning_that_counts_them(short, capsys):
    tokenised = TokenisedCaptions(["man " * 20, "a man", "playing " * 9], short)
    assert tokenised.lengths.tolist() == [10, 4, 10]
    assert tokenised.ids(0).tolist() == [CLS, *[piece("man")] * 8, SEP]
    assert capsys.readouterr().err.splitlines() == ["warning: 2 of 3 captions cut to 10 word pieces"]
    TokenisedCaptions(["man " * 8], short)
    assert capsys.readouterr().err == ""


# --- Words ------------------------------------------------------------------------------------------------------------


def test_each_word_of_a_framed_caption_has_the_places_of_its_tokens(tokeniser):
    tokenised = TokenisedCaptions(LINES, tokeniser)
    assert tokenised.word_tokens(0) == [
        ("[CLS]", slice(0, 1)),
        ("a", slice(1, 2)),
        ("mans", slice(2, 4)),
        ("playing", slice(4, 6)),
        (".", slice(6, 7)),
        ("[SEP]", slice(7, 8)),
    ]
    assert [word for word, _ in tokenised.word_tokens(1)] == ["[CLS]", "dogs", "(", "man", ")", "[SEP]"]
    assert tokenised.word_tokens(3)[1:3] == [("playing", slice(1, 3)), ("[UNK]", slice(3, 4))]


def test_a_caption_without_words_has_its_frame_alone(tokeniser):
    tokenised = TokenisedCaptions(LINES, tokeniser)
    assert tokenised.word_tokens(2) == [("[CLS]", slice(0, 1)), ("[SEP]", slice(1, 2))]


def test_the_same_word_twice_is_two_words(tokeniser):
    tokenised = TokenisedCaptions(["playing playing"], tokeniser)
    assert tokenised.word_tokens(0)[1:3] == [("playing", slice(1, 3)), ("playing", slice(3, 5))]


def test_a_word_cut_in_the_middle_keeps_the_tokens_that_are_left(short):
    tokenised = TokenisedCaptions(["man " * 7 + "playing dog"], short)
    words = tokenised.word_tokens(0)
    assert words[-2:] == [("play", slice(8, 9)), ("[SEP]", slice(9, 10))]


@pytest.mark.parametrize("index", range(4))
def test_the_words_of_a_caption_cover_every_token_once_in_order(tokeniser, index):
    tokenised = TokenisedCaptions(LINES, tokeniser)
    places = [place for _, word in tokenised.word_tokens(index) for place in range(word.start, word.stop)]
    assert places == list(range(tokenised.lengths[index]))


# --- Padding ----------------------------------------------------------------------------------------------------------


def test_padding_is_zero_and_lengths_tell_what_is_real():
    padded = Tokens.padded([np.array([2, 9, 3]), np.array([2, 3]), np.array([2, 0, 3])])
    assert padded.ids.dtype == torch.int64 and padded.ids.tolist() == [[2, 9, 3], [2, 3, 0], [2, 0, 3]]
    assert padded.lengths.tolist() == [3, 2, 3]
    assert padded.mask.tolist() == [[True] * 3, [True, True, False], [True] * 3]
