"""Word vectors from text files: which rows they fill, and what is said of a file that is none."""

from __future__ import annotations

import pytest

from lib.core.errors import InputError
from lib.files.word_vectors import read_word_vectors

IDS = {"<pad>": 0, "dog": 1, "new york": 2}


@pytest.mark.parametrize("header", ["", "3 2\n"], ids=["GloVe", "word2vec"])
def test_known_words_get_their_first_vector_also_words_with_spaces(header, tmp_path, capsys):
    file = tmp_path / "vectors.txt"
    file.write_text(f"{header}the 9 9\nnew york 1.5 -2\ndog 3 4e-1 \ndog 7 7\n")
    rows, vectors = read_word_vectors(file, IDS, 2)
    assert rows == [2, 1] and vectors.tolist() == [[1.5, -2.0], [3.0, pytest.approx(0.4)]]
    assert capsys.readouterr().err == f"{file}: vectors for 2 of the vocabulary's 3 entries\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"dog 1 2 3\n", ", line 1: 3 values for a word, expected 2; give the file's size as --word_dim"),
        (b"5 300\ndog 1 2\n", ": 300 values for a word, expected 2; give the file's size as --word_dim"),
        (b"dog 1 2\ncat 1\n", ", line 2: 1 values for a word, expected 2; give the file's size as --word_dim"),
        (b"cat 1 2\ndog 1 x\n", ", line 2: expected a word and numbers, separated by spaces"),
        (b"cat 1 2\ndog 1 nan\n", ", line 2: expected a word and numbers, separated by spaces"),
        (b"cat 1 2\n", ": holds none of the vocabulary's words; expected lines of a word and its values"),
        (b"", ": holds none of the vocabulary's words; expected lines of a word and its values"),
        (b"\x01\x8b\xff", ": is no UTF-8 text; unpack it, or save word2vec's binary form as text"),
    ],
)
def test_a_file_of_another_form_is_refused_in_one_line_that_says_where(content, message, tmp_path):
    file = tmp_path / "vectors.txt"
    file.write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_word_vectors(file, IDS, 2)
    assert str(caught.value) == f"{file}{message}"


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match="none.txt: no such file, expected text .--word_vectors."):
        read_word_vectors(tmp_path / "none.txt", IDS, 2)
