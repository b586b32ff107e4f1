"""Captions and ids as text files; captions tokenised once, and the word noise of training.

Letters: C captions, W word pieces of a padded batch, P word pieces of all captions together.
"""

from __future__ import annotations

import copy
import os
import sys
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from lib.errors import InputError
from lib.files import read_lines

CHOSEN, MASKED, RANDOM = 0.2, 0.5, 0.1  # of all words; of the chosen ones: [MASK], random, and the rest is removed
VOCABULARY_FILES = ("tokenizer.json", "vocab.txt")
CHUNK = 8192  # captions per tokeniser call


def read_captions(path: str | Path) -> list[str]:
    """Read one caption per line (UTF-8; only `\\n` and `\\r\\n` end a line).

    Raises InputError that names the line when a caption is empty or no UTF-8, and when the file is missing or empty.
    """
    captions = [line.strip() for line in read_lines(path)]
    for number, caption in enumerate(captions, start=1):
        if not caption:
            raise InputError(f"{path}, line {number}: empty caption; every line must hold one caption")
    return captions


def load_tokenizer(bert_path: str):
    """The fast BERT tokenizer of a folder or of a hub name; a folder never causes a download.

    A hub name is looked up in the local cache first. Raises InputError when there is no such folder, when it holds no
    BERT vocabulary, and when the hub can't be reached.
    """
    folder = _tokenizer_folder(str(bert_path))
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")  # said explicitly, forked loader workers print no warning
    from transformers import BertTokenizer  # here: it takes seconds, and reading text files does without

    try:
        tokenizer = BertTokenizer.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:  # broken JSON, a vocabulary of another kind: the library raises all sorts
        raise InputError(
            f"{folder}: no usable BERT tokenizer ({_one_line(error)}); expected a BERT vocab.txt"
        ) from None
    special = (tokenizer.unk_token_id, tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.mask_token_id)
    inside = all(token is not None and 0 < token < tokenizer.vocab_size for token in special)
    if not inside or tokenizer.pad_token_id != 0:
        raise InputError(f"{folder}: the vocabulary must start with [PAD] and hold [UNK], [CLS], [SEP] and [MASK]")
    return tokenizer


def _tokenizer_folder(bert_path: str) -> Path:
    folder = Path(bert_path).expanduser()
    if folder.is_dir():
        if not any((folder / name).is_file() for name in VOCABULARY_FILES):
            raise InputError(f"{folder}: neither {' nor '.join(VOCABULARY_FILES)} there; --bert_path needs a tokenizer")
        return folder
    if folder.exists() or folder.is_absolute() or bert_path.startswith((".", "~")) or bert_path.count("/") > 1:
        raise InputError(f"{bert_path}: no such folder; --bert_path takes a BERT folder or a hub name")
    return _cached_folder(bert_path) or _download(bert_path)


def _cached_folder(name: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        cached = {file: try_to_load_from_cache(name, file) for file in (*VOCABULARY_FILES, "tokenizer_config.json")}
    except HFValidationError:
        raise InputError(f"{name!r} is neither a folder nor a hub name; --bert_path takes either") from None
    present = {file: Path(path) for file, path in cached.items() if isinstance(path, str)}
    whole = "tokenizer.json" in present or {"vocab.txt", "tokenizer_config.json"} <= present.keys()
    return next(iter(present.values())).parent if whole else None


def _download(name: str) -> Path:
    from huggingface_hub import HfApi, snapshot_download

    try:
        HfApi().model_info(name, timeout=10)  # one request without retries, so that a node without network says so soon
        files = [*VOCABULARY_FILES, "tokenizer_config.json", "special_tokens_map.json"]
        folder = Path(snapshot_download(name, allow_patterns=files))
    except Exception as error:
        raise InputError(
            f"{name}: no such folder, and its tokenizer could not be fetched from the hub ({_one_line(error)}); "
            "download the model on a machine with network and give its folder as --bert_path"
        ) from None
    if not any((folder / file).is_file() for file in VOCABULARY_FILES):
        raise InputError(f"{name}: the hub's model holds neither {' nor '.join(VOCABULARY_FILES)}; give a BERT model")
    return folder


def _one_line(error: Exception) -> str:
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return first[:160] or type(error).__name__


class TokenizedCaptions:
    """All captions of a split as word pieces, tokenised once and kept in flat arrays: pieces and words (P,), offsets.

    Words are BERT's basic tokens, pieces its WordPiece. Captions beyond `max_positions` pieces, [CLS] and [SEP]
    included, are cut, with one warning for all of them.
    """

    def __init__(self, captions: list[str], tokenizer, max_positions: int = 512):
        self.vocab_size = tokenizer.vocab_size
        self.cls, self.sep, self.mask = tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.mask_token_id
        backend = copy.deepcopy(tokenizer.backend_tokenizer)
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = True  # a "[PAD]" that someone wrote in a caption is text
        pieces, words, lengths, cut = [], [], [], 0
        quiet = None if len(captions) > CHUNK else True  # None: a bar where stderr is a terminal
        bar = tqdm(total=len(captions), desc="tokenise", unit="captions", leave=False, disable=quiet)
        for start in range(0, len(captions), CHUNK):
            encodings = backend.encode_batch(captions[start : start + CHUNK], add_special_tokens=False)
            cut += sum(len(encoding) > max_positions - 2 for encoding in encodings)
            for kept, part in ((pieces, "ids"), (words, "word_ids")):
                lists = (getattr(encoding, part)[: max_positions - 2] for encoding in encodings)
                kept.append(np.fromiter(chain.from_iterable(lists), dtype=np.int32))
            lengths += [min(len(encoding), max_positions - 2) for encoding in encodings]
            bar.update(len(encodings))
        bar.close()
        self.pieces = np.concatenate(pieces or [np.empty(0, np.int32)])  # (P,)
        self.words = np.concatenate(words or [np.empty(0, np.int32)])  # (P,)
        self.offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])  # (C + 1,)
        if cut:
            print(f"warning: {cut} of {len(captions)} captions cut to {max_positions} word pieces", file=sys.stderr)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> np.ndarray:
        """Number of pieces of each caption (C,), [CLS] and [SEP] included."""
        return np.diff(self.offsets) + 2

    def ids(self, index: int) -> np.ndarray:
        """[CLS] pieces [SEP] of a caption, int64."""
        return self._framed(self.pieces[self.offsets[index] : self.offsets[index + 1]])

    def noisy_ids(self, index: int, rng: np.random.Generator) -> np.ndarray:
        """`ids` with the word noise of training (released VSE∞ and ESL code): each word, all its pieces together, is
        chosen with probability 0.2; of these 50 % become [MASK], 10 % random vocabulary entries ([PAD] excepted) piece
        by piece, 40 % are removed.
        """
        span = slice(self.offsets[index], self.offsets[index + 1])
        pieces, words = self.pieces[span].copy(), self.words[span]
        if not len(pieces):
            return self._framed(pieces)
        fate = rng.random(words[-1] + 1)[words] / CHOSEN  # one draw per word; below 1 the word is chosen
        random = (fate >= MASKED) & (fate < MASKED + RANDOM)
        pieces[fate < MASKED] = self.mask
        pieces[random] = rng.integers(1, self.vocab_size, np.count_nonzero(random))
        return self._framed(pieces[(fate < MASKED + RANDOM) | (fate >= 1)])

    def _framed(self, pieces: np.ndarray) -> np.ndarray:
        framed = np.empty(len(pieces) + 2, dtype=np.int64)
        framed[0], framed[1:-1], framed[-1] = self.cls, pieces, self.sep
        return framed


def pad_tokens(captions: list[np.ndarray]) -> Tensor:
    """Stack the token ids of C captions (C, W), padded with 0 = [PAD]; the attention mask is `tokens != 0`."""
    padded = np.zeros((len(captions), max(map(len, captions), default=0)), dtype=np.int64)
    for row, ids in zip(padded, captions, strict=True):
        row[: len(ids)] = ids
    return torch.from_numpy(padded)
