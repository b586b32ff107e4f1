"""SCAN vocabularies: where they are found, how they are read, what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lib.core.errors import InputError
from lib.files.vocabulary import read_vocabulary, vocabulary_file, vocabulary_text


def test_mask_is_appended_after_reading(tmp_path):
    file = tmp_path / "v.json"
    file.write_text(vocabulary_text(["dog", "mask"]))
    vocabulary = read_vocabulary(file)
    assert vocabulary.words == ["<pad>", "<start>", "<end>", "<unk>", "dog", "mask", "<mask>"]
    assert len(vocabulary) == 7 and vocabulary.ids["<mask>"] == 6 and vocabulary.path == file


def test_a_written_vocabulary_has_the_format_of_scan():
    assert json.loads(vocabulary_text(["dog"])) == {
        "idx2word": {"0": "<pad>", "1": "<start>", "2": "<end>", "3": "<unk>", "4": "dog"},
        "word2idx": {"<pad>": 0, "<start>": 1, "<end>": 2, "<unk>": 3, "dog": 4},
        "idx": 5,
    }


def test_a_vocabulary_is_a_file_a_folder_or_the_folder_beside_the_data(tmp_path):
    name = "f30k_precomp_vocab.json"
    assert vocabulary_file(None, tmp_path / "f30k", "f30k") == tmp_path / "vocab" / name
    assert vocabulary_file(None, tmp_path / "f30k" / ".", "f30k") == tmp_path / "vocab" / name
    assert vocabulary_file(tmp_path, tmp_path / "f30k", "f30k") == tmp_path / name
    assert vocabulary_file(tmp_path / "v.json", None, "f30k") == tmp_path / "v.json"
    assert vocabulary_file(tmp_path / "v.json", None, None) == tmp_path / "v.json"
    assert vocabulary_file(None, None, None) is None


GOOD = json.loads(vocabulary_text(["dog"]))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "expected .*word2idx"),
        ({"word2idx": {"dog": "1"}}, "expected .*word2idx"),
        (GOOD | {"idx": 6}, "its 5 words do not have the ids 0 to 4, once each"),
        (GOOD | {"word2idx": GOOD["word2idx"] | {"cat": 4}}, "its 6 words do not have the ids 0 to 5, once each"),
        ({"word2idx": {"<pad>": 0, "<start>": 1, "dog": 2}}, "has no <end>, <unk>, expected <pad>"),
    ],
)
def test_a_file_of_another_form_is_refused_in_one_line(content, message, tmp_path):
    file = tmp_path / "v.json"
    file.write_text(json.dumps(content))
    with pytest.raises(InputError, match=message) as caught:
        read_vocabulary(file)
    assert str(caught.value).startswith(f"{file}: ") and "\n" not in str(caught.value)


def test_a_missing_vocabulary_says_how_to_get_one():
    for path in (None, Path("nowhere/f30k_precomp_vocab.json")):
        with pytest.raises(InputError, match="--vocab_path names a vocabulary .*lib.tools.prepare vocab"):
            read_vocabulary(path)


def test_a_folder_without_a_data_set_is_refused(tmp_path):
    with pytest.raises(InputError, match="is a folder, and no data set says which of its files to read; --vocab_path"):
        read_vocabulary(vocabulary_file(tmp_path, None, None))
