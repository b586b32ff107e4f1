"""Captions: read from text files, tokenised once, and framed for the encoder.

Letters: C captions, P tokens of all captions together.
"""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import numpy as np
from tqdm import tqdm

from lib.core.errors import InputError
from lib.datasets.tokenisers import Tokeniser
from lib.files.reading import read_lines

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


class TokenisedCaptions:
    """All captions of a split as tokens, made once and kept in flat arrays: tokens and their words (P,), offsets.

    Captions that the encoder has no positions for are cut, with one warning for all of them.
    """

    def __init__(self, captions: list[str], tokeniser: Tokeniser):
        self.tokeniser = tokeniser
        tokens, words, lengths, cut = [], [], [], 0
        room = tokeniser.room
        quiet = None if len(captions) > CHUNK else True  # None: a bar where stderr is a terminal
        bar = tqdm(total=len(captions), desc="tokenise", unit="captions", leave=False, disable=quiet)
        for start in range(0, len(captions), CHUNK):
            split = tokeniser.split(captions[start : start + CHUNK])
            cut += sum(len(ids) > room for ids, _ in split)
            for kept, part in ((tokens, 0), (words, 1)):
                kept.append(
                    np.fromiter(itertools.chain.from_iterable(each[part][:room] for each in split), dtype=np.int32)
                )
            lengths += [min(len(ids), room) for ids, _ in split]
            bar.update(len(split))
        bar.close()
        self.tokens = np.concatenate(tokens or [np.empty(0, np.int32)])  # (P,)
        self.words = np.concatenate(words or [np.empty(0, np.int32)])  # (P,)
        self.offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])  # (C + 1,)
        if cut:
            cut_to = f"{tokeniser.max_length} {tokeniser.unit}"
            print(f"warning: {cut} of {len(captions)} captions cut to {cut_to}", file=sys.stderr)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> np.ndarray:
        """Number of tokens of each caption (C,), its frame included."""
        return np.minimum(np.diff(self.offsets) + len(self.tokeniser.frame), self.tokeniser.max_length)

    def ids(self, index: int) -> np.ndarray:
        """The framed token ids of a caption, int64."""
        return self.tokeniser.framed(self.tokens[self._span(index)])

    def noisy_ids(self, index: int, rng: np.random.Generator) -> np.ndarray:
        """`ids` with the word noise of training, drawn from `rng`."""
        span = self._span(index)
        return self.tokeniser.noisy(self.tokens[span], self.words[span], rng)

    def word_tokens(self, index: int) -> list[tuple[str, slice]]:
        """The words of a framed caption, each with the places of its tokens."""
        ids, own = self.ids(index), self.words[self._span(index)]
        starts = (np.flatnonzero(np.diff(own, prepend=-1)) + 1).tolist()
        borders = [0, *starts, *range(len(own) + 1, len(ids) + 1)]  # the frame's start, each word, its end if not cut
        places = [slice(start, stop) for start, stop in itertools.pairwise(borders)]
        return [(self.tokeniser.text(ids[place]), place) for place in places]

    def _span(self, index: int) -> slice:
        return slice(self.offsets[index], self.offsets[index + 1])
