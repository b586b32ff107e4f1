"""The words of a caption as pictures show them: in the caption's own spelling, and which of them carry its content."""

from __future__ import annotations

import unicodedata

FRAME = frozenset(("[CLS]", "[SEP]", "<start>", "<end>", "<|startoftext|>", "<|endoftext|>"))
FUNCTION_WORDS = frozenset(
    "a an the this that these those some any each every no another other both all "
    "i you he she it we they me him her us them my your his its our their who whom whose which what "
    "and or but nor so yet if while as than because though although when where "
    "of to in on at by for from with without into onto out off over under above below up down through across along "
    "around about against between among behind beside beneath near inside outside toward towards upon within "
    "is are was were be been being am has have had having do does did doing can could will would shall should may "
    "might must not there here".split()
)


def is_word(text: str) -> bool:
    """Whether it is a word, and neither the frame of a caption nor punctuation."""
    return text not in FRAME and any(letter.isalnum() for letter in text)


def is_content(text: str) -> bool:
    """Whether it is a word that says what is in an image, and no English function word."""
    return is_word(text) and text.lower() not in FUNCTION_WORDS


def as_written(words: list[str], caption: str) -> list[str]:
    """The words, lower-cased and without accents as a tokeniser may give them, in the spelling of the caption.

    A word that is not in the caption behind the one before, such as [CLS] or <unk>, stays as it is.
    """
    plain = "".join(unicodedata.normalize("NFD", letter)[0].lower()[:1] for letter in caption)
    found, start = [], 0
    for word in words:
        place = -1 if word in FRAME else plain.find(word.lower(), start)
        found.append(word if place < 0 else caption[place : place + len(word)])
        start = start if place < 0 else place + len(word)
    return found
