"""Reading captions and ids, tokenising once, and the word noise of training."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from lib.datasets import captions
from lib.datasets.captions import TokenizedCaptions, load_tokenizer, pad_tokens, read_captions
from lib.errors import InputError
from lib.files import read_ids

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = ["a", "man", "##s", "play", "##ing", "(", ")", ".", "dog", "pad", "[", "]"]
UNK, CLS, SEP, MASK = 1, 2, 3, 4


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
    with pytest.raises(InputError, match="caps.txt: cannot be read"):
        read_captions(path)
    for text in ("", "\n"):
        path.write_text(text)
        with pytest.raises(InputError, match="caps.txt: the file is empty"):
            read_captions(path)
    path.write_bytes(b"fine\ncaf\xe9\n")
    with pytest.raises(InputError, match="line 2: not UTF-8"):
        read_captions(path)


def test_ids_are_integers_one_a_line(tmp_path):
    path = tmp_path / "ids.txt"
    path.write_bytes(b"391895\r\n-1\n522418\n")
    ids = read_ids(path)
    assert ids.dtype == np.int64 and ids.tolist() == [391895, -1, 522418]
    for bad in ("12.5", "", "cat", "9" * 30):
        path.write_text(f"1\n{bad}\n3\n")
        with pytest.raises(InputError, match="ids.txt, line 2: expected one integer"):
            read_ids(path)


def test_pieces_and_words_follow_bert(tokenizer):
    tokenized = TokenizedCaptions(["A mans playing.", "dogs (man)", "\u200b", "Playing cat"], tokenizer)
    expected = ["a", "man", "##s", "play", "##ing", "."]
    assert tokenized.ids(0).tolist() == [CLS, *map(piece, expected), SEP]
    assert tokenized.words[:6].tolist() == [0, 1, 1, 2, 2, 3]
    assert tokenized.ids(1).tolist() == [CLS, *map(piece, ["dog", "##s", "(", "man", ")"]), SEP]
    assert tokenized.ids(2).tolist() == [CLS, SEP]
    assert tokenized.ids(3).tolist() == [CLS, *map(piece, ["play", "##ing"]), UNK, SEP]
    assert len(tokenized) == 4 and tokenized.lengths.tolist() == [len(tokenized.ids(i)) for i in range(4)]
    assert tokenized.ids(0).dtype == np.int64
    for index, caption in enumerate(["A mans playing.", "dogs (man)", "\u200b", "Playing cat"]):
        assert tokenized.ids(index).tolist() == tokenizer(caption)["input_ids"]


def test_special_tokens_written_in_a_caption_are_text(tokenizer):
    tokenized = TokenizedCaptions(["a [PAD] man"], tokenizer)
    assert tokenized.ids(0).tolist() == [CLS, *map(piece, ["a", "[", "pad", "]", "man"]), SEP]
    assert not tokenizer.backend_tokenizer.encode_special_tokens


def test_chunks_do_not_change_the_result(tokenizer, monkeypatch):
    lines = ["a man", "playing (dogs)", "a", "mans playing dog ."]
    whole = TokenizedCaptions(lines, tokenizer)
    monkeypatch.setattr(captions, "CHUNK", 3)
    parts = TokenizedCaptions(lines, tokenizer)
    for name in ("pieces", "words", "offsets"):
        assert np.array_equal(getattr(whole, name), getattr(parts, name))


def test_long_captions_are_cut_with_one_warning_that_counts_them(tokenizer, capsys):
    tokenized = TokenizedCaptions(["man " * 20, "a man", "playing " * 9], tokenizer, max_positions=10)
    assert tokenized.lengths.tolist() == [10, 4, 10]
    assert tokenized.ids(0).tolist() == [CLS, *[piece("man")] * 8, SEP]
    assert capsys.readouterr().err.splitlines() == ["warning: 2 of 3 captions cut to 10 word pieces"]
    TokenizedCaptions(["man " * 8], tokenizer, max_positions=10)
    assert capsys.readouterr().err == ""


def test_noise_treats_the_pieces_of_a_word_alike(tokenizer):
    tokenized = TokenizedCaptions(["playing " * 12], tokenizer)
    original = [piece("play"), piece("##ing")]
    rng = np.random.default_rng(0)
    seen = set()
    for _ in range(400):
        ids = tokenized.noisy_ids(0, rng)
        assert ids[0] == CLS and ids[-1] == SEP and len(ids) % 2 == 0
        for pair in ids[1:-1].reshape(-1, 2).tolist():
            kind = "kept" if pair == original else "masked" if pair == [MASK, MASK] else "random"
            seen.add(kind)
            assert kind != "random" or 0 not in pair
        seen.add("removed" if len(ids) < 26 else "whole")
    assert seen == {"kept", "masked", "random", "removed", "whole"}


def test_noise_rates_are_those_of_the_recipe(tokenizer):
    n_words, rounds = 400, 100
    tokenized = TokenizedCaptions(["man " * n_words], tokenizer)
    rng = np.random.default_rng(1)
    samples = [tokenized.noisy_ids(0, rng)[1:-1] for _ in range(rounds)]
    total = n_words * rounds
    removed = 1 - sum(map(len, samples)) / total
    changed = np.concatenate(samples)
    masked = np.mean(changed == MASK) * len(changed) / total
    random = np.mean((changed != MASK) & (changed != piece("man"))) * len(changed) / total
    vocabulary = len(SPECIAL + WORDS)
    assert removed == pytest.approx(0.2 * 0.4, abs=0.005)
    assert masked == pytest.approx(0.2 * 0.5 + 0.02 / (vocabulary - 1), abs=0.005)
    assert random == pytest.approx(0.2 * 0.1 * (vocabulary - 3) / (vocabulary - 1), abs=0.003)


def test_noise_depends_on_its_generator_alone_and_leaves_the_captions_unchanged(tokenizer):
    tokenized = TokenizedCaptions(["a man playing dogs . " * 5], tokenizer)
    before = tokenized.ids(0)
    first, second = (tokenized.noisy_ids(0, np.random.default_rng([3, 1, 4])) for _ in range(2))
    assert np.array_equal(first, second)
    assert np.array_equal(tokenized.ids(0), before)


def test_caption_that_loses_every_word_keeps_its_frame(tokenizer):
    tokenized = TokenizedCaptions(["man", "\u200b"], tokenizer)
    samples = {tuple(tokenized.noisy_ids(0, np.random.default_rng(seed))) for seed in range(200)}
    assert (CLS, SEP) in samples
    assert tokenized.noisy_ids(1, np.random.default_rng(0)).tolist() == [CLS, SEP]


def test_padding_is_zero():
    padded = pad_tokens([np.array([2, 9, 3]), np.array([2, 3])])
    assert padded.dtype == torch.int64 and padded.tolist() == [[2, 9, 3], [2, 3, 0]]


def test_saved_tokenizer_keeps_neither_its_truncation_nor_its_padding(bert, tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    path = tmp_path / "tokenizer.json"
    saved = json.loads(path.read_text())
    saved["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    path.write_text(json.dumps(saved))
    assert TokenizedCaptions(["man " * 9], load_tokenizer(tmp_path)).lengths.tolist() == [11]


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


def test_hub_name_in_the_cache_needs_no_network(bert, tokenizer, tmp_path, monkeypatch):
    import huggingface_hub

    tokenizer.save_pretrained(tmp_path)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda name, file: str(tmp_path / file))
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", None)
    assert load_tokenizer("bert-base-uncased").vocab_size == tokenizer.vocab_size
