"""A BERT vocabulary of seventeen entries, in a folder and read."""

from __future__ import annotations

import pytest

from lib.datasets.tokenisers import WordPiece, load_tokenizer

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = ["a", "man", "##s", "play", "##ing", "(", ")", ".", "dog", "pad", "[", "]"]
UNK, CLS, SEP, MASK = 1, 2, 3, 4
OPTIONS = {"vocab_size": 30, "max_position_embeddings": 512}


def piece(name):
    return (SPECIAL + WORDS).index(name)


@pytest.fixture(scope="session")
def bert(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bert")
    (folder / "vocab.txt").write_text("\n".join(SPECIAL + WORDS) + "\n")
    return folder


@pytest.fixture(scope="session")
def tokenizer(bert):
    return load_tokenizer(bert)


@pytest.fixture(scope="session")
def wordpiece(tokenizer):
    return WordPiece(tokenizer, OPTIONS)
