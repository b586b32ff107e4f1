"""BERT's tokeniser, and its vocabulary from a folder or the hub."""

from __future__ import annotations

import copy
import os
from typing import Any

import numpy as np

from lib.core.errors import InputError
from lib.datasets.tokenisers.hub import one_line, tokenizer_folder
from lib.datasets.tokenisers.tokeniser import Tokeniser

VOCABULARY_FILES = ("tokenizer.json", "vocab.txt")


class WordPiece(Tokeniser):
    """BERT's: words are its basic tokens, tokens its word pieces, framed by [CLS] and [SEP].

    Raises InputError when the encoder's `options` have fewer entries than the vocabulary.
    """

    unit = "word pieces"

    def __init__(self, tokenizer, options: dict[str, Any], bert_path: str = ""):
        self.tokenizer, self.vocab_size = tokenizer, tokenizer.vocab_size
        self.frame, self.mask = (tokenizer.cls_token_id, tokenizer.sep_token_id), tokenizer.mask_token_id
        self.max_length = options["max_position_embeddings"]
        if options["vocab_size"] < self.vocab_size:
            raise InputError(
                f"--bert_path {bert_path}: the tokenizer has {self.vocab_size} entries, the model's BERT "
                f"{options['vocab_size']}; give the tokenizer that the model was trained with"
            )
        self._backend = copy.deepcopy(tokenizer.backend_tokenizer)
        self._backend.no_truncation()
        self._backend.no_padding()
        self._backend.encode_special_tokens = True  # a "[PAD]" that someone wrote in a caption is text

    def split(self, captions: list[str]) -> list[tuple[list[int], list[int]]]:
        encodings = self._backend.encode_batch(captions, add_special_tokens=False)
        return [(encoding.ids, encoding.word_ids) for encoding in encodings]

    def text(self, ids: np.ndarray) -> str:
        first, *rest = self.tokenizer.convert_ids_to_tokens(ids.tolist())
        return first + "".join(piece.removeprefix("##") for piece in rest)


def load_wordpiece(options: dict[str, Any], paths: dict[str, Any]) -> WordPiece:
    """The tokeniser of the BERT in --bert_path."""
    return WordPiece(load_tokenizer(paths["bert_path"]), options, paths["bert_path"])


def load_tokenizer(bert_path: str):
    """The fast BERT tokenizer of a folder or of a hub name; a folder never causes a download.

    A hub name is looked up in the local cache first. Raises InputError when there is no such folder, when it holds no
    BERT vocabulary, and when the hub can't be reached.
    """
    folder = tokenizer_folder(str(bert_path), VOCABULARY_FILES, "--bert_path", "BERT")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")  # said explicitly, forked loader workers print no warning
    from transformers import BertTokenizer  # here: it takes seconds, and reading text files does without

    try:
        tokenizer = BertTokenizer.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:  # broken JSON, a vocabulary of another kind: the library raises all sorts
        raise InputError(f"{folder}: no usable BERT tokenizer ({one_line(error)}); expected a BERT vocab.txt") from None
    special = (tokenizer.unk_token_id, tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.mask_token_id)
    inside = all(token is not None and 0 < token < tokenizer.vocab_size for token in special)
    if not inside or tokenizer.pad_token_id != 0:
        raise InputError(f"{folder}: the vocabulary must start with [PAD] and hold [UNK], [CLS], [SEP] and [MASK]")
    return tokenizer
