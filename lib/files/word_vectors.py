"""Word vectors in text form, as GloVe and word2vec write them: a word and its numbers on each line."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lib.core.errors import InputError
from lib.files.reading import opened


def read_word_vectors(path: str | Path, ids: dict[str, int], word_dim: int) -> tuple[list[int], Tensor]:
    """The ids of the words that both the file and `ids` have, and their vectors (words, word_dim); says how many.

    A first line with two numbers, as word2vec writes, is passed over. Raises InputError that names the line when it
    has another number of values, and when no word is known.
    """
    rows: dict[int, np.ndarray] = {}
    try:
        with io.TextIOWrapper(opened(path, "text (--word_vectors)"), "utf-8", newline="\n") as file:
            for number, line in enumerate(file, start=1):
                fields = line.split()
                if number == 1 and len(fields) == 2:  # word2vec's: how many words, of which size
                    _check_size(fields[1], word_dim, path)
                    continue
                if number == 1 or len(fields) <= word_dim:
                    _check_size(str(len(fields) - 1), word_dim, f"{path}, line {number}")
                word, *values = line.rstrip().rsplit(" ", word_dim)  # GloVe has words with spaces in them
                if (row := ids.get(word)) is not None and row not in rows:
                    rows[row] = _vector(values, f"{path}, line {number}")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); --word_vectors names a text file") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: is no UTF-8 text; unpack it, or save word2vec's binary form as text") from None
    if not rows:
        raise InputError(f"{path}: holds none of the vocabulary's words; expected lines of a word and its values")
    print(f"{path}: vectors for {len(rows)} of the vocabulary's {len(ids)} entries", file=sys.stderr)
    return list(rows), torch.from_numpy(np.stack(list(rows.values())))


def _check_size(found: str, word_dim: int, where: str | Path) -> None:
    if found != str(word_dim):
        raise InputError(f"{where}: {found} values for a word, expected {word_dim}; give the file's size as --word_dim")


def _vector(values: list[str], where: str) -> np.ndarray:
    try:
        vector = np.array(values, dtype=np.float32)
    except ValueError:
        vector = np.array([np.nan], np.float32)
    if not np.isfinite(vector).all():
        raise InputError(f"{where}: expected a word and numbers, separated by spaces")
    return vector
