"""Words of captions, their numbers in a SCAN vocabulary, and the noise of training token by token."""

from __future__ import annotations

import collections
import json

import numpy as np
import pytest

from lib.core.errors import InputError
from lib.datasets.captions import TokenisedCaptions
from lib.datasets.tokenisers import TOKENISERS
from lib.datasets.tokenisers.scan import ScanWords, Words, sentences
from lib.files.vocabulary import SPECIAL, Vocabulary, vocabulary_text
from tests.conftest import SHARED, needs_shared

VOCABULARY = Vocabulary([*SPECIAL, "a", "dog", "is", "``", ".", "mask", "n't", "<mask>"])


@pytest.fixture(scope="module")
def tokeniser() -> ScanWords:
    return ScanWords(VOCABULARY)


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("a dog. a cat!", ["a dog.", "a cat!"]),
        ("a dog . a cat", ["a dog .", "a cat"]),
        ('a "dog." a (cat?) ran', ['a "dog."', "a (cat?)", "ran"]),
        ("so.. it is... here", ["so.. it is... here"]),
        ("mr. b. at 5. and 1,000. with e.g. st. john at 3 p.m. today", 1),
        ("no. 5 and no. no! yes", ["no. 5 and no. no!", "yes"]),
        ("", []),
    ],
)
def test_a_caption_is_cut_behind_words_that_end_a_sentence(text, pieces):
    assert sentences(text) == ([text] if pieces == 1 else pieces)


@pytest.mark.parametrize(
    ("caption", "words"),
    [
        ('A "Dog" isn\'t here. It runs.', ["a", "``", "dog", "''", "is", "n't", "here", ".", "it", "runs", "."]),
        ('says " hello " .', ["says", "``", "hello", "``", "."]),
        ("they cannot go", ["they", "can", "not", "go"]),
        ("tree-lined, 4' wide", ["tree-lined", ",", "4", "'", "wide"]),
        ("", []),
    ],
)
def test_words_are_lower_cased_and_split_as_nltk_does(caption, words):
    assert Words()(caption) == words


def test_the_short_way_of_plain_captions_gives_the_words_of_the_long_one(sample):
    words = Words()
    captions = (sample / "coco" / "precomp" / "train_caps.txt").read_text().splitlines()
    for caption in [*captions, "gonna wanna cannot gimme lemme .", "a , b , c", "one .", ", ."]:
        long = [word for sentence in sentences(caption.lower()) for word in words.tokenize(sentence)]
        assert words(caption) == long


def test_unknown_words_become_unk_and_a_word_spelled_mask_is_a_word(tokeniser):
    captions = TokenisedCaptions(['A dog isn\'t "mask" .', "Zebra"], tokeniser)
    assert captions.ids(0).tolist() == [1, 4, 5, 6, 10, 7, 9, 3, 8, 2]
    assert captions.ids(1).tolist() == [1, 3, 2]
    assert captions.lengths.tolist() == [10, 3]
    assert tokeniser.mask == 11 and tokeniser.vocab_size == 12


def test_pictures_show_the_words_with_their_frame(tokeniser):
    captions = TokenisedCaptions(["a dog is blue ."], tokeniser)
    words, places = zip(*captions.word_tokens(0), strict=True)
    assert words == ("<start>", "a", "dog", "is", "<unk>", ".", "<end>")
    assert [captions.ids(0)[place].tolist() for place in places] == [[1], [4], [5], [6], [3], [8], [2]]


def test_captions_of_any_length_are_kept_whole(tokeniser, capsys):
    assert TokenisedCaptions(["dog " * 2000], tokeniser).lengths.tolist() == [2002]
    assert capsys.readouterr().err == ""


def test_noise_takes_every_token_alike_the_frame_included():
    words = ["a"] * 30
    large = ScanWords(Vocabulary([*SPECIAL, *(f"w{k}" for k in range(2000)), "a", "<mask>"]))
    captions = TokenisedCaptions([" ".join(words)], large)
    own, rng, rounds = large.vocabulary.ids["a"], np.random.default_rng(0), 4000
    counts, starts, ends, total = collections.Counter(), 0, 0, 0
    for _ in range(rounds):
        ids = captions.noisy_ids(0, rng)
        total += len(ids)
        counts["masked"] += int((ids == large.mask).sum())
        counts["random"] += int(((ids != large.mask) & (ids != own) & (ids > 3)).sum())
        starts += int(ids[0] == 1)
        ends += int(ids[-1] == 2)
    tokens = rounds * 32
    assert abs(1 - total / tokens - 0.2 * 0.4) < 0.004
    assert abs(counts["masked"] / tokens - 0.2 * 0.5) < 0.004
    assert abs(counts["random"] / tokens - 0.2 * 0.1) < 0.002
    assert abs(starts / rounds - 0.8) < 0.02 and abs(ends / rounds - 0.8) < 0.02


def test_random_entries_are_drawn_from_the_whole_vocabulary_special_ones_included(tokeniser):
    drawn = collections.Counter()
    tokens, words = np.full(50, 5, np.int32), np.arange(50, dtype=np.int32)
    rng = np.random.default_rng(0)
    for _ in range(2000):
        drawn.update(tokeniser.noisy(tokens, words, rng).tolist())
    expected = 2000 * 52 * 0.02 / 12
    for number in set(range(12)) - {1, 2, 5, tokeniser.mask}:
        assert abs(drawn[number] - expected) < 5 * expected**0.5, number


def test_at_least_one_token_stays_of_a_caption_that_would_lose_everything(tokeniser):
    class Unlucky:
        def random(self, count):
            return np.full(count, 0.19)

        def integers(self, low, high, count):
            return np.empty(0, int)

        choice = np.random.default_rng(0).choice

    left = tokeniser.noisy(np.array([5, 4], np.int32), np.array([0, 1], np.int32), Unlucky())
    assert len(left) == 1 and left[0] in (1, 5, 4, 2) and left.dtype == np.int64


def test_a_vocabulary_that_does_not_fit_the_weights_is_refused(tmp_path):
    file = tmp_path / "f30k_precomp_vocab.json"
    file.write_text(vocabulary_text(["dog"]))
    assert TOKENISERS["scan"]({"vocab_size": 6}, {"vocab_path": file}).vocab_size == 6
    with pytest.raises(InputError) as caught:
        TOKENISERS["scan"]({"vocab_size": 8482}, {"vocab_path": file})
    assert str(caught.value) == (
        f"{file}: its words and <mask> are 6 entries, but the model's embedding has 8482 rows; name the vocabulary "
        "that the model was trained with by --vocab_path"
    )


@needs_shared
def test_words_are_those_of_nltk_word_tokenize_but_for_two_odd_texts():
    rows = json.loads((SHARED / "golden" / "bigru_words.json").read_text(encoding="utf-8"))["rows"]
    words = Words()
    differing = [row["caption"] for row in rows if words(row["caption"]) != row["words"]]
    assert len(rows) == 129 and differing == ["e.s.e. electronics", "no. 5 st. john mr. x"]
