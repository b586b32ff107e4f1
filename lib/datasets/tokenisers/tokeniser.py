"""The contract of tokenisers: from captions to the ids that a text encoder takes.

Letters: W tokens of a caption.
"""

from __future__ import annotations

import numpy as np

CHOSEN, MASKED, RANDOM = 0.2, 0.5, 0.1  # of all words; of the chosen ones: masked, random, and the rest is removed


class Tokeniser:
    """The contract: what becomes of a caption, how training disturbs it, which words its tokens belong to.

    `frame` are the ids in front of a caption and behind it, `mask` stands for a hidden token, `vocab_size` counts the
    ids and `max_length` the tokens that the encoder has positions for, both frame included.
    """

    unit = "tokens"
    frame: tuple[int, int]
    mask: int
    vocab_size: int
    max_length: int

    @property
    def room(self) -> int:
        """How many tokens of a caption are kept, its frame not counted."""
        return self.max_length - len(self.frame)

    def split(self, captions: list[str]) -> list[tuple[list[int], list[int]]]:
        """For each caption its token ids, without the frame, and the number (0, 0, 1, …) of the word of each."""
        raise NotImplementedError

    def text(self, ids: np.ndarray) -> str:
        """The word that these tokens make, for pictures."""
        raise NotImplementedError

    def framed(self, tokens: np.ndarray) -> np.ndarray:
        """A caption's token ids with its frame, int64."""
        start, end = self.frame
        framed = np.empty(len(tokens) + 2, dtype=np.int64)
        framed[0], framed[1:-1], framed[-1] = start, tokens, end
        return framed

    def noisy(self, tokens: np.ndarray, words: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """`framed` with the word noise of training (released VSE∞ and ESL code): each word, all its tokens together, is
        chosen with probability 0.2; of these 50 % are masked, 10 % become random entries of the vocabulary (0, the
        padding, excepted) token by token, 40 % are removed.
        """
        if not len(tokens):
            return self.framed(tokens)
        chances = rng.random(words[-1] + 1)[words]  # one draw per word
        return self.framed(self.disturbed(tokens, chances, rng, lowest=1))

    def disturbed(self, tokens: np.ndarray, chances: np.ndarray, rng: np.random.Generator, lowest: int) -> np.ndarray:
        """The tokens that are left where `chances` (W,), uniform in [0, 1), decide: below 0.1 a token is masked, below
        0.12 it becomes a random entry of the vocabulary from `lowest` on, below 0.2 it is removed.
        """
        tokens = tokens.copy()
        fate = chances / CHOSEN  # below 1 the token is chosen
        random = (fate >= MASKED) & (fate < MASKED + RANDOM)
        tokens[fate < MASKED] = self.mask
        tokens[random] = rng.integers(lowest, self.vocab_size, np.count_nonzero(random))
        return tokens[(fate < MASKED + RANDOM) | (fate >= 1)]
