"""What every tokeniser gets from the contract: frame, cut, and the word noise of training."""

from __future__ import annotations

import numpy as np
import pytest

from lib.datasets.captions import TokenisedCaptions
from lib.datasets.tokenisers import Tokeniser
from tests.datasets.tokenisers.conftest import CLS, MASK, SEP, SPECIAL, WORDS, piece


class Spaces(Tokeniser):
    """What a tokeniser must bring: one token a letter, words as spaces part them."""

    frame, mask, max_length = (1, 2), 3, 8

    def __init__(self, vocab_size: int = 200):
        self.vocab_size = vocab_size

    def split(self, captions):
        words = [[[ord(letter) for letter in word] for word in caption.split()] for caption in captions]
        return [(sum(each, []), [number for number, word in enumerate(each) for _ in word]) for each in words]

    def text(self, ids):
        return "".join(map(chr, ids))


def test_a_tokeniser_of_another_kind_gets_frame_noise_and_cut_from_the_contract(capsys):
    tokenised = TokenisedCaptions(["a cat", "a dogfish"], Spaces())
    assert tokenised.ids(0).tolist() == [1, *map(ord, "acat"), 2]
    assert tokenised.ids(1).tolist() == [1, *map(ord, "adogfi"), 2]
    assert capsys.readouterr().err.splitlines() == ["warning: 1 of 2 captions cut to 8 tokens"]
    noisy = {tuple(tokenised.noisy_ids(0, np.random.default_rng(seed))) for seed in range(60)}
    masked, removed = (1, ord("a"), 3, 3, 3, 2), (1, ord("a"), 2)
    assert {tuple(tokenised.ids(0)), masked, removed} <= noisy


def test_noise_treats_the_pieces_of_a_word_alike(wordpiece):
    tokenised = TokenisedCaptions(["playing " * 12], wordpiece)
    original = [piece("play"), piece("##ing")]
    rng = np.random.default_rng(0)
    seen = set()
    for _ in range(400):
        ids = tokenised.noisy_ids(0, rng)
        assert ids[0] == CLS and ids[-1] == SEP and len(ids) % 2 == 0
        for pair in ids[1:-1].reshape(-1, 2).tolist():
            kind = "kept" if pair == original else "masked" if pair == [MASK, MASK] else "random"
            seen.add(kind)
            assert kind != "random" or 0 not in pair
        seen.add("removed" if len(ids) < 26 else "whole")
    assert seen == {"kept", "masked", "random", "removed", "whole"}


def test_random_pieces_come_from_the_whole_vocabulary_but_padding():
    tokens, words = np.full(100_000, 7, np.int32), np.arange(100_000, dtype=np.int32)
    noisy = Spaces(vocab_size=12).noisy(tokens, words, np.random.default_rng(0))[1:-1]
    assert set(noisy.tolist()) == set(range(1, 12))


def test_noise_rates_are_those_of_the_recipe(wordpiece):
    n_words, rounds = 400, 100
    tokenised = TokenisedCaptions(["man " * n_words], wordpiece)
    rng = np.random.default_rng(1)
    samples = [tokenised.noisy_ids(0, rng)[1:-1] for _ in range(rounds)]
    total = n_words * rounds
    removed = 1 - sum(map(len, samples)) / total
    changed = np.concatenate(samples)
    masked = np.mean(changed == MASK) * len(changed) / total
    random = np.mean((changed != MASK) & (changed != piece("man"))) * len(changed) / total
    vocabulary = len(SPECIAL + WORDS)
    assert removed == pytest.approx(0.2 * 0.4, abs=0.005)
    assert masked == pytest.approx(0.2 * 0.5 + 0.02 / (vocabulary - 1), abs=0.005)
    assert random == pytest.approx(0.2 * 0.1 * (vocabulary - 3) / (vocabulary - 1), abs=0.003)


def test_noise_depends_on_its_generator_alone_and_leaves_the_captions_unchanged(wordpiece):
    tokenised = TokenisedCaptions(["a man playing dogs . " * 5], wordpiece)
    before = tokenised.ids(0)
    first, second = (tokenised.noisy_ids(0, np.random.default_rng([3, 1, 4])) for _ in range(2))
    assert np.array_equal(first, second)
    assert np.array_equal(tokenised.ids(0), before)


def test_caption_that_loses_every_word_keeps_its_frame(wordpiece):
    tokenised = TokenisedCaptions(["man", "\u200b"], wordpiece)
    samples = {tuple(tokenised.noisy_ids(0, np.random.default_rng(seed))) for seed in range(200)}
    assert (CLS, SEP) in samples
    assert tokenised.noisy_ids(1, np.random.default_rng(0)).tolist() == [CLS, SEP]
