"""CLIP's tokeniser: byte pairs of lower-cased text, and its vocabulary from a folder or the hub."""

from __future__ import annotations

import gzip
import html
import itertools
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from lib.core.errors import InputError, shown
from lib.datasets.tokenisers.hub import tokenizer_folder
from lib.datasets.tokenisers.tokeniser import Tokeniser

OPENAI_FILE = "bpe_simple_vocab_16e6.txt.gz"
VOCABULARY_FILES = ("tokenizer.json", "vocab.json", OPENAI_FILE)
_OPENAI_MERGES = 49152 - 256 - 2  # lines of OpenAI's file that count, behind its first
_MOST_TEXT = 16 << 20  # characters read of it; it has 3 million
_END_OF_WORD = "</w>"


class BytePairs(Tokeniser):
    """CLIP's byte pairs, framed by its start and end tokens; training adds no noise.

    A caption is cleaned first (ftfy, HTML entities resolved twice, white space, as in the released code). A long one is
    cut before its end token, or with `cut_end` through it: the released code reads all these at their first token.
    """

    unit = "byte pairs"

    def __init__(self, tokenizer, max_length: int, cut_end: bool = False):
        import ftfy  # here: it takes a while, and reading text files does without

        self._fix, self._cut_end = ftfy.fix_text, cut_end
        self.tokenizer, self.vocab_size, self.max_length = tokenizer, len(tokenizer), max_length
        self.frame, self.mask = (tokenizer.bos_token_id, tokenizer.eos_token_id), tokenizer.eos_token_id

    @property
    def room(self) -> int:
        return self.max_length - (1 if self._cut_end else 2)

    def split(self, captions: list[str]) -> list[tuple[list[int], list[int]]]:
        cleaned = [self.clean(caption) for caption in captions]
        encodings = self.tokenizer.backend_tokenizer.encode_batch(cleaned, add_special_tokens=False)
        return [(encoding.ids, _numbered(encoding.word_ids)) for encoding in encodings]

    def clean(self, caption: str) -> str:
        """The caption as the released code reads it, in lower case."""
        text = html.unescape(html.unescape(self._fix(caption)))
        return " ".join(text.split()).lower()

    def text(self, ids: np.ndarray) -> str:
        return self.tokenizer.decode(ids.tolist()).strip()

    def framed(self, tokens: np.ndarray) -> np.ndarray:
        return super().framed(tokens)[: self.max_length]

    def noisy(self, tokens: np.ndarray, words: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return self.framed(tokens)


def _numbered(words: list[int | None]) -> list[int]:
    """The number of the word of each token, from 0, each token of none being a word of its own."""
    changes = [one is None or one != other for one, other in itertools.pairwise([None, *words])][1:]
    return np.cumsum([0, *changes]).tolist() if words else []


def load_clip_tokeniser(options: dict[str, Any], paths: dict[str, Any]) -> BytePairs:
    """The tokeniser of the CLIP in --clip_path; InputError where the model's has another vocabulary."""
    tokenizer = load_clip_tokenizer(paths["clip_path"])
    if len(tokenizer) != options["vocab_size"]:
        raise InputError(
            f"--clip_path {paths['clip_path']}: the tokenizer has {len(tokenizer)} entries, the model's CLIP "
            f"{options['vocab_size']}; give the tokenizer that the model was trained with"
        )
    return BytePairs(tokenizer, options["max_position_embeddings"], options.get("cut_end", False))


def load_clip_tokenizer(clip_path: str | Path):
    """The CLIP tokenizer of a folder, of the folder of a weight file, or of a hub name.

    A folder holds tokenizer.json, vocab.json with merges.txt, or OpenAI's merges. InputError where there is none.
    """
    path = Path(clip_path)
    folder = tokenizer_folder(str(path.parent if path.is_file() else path), VOCABULARY_FILES, "--clip_path", "CLIP")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")  # said explicitly, forked loader workers print no warning
    from transformers import CLIPTokenizer  # here: it takes seconds, and reading text files does without

    try:
        if any((folder / name).is_file() for name in VOCABULARY_FILES[:2]):
            tokenizer = CLIPTokenizer.from_pretrained(str(folder), local_files_only=True)
        else:
            tokenizer = CLIPTokenizer(**_openai_vocabulary(folder / OPENAI_FILE))
    except Exception as error:  # broken JSON, a vocabulary of another kind: the library raises all sorts
        raise InputError(
            f"{folder}: no usable CLIP tokenizer ({shown(error, 160)}); expected CLIP's vocabulary"
        ) from None
    last = len(tokenizer) - 1
    if tokenizer.eos_token_id != last or tokenizer.bos_token_id != last - 1:
        raise InputError(f"{folder}: the vocabulary must end in CLIP's start and end token")
    return tokenizer


def _openai_vocabulary(path: Path) -> dict[str, Any]:
    """Vocabulary and merges of OpenAI's file: the bytes, the bytes that end a word, one entry a merge."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        merges = [tuple(line.split()) for line in file.read(_MOST_TEXT).split("\n")[1 : _OPENAI_MERGES + 1]]
    return clip_vocabulary(merges)


def clip_vocabulary(merges: list[tuple[str, str]]) -> dict[str, Any]:
    """What CLIPTokenizer takes: {"vocab": {entry: id}, "merges": [...]} in CLIP's order."""
    symbols = byte_symbols()
    entries = [*symbols, *(symbol + _END_OF_WORD for symbol in symbols), *map("".join, merges)]
    entries += ["<|startoftext|>", "<|endoftext|>"]
    return {"vocab": {entry: number for number, entry in enumerate(entries)}, "merges": merges}


def byte_symbols() -> list[str]:
    """A printable character for each byte, in CLIP's order: bytes that are printable in Latin-1 stand for themselves,
    then come the others."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + number) for number in range(len(others))]


def vocabulary_files(merges: list[tuple[str, str]]) -> dict[str, str]:
    """The files vocab.json and merges.txt of these merges, as CLIPTokenizer reads them."""
    vocab = clip_vocabulary(merges)["vocab"]
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    return {"vocab.json": json.dumps(vocab, ensure_ascii=False) + "\n", "merges.txt": "\n".join(lines) + "\n"}
