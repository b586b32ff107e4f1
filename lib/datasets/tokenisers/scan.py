"""The tokeniser of BiGRU models: words of nltk, numbered by a vocabulary of SCAN (released VSE∞ BiGRU code).

nltk's NLTKWordTokenizer is a set of regular expressions; it needs nothing but the package. What nltk.word_tokenize does
before, cutting a text into sentences, needs a model that must be downloaded: `sentences` is a rule in its place.

Letters: W tokens of a caption.
"""

from __future__ import annotations

import re
import sys
from typing import Any

import numpy as np

from lib.core.errors import InputError
from lib.datasets.tokenisers.tokeniser import Tokeniser
from lib.files.vocabulary import END, MASK, START, UNKNOWN, Vocabulary, read_vocabulary

_CLOSING = "\"'”’»)]}"  # quotes and brackets that may follow the end of a sentence
_ABBREVIATIONS = frozenset(
    "mr mrs ms dr st jr sr vs u.s u.k p.m a.m e.g i.e d.c etc no co inc corp ave".split()
)  # the full stop behind one of them ends no sentence
_NUMBER = re.compile(r"\d+(,\d+)*")
_PLAIN = re.compile(r"([a-z]+|,)( [a-z]+| ,)*( \.)?")  # what nltk splits at its spaces, and within a word alone


class Words:
    """Lower-cased words of a caption, as nltk.word_tokenize gives them but for `sentences`."""

    def __init__(self):
        from nltk.tokenize.destructive import NLTKWordTokenizer  # here: it takes a second, and BERT does without

        self.tokenize = NLTKWordTokenizer().tokenize
        self._parts: dict[str, list[str]] = {}

    def __call__(self, caption: str) -> list[str]:
        found = []
        for sentence in sentences(caption.lower()):
            if _PLAIN.fullmatch(sentence):  # most captions; twice as fast, and the same
                found += [part for word in sentence.split() for part in self._parts_of(word)]
            else:
                found += self.tokenize(sentence)
        return found

    def _parts_of(self, word: str) -> list[str]:
        """A word as it is split wherever it stands: "cannot" is "can", "not"."""
        if word not in self._parts:
            self._parts[word] = self.tokenize(word)
        return self._parts[word]


class ScanWords(Tokeniser):
    """Words of a vocabulary, one token each, framed by `<start>` and `<end>`; others become `<unk>`."""

    unit = "words"
    max_length = sys.maxsize  # a recurrent network has no positions

    def __init__(self, vocabulary: Vocabulary):
        self.vocabulary, self.vocab_size = vocabulary, len(vocabulary)
        self.frame, self.mask = (vocabulary.ids[START], vocabulary.ids[END]), vocabulary.ids[MASK]
        self.unknown = vocabulary.ids[UNKNOWN]
        self.words = Words()

    def split(self, captions: list[str]) -> list[tuple[list[int], list[int]]]:
        numbers, unknown = self.vocabulary.ids, self.unknown
        ids = [[numbers.get(word, unknown) for word in self.words(caption)] for caption in captions]
        return [(each, list(range(len(each)))) for each in ids]

    def text(self, ids: np.ndarray) -> str:
        return " ".join(self.vocabulary.words[number] for number in ids.tolist())

    def noisy(self, tokens: np.ndarray, words: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """`framed` with the noise of training, token by token, the frame included; random entries may be special ones.

        Of a caption that would lose everything, one token stays as it was.
        """
        framed = self.framed(tokens)
        left = self.disturbed(framed, rng.random(len(framed)), rng, lowest=0)
        return left if len(left) else rng.choice(framed, 1)


def sentences(text: str) -> list[str]:
    """Cut a text behind each word between spaces that ends a sentence."""
    pieces, begun = [], []
    for word in text.split():
        begun.append(word)
        if _ends_sentence(word):
            pieces.append(" ".join(begun))
            begun = []
    return [*pieces, " ".join(begun)] if begun else pieces


def _ends_sentence(word: str) -> bool:
    """Whether a word ends in . ? or ! (closing quotes and brackets aside) and is no abbreviation, number or "..".."""
    word = word.rstrip(_CLOSING)
    if word.endswith(("?", "!")):
        return True
    if not word.endswith(".") or word.endswith(".."):
        return False
    stem = word[:-1]
    known = stem in _ABBREVIATIONS or "." in stem or _NUMBER.fullmatch(stem)
    return not known and not (len(stem) == 1 and stem.isalpha())


def load_scan(options: dict[str, Any], paths: dict[str, Any]) -> ScanWords:
    """The tokeniser of the vocabulary in --vocab_path; InputError where it is not that of the model's embedding."""
    vocabulary = read_vocabulary(paths.get("vocab_path"))
    if len(vocabulary) != options["vocab_size"]:
        raise InputError(
            f"{vocabulary.path}: its words and <mask> are {len(vocabulary)} entries, but the model's embedding has "
            f"{options['vocab_size']} rows; name the vocabulary that the model was trained with by --vocab_path"
        )
    return ScanWords(vocabulary)
