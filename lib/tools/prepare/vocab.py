"""A vocabulary in SCAN's format from the captions of a data set: `python -m lib.tools.prepare vocab`."""

from __future__ import annotations

import collections
from pathlib import Path

from lib.core.errors import InputError
from lib.datasets.captions import read_captions
from lib.datasets.layout import find_split
from lib.datasets.tokenisers.scan import Words
from lib.files.vocabulary import MASK, SPECIAL, vocabulary_file, vocabulary_text
from lib.tools.prepare.outputs import Target

SPLITS, THRESHOLD = ("train", "dev"), 4  # as SCAN's vocabularies were built


def prepare_vocab(target: Target, vocab_path: Path | None = None, threshold: int = THRESHOLD) -> Path:
    """Write the words that occur `threshold` times in train and dev, the frequent ones first; returns the file.

    Raises InputError for missing captions, when no word is left, and when the file holds other words.
    """
    data_path, data_name = target.data_path, target.data_name
    file = vocabulary_file(vocab_path, data_path, data_name)
    counts = collections.Counter()
    words = Words()
    for split in SPLITS:
        for caption in read_captions(find_split(data_path, data_name, split, need_features=False).captions):
            counts.update(words(caption))
    kept = sorted((word for word in counts if counts[word] >= threshold), key=lambda word: (-counts[word], word))
    kept = [word for word in kept if word not in (*SPECIAL, MASK)]
    if not kept:
        raise InputError(f"{data_path}: no word occurs {threshold} times; give a smaller --threshold")
    target.write({file: vocabulary_text(kept)})
    print(f"{file}: {len(kept)} of {len(counts)} words")
    return file
