"""WordPiece against BERT's own tokenizer, the word noise of training, the contract, and what --bert_path may name."""

from __future__ import annotations

import json

import numpy as np
import pytest

from lib.datasets.captions import TokenisedCaptions
from lib.datasets.tokenisers import TOKENISERS, Tokeniser, WordPiece, load_tokenizer
from lib.errors import InputError

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = ["a", "man", "##s", "play", "##ing", "(", ")", ".", "dog", "pad", "[", "]"]
UNK, CLS, SEP, MASK = 1, 2, 3, 4
OPTIONS = {"vocab_size": 30, "max_position_embeddings": 512}


def piece(name):
    return (SPECIAL + WORDS).index(name)


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bert")
    (folder / "vocab.txt").write_text("\n".join(SPECIAL + WORDS) + "\n")
    return folder


@pytest.fixture(scope="module")
def tokenizer(bert):
    return load_tokenizer(bert)


@pytest.fixture(scope="module")
def tokeniser(tokenizer):
    return WordPiece(tokenizer, OPTIONS)


# --- WordPiece --------------------------------------------------------------------------------------------------------


def test_pieces_and_words_follow_bert(tokenizer, tokeniser):
    captions = ["A mans playing.", "dogs (man)", "\u200b", "Playing cat"]
    expected = [
        [*map(piece, ["a", "man", "##s", "play", "##ing", "."])],
        [*map(piece, ["dog", "##s", "(", "man", ")"])],
        [],
        [*map(piece, ["play", "##ing"]), UNK],
    ]
    split = tokeniser.split(captions)
    assert [ids for ids, _ in split] == expected
    assert [words for _, words in split] == [[0, 1, 1, 2, 2, 3], [0, 0, 1, 2, 3], [], [0, 0, 1]]
    for caption, (ids, _) in zip(captions, split, strict=True):
        framed = tokeniser.framed(np.array(ids, np.int32))
        assert framed.dtype == np.int64 and framed.tolist() == tokenizer(caption)["input_ids"]


def test_special_tokens_written_in_a_caption_are_text(tokenizer, tokeniser):
    [(ids, _)] = tokeniser.split(["a [PAD] man"])
    assert ids == [*map(piece, ["a", "[", "pad", "]", "man"])]
    assert not tokenizer.backend_tokenizer.encode_special_tokens


def test_the_text_of_a_word_joins_its_pieces(tokeniser):
    for names, text in ((["play", "##ing"], "playing"), (["dog"], "dog"), (["[CLS]"], "[CLS]"), (["[UNK]"], "[UNK]")):
        assert tokeniser.text(np.array([*map(piece, names)])) == text


def test_room_and_frame_are_those_of_the_bert(tokenizer, tokeniser):
    assert (tokeniser.frame, tokeniser.mask, tokeniser.vocab_size) == ((CLS, SEP), MASK, len(SPECIAL + WORDS))
    assert WordPiece(tokenizer, OPTIONS | {"max_position_embeddings": 9}).max_length == 9


def test_a_vocabulary_larger_than_the_models_is_refused(bert, tokenizer):
    size = len(SPECIAL + WORDS)
    assert WordPiece(tokenizer, OPTIONS | {"vocab_size": size}).vocab_size == size
    message = f"--bert_path here: the tokenizer has {size} entries, the model's BERT {size - 1}"
    with pytest.raises(InputError, match=message):
        WordPiece(tokenizer, OPTIONS | {"vocab_size": size - 1}, "here")
    with pytest.raises(InputError, match=f"--bert_path {bert}: "):
        TOKENISERS["wordpiece"](OPTIONS | {"vocab_size": 3}, {"bert_path": bert})


def test_the_row_of_a_tokeniser_opens_the_folder_of_bert_path(bert, tokeniser):
    opened = TOKENISERS["wordpiece"](OPTIONS, {"bert_path": bert})
    assert opened.split(["a mans playing"]) == tokeniser.split(["a mans playing"])


# --- Noise of training ------------------------------------------------------------------------------------------------


def test_noise_treats_the_pieces_of_a_word_alike(tokeniser):
    tokenised = TokenisedCaptions(["playing " * 12], tokeniser)
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


def test_noise_rates_are_those_of_the_recipe(tokeniser):
    n_words, rounds = 400, 100
    tokenised = TokenisedCaptions(["man " * n_words], tokeniser)
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


def test_noise_depends_on_its_generator_alone_and_leaves_the_captions_unchanged(tokeniser):
    tokenised = TokenisedCaptions(["a man playing dogs . " * 5], tokeniser)
    before = tokenised.ids(0)
    first, second = (tokenised.noisy_ids(0, np.random.default_rng([3, 1, 4])) for _ in range(2))
    assert np.array_equal(first, second)
    assert np.array_equal(tokenised.ids(0), before)


def test_caption_that_loses_every_word_keeps_its_frame(tokeniser):
    tokenised = TokenisedCaptions(["man", "\u200b"], tokeniser)
    samples = {tuple(tokenised.noisy_ids(0, np.random.default_rng(seed))) for seed in range(200)}
    assert (CLS, SEP) in samples
    assert tokenised.noisy_ids(1, np.random.default_rng(0)).tolist() == [CLS, SEP]


# --- Contract ---------------------------------------------------------------------------------------------------------


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


# --- What --bert_path may name ----------------------------------------------------------------------------------------


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


def test_hub_name_without_network_is_one_clear_line(monkeypatch):
    import huggingface_hub

    def unreachable(*args, **kwargs):
        raise ConnectionError("Name or service not known\nand a long traceback")

    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *args: None)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", unreachable)
    with pytest.raises(InputError, match="Name or service not known.*give its folder") as error:
        load_tokenizer("bert-base-uncased")
    assert "\n" not in str(error.value)


def test_hub_name_in_the_cache_needs_no_network(tokenizer, tmp_path, monkeypatch):
    import huggingface_hub

    tokenizer.save_pretrained(tmp_path)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda name, file: str(tmp_path / file))
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", None)
    assert load_tokenizer("bert-base-uncased").vocab_size == tokenizer.vocab_size
