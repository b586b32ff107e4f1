"""Vocabularies in the format of SCAN (Lee et al., ECCV 2018): JSON with idx2word, word2idx and idx, their number.

A vocabulary is not part of a checkpoint: its file stays with the data, in a `vocab` folder beside the data sets.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lib.core.errors import InputError
from lib.files.reading import read_json

START, END, UNKNOWN, MASK = "<start>", "<end>", "<unk>", "<mask>"
SPECIAL = ("<pad>", START, END, UNKNOWN)  # the first entries of a file; the mask is added after reading
HOW = "--vocab_path names a vocabulary or its folder, `python -m lib.tools.prepare vocab` builds one"


@dataclass(frozen=True)
class Vocabulary:
    """The words of a vocabulary by their ids, `<mask>` included, and the file that it is from."""

    words: list[str]
    path: Path | None = None
    ids: dict[str, int] = field(init=False, repr=False)

    def __post_init__(self):
        object.__setattr__(self, "ids", {word: number for number, word in enumerate(self.words)})

    def __len__(self) -> int:
        return len(self.words)


def vocabulary_file(vocab_path: str | Path | None, data_path: str | Path | None, data_name: str | None) -> Path | None:
    """Where the vocabulary of a data set is: `vocab_path`, a file or a folder, else the `vocab` folder beside
    `data_path`; None where nothing says."""
    if vocab_path is None and data_path is None:
        return None
    path = Path(vocab_path or Path(os.path.abspath(data_path)).parent / "vocab")
    is_folder = vocab_path is None or path.is_dir()
    return path / f"{data_name}_precomp_vocab.json" if is_folder and data_name else path


def read_vocabulary(path: str | Path | None) -> Vocabulary:
    """Read a vocabulary and append `<mask>`; InputError for no file and for one of another form."""
    if path is None:
        raise InputError(f"this model reads words and no vocabulary was named; {HOW}")
    path = Path(path)
    if not path.is_file():
        problem = "is a folder, and no data set says which of its files to read" if path.is_dir() else "no such file"
        raise InputError(f"{path}: {problem}; {HOW}")
    words = _words(read_json(path), path)
    return Vocabulary(words if MASK in words else [*words, MASK], path)


def _words(content: Any, path: Path) -> list[str]:
    ids = content.get("word2idx") if isinstance(content, dict) else None
    if not isinstance(ids, dict) or not all(type(number) is int for number in ids.values()):
        raise InputError(f'{path}: expected {{"idx2word": …, "word2idx": {{word: id}}, "idx": number of words}}; {HOW}')
    words = sorted(ids, key=ids.get)
    if [ids[word] for word in words] != list(range(len(ids))) or content.get("idx", len(ids)) != len(ids):
        raise InputError(
            f"{path}: its {len(ids)} words do not have the ids 0 to {len(ids) - 1}, once each; copy it again"
        )
    if missing := [word for word in SPECIAL if word not in ids]:
        raise InputError(
            f"{path}: has no {', '.join(missing)}, expected {', '.join(SPECIAL)} in front of the words; {HOW}"
        )
    return words


def vocabulary_text(words: list[str]) -> str:
    """The content of a vocabulary file with the special entries in front of `words`."""
    words = [*SPECIAL, *words]
    content = {
        "idx2word": {str(number): word for number, word in enumerate(words)},
        "word2idx": {word: number for number, word in enumerate(words)},
        "idx": len(words),
    }
    return json.dumps(content, ensure_ascii=False) + "\n"
