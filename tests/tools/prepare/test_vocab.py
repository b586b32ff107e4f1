"""`prepare vocab`: the words that occur often enough in train and dev, in SCAN's format."""

from __future__ import annotations

import json

import pytest

from lib.files.vocabulary import read_vocabulary
from lib.tools.prepare.__main__ import main
from tests.helpers import error_line


@pytest.fixture
def data(tmp_path):
    """A data set of captions alone; `dog` occurs four times in train and dev, `cat` three times there."""
    precomp = tmp_path / "f30k" / "precomp"
    precomp.mkdir(parents=True)
    (precomp / "train_caps.txt").write_text("A dog.\nThe DOG, a cat <mask>\na dog and a cat\n")
    (precomp / "dev_caps.txt").write_text("a dog. a cat\n<unk> <mask>\n")
    (precomp / "test_caps.txt").write_text("cat zebra zebra zebra zebra\n")
    return tmp_path / "f30k"


def test_frequent_words_of_train_and_dev_go_to_the_folder_beside_the_data(data, capsys):
    assert main(["vocab", str(data), "--data_name", "f30k"]) == 0
    file = data.parent / "vocab" / "f30k_precomp_vocab.json"
    assert read_vocabulary(file).words == ["<pad>", "<start>", "<end>", "<unk>", "a", "dog", "<mask>"]
    content = json.loads(file.read_text())
    assert content["idx"] == 6 and content["idx2word"]["5"] == "dog" and content["word2idx"]["dog"] == 5
    assert f"{file}: 2 of " in capsys.readouterr().out


def test_a_threshold_and_a_file_can_be_named_and_nothing_is_replaced_unasked(data, tmp_path, capsys):
    file = tmp_path / "own.json"
    command = ["vocab", data, "--data_name", "f30k", "--vocab_path", file]
    main([str(part) for part in (*command, "--threshold", 3)])
    first = file.read_bytes()
    assert {"a", "dog", "cat"} <= set(read_vocabulary(file).words) and b"zebra" not in first
    main([str(part) for part in (*command, "--threshold", 3)])
    assert "1 held the same already" in capsys.readouterr().out
    assert "--overwrite replaces it" in error_line(main, command, capsys)
    assert file.read_bytes() == first
    main([str(part) for part in (*command, "--overwrite")])
    assert file.read_bytes() != first


def test_captions_without_frequent_words_are_one_clear_line(data, capsys):
    message = error_line(main, ["vocab", data, "--data_name", "f30k", "--threshold", 99], capsys)
    assert message == f"{data}: no word occurs 99 times; give a smaller --threshold"
