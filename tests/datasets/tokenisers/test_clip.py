"""CLIP's byte pairs: cleaning, numbering, cutting, and the files that a vocabulary comes in."""

from __future__ import annotations

import gzip
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from lib.core.errors import InputError
from lib.core.fragments import Tokens
from lib.datasets.captions import TokenisedCaptions
from lib.datasets.tokenisers.clip import (
    OPENAI_FILE,
    BytePairs,
    byte_symbols,
    clip_vocabulary,
    load_clip_tokeniser,
    load_clip_tokenizer,
    vocabulary_files,
)
from tests.conftest import SHARED, needs_shared

MERGES = [("d", "o"), ("do", "g</w>"), ("b", "a"), ("ba", "l"), ("bal", "l</w>")]
ENTRIES = 2 * 256 + len(MERGES) + 2
OPTIONS = {"vocab_size": ENTRIES, "max_position_embeddings": 8}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    for name, text in vocabulary_files(MERGES).items():
        (folder / name).write_text(text, encoding="utf-8")
    return folder


@pytest.fixture
def tokeniser(folder) -> BytePairs:
    return load_clip_tokeniser(OPTIONS, {"clip_path": str(folder)})


def spelled(tokeniser: BytePairs, caption: str) -> list[str]:
    ((ids, _),) = tokeniser.split([caption])
    return tokeniser.tokenizer.convert_ids_to_tokens(ids)


def test_entries_are_bytes_bytes_that_end_a_word_merges_and_two_special_tokens():
    symbols = byte_symbols()
    assert len(set(symbols)) == 256 and symbols[:3] == ["!", '"', "#"] and symbols[188] == "Ā"
    vocab = clip_vocabulary(MERGES)["vocab"]
    assert list(vocab.values()) == list(range(ENTRIES))
    assert vocab["!</w>"] == 256 and vocab["do"] == 512 and vocab["<|endoftext|>"] == ENTRIES - 1


def test_words_are_merged_and_know_which_word_they_are_of(tokeniser):
    assert spelled(tokeniser, "Dog balls") == ["dog</w>", "bal", "l", "s</w>"]
    assert tokeniser.split(["dog balls !", ""]) == [(tokeniser.split(["dog balls !"])[0][0], [0, 1, 1, 1, 2]), ([], [])]
    captions = TokenisedCaptions(["Dog balls"], tokeniser)
    words = [
        ("<|startoftext|>", slice(0, 1)),
        ("dog", slice(1, 2)),
        ("balls", slice(2, 5)),
        ("<|endoftext|>", slice(5, 6)),
    ]
    assert captions.word_tokens(0) == words


@pytest.mark.parametrize(
    ("caption", "clean"),
    [
        ("  A\tdog\n ", "a dog"),
        ("dog’s “ball”", 'dog\'s "ball"'),
        ("&amp;lt;dog&amp;gt; &amp; ball", "<dog> & ball"),
        ("schÃ¶n ﬁne ＤＯＧ", "schön fine dog"),
        ("a\x07dog\xa0ball", "adog ball"),
    ],
)
def test_captions_are_cleaned_before(tokeniser, caption, clean):
    assert tokeniser.clean(caption) == clean


def test_a_long_caption_keeps_its_end_token_unless_that_is_cut_as_released(folder, tokeniser, capsys):
    long = ["dog " * 7, "dog " * 6]
    kept = TokenisedCaptions(long, tokeniser)
    start, end = tokeniser.frame
    dog = kept.ids(1)[1]
    assert kept.ids(0).tolist() == kept.ids(1).tolist() == [start, *[dog] * 6, end]
    assert "1 of 2 captions cut to 8 byte pairs" in capsys.readouterr().err
    cut = TokenisedCaptions(long, load_clip_tokeniser(OPTIONS | {"cut_end": True}, {"clip_path": str(folder)}))
    assert cut.ids(0).tolist() == [start, *[dog] * 7] and cut.ids(1).tolist() == kept.ids(1).tolist()
    assert cut.lengths.tolist() == [8, 8]
    assert [place.stop - place.start for _, place in cut.word_tokens(0)] == [1] * 8


def test_training_adds_no_noise_and_padding_is_0_behind(tokeniser):
    captions = TokenisedCaptions(["dog ball dog", "!"], tokeniser)
    for index in range(2):
        assert np.array_equal(captions.noisy_ids(index, np.random.default_rng(0)), captions.ids(index))
    padded = Tokens.padded([captions.ids(0), captions.ids(1)])
    assert padded.ids[1, 3:].tolist() == [0, 0] and padded.lengths.tolist() == [5, 3]


def test_openais_file_and_a_saved_tokenizer_give_the_same_ids(folder, tokeniser, tmp_path):
    lines = ['"a comment"', *(" ".join(pair) for pair in MERGES)]
    with gzip.open(tmp_path / OPENAI_FILE, "wt", encoding="utf-8") as file:
        file.write("\n".join(lines))
    (tmp_path / "weights.pt").write_bytes(b"")
    load_clip_tokenizer(folder).save_pretrained(tmp_path / "saved")
    captions = ["a Dog's ball !", "&quot;dog&quot; 12"]
    for path in (tmp_path, tmp_path / "weights.pt", tmp_path / "saved"):
        assert load_clip_tokeniser(OPTIONS, {"clip_path": str(path)}).split(captions) == tokeniser.split(captions)


def test_another_vocabulary_is_refused_in_one_line(folder, tmp_path):
    with pytest.raises(InputError, match=f"{folder}: the tokenizer has {ENTRIES} entries, the model's CLIP 600; give"):
        load_clip_tokeniser(OPTIONS | {"vocab_size": 600}, {"clip_path": str(folder)})
    with pytest.raises(InputError, match="neither tokenizer.json nor vocab.json nor .* there; --clip_path needs"):
        load_clip_tokenizer(tmp_path)
    (tmp_path / "vocab.json").write_text("[1]")
    with pytest.raises(InputError, match="no usable CLIP tokenizer"):
        load_clip_tokenizer(tmp_path)


@needs_shared
def test_ids_are_those_of_the_released_tokenizer():
    texts = json.loads((SHARED / "golden" / "clip_tokens.json").read_text(encoding="utf-8"))["texts"]
    file = np.load(SHARED / "golden" / "clip_tokens.npz")
    released = importlib.util.find_spec("clip").submodule_search_locations[0]  # the package brings OpenAI's merges
    options = {"vocab_size": 49408, "max_position_embeddings": 77, "cut_end": True}
    captions = TokenisedCaptions(texts, load_clip_tokeniser(options, {"clip_path": released}))
    ids = Tokens.padded([captions.ids(index) for index in range(len(texts))]).ids.numpy()
    assert np.array_equal(ids, file["ids"])
