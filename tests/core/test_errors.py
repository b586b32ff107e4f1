"""Values from files fit into a message of one line; so do errors, but for those of this program."""

from __future__ import annotations

import errno
import os

import pytest
import torch

from lib.core.errors import InputError, explained, listed, printable, shown


def test_a_short_value_is_shown_as_it_is():
    assert shown("Vögel über 7") == "Vögel über 7"
    assert shown(3.5) == "3.5" and shown(None) == "None"


@pytest.mark.parametrize("strange", ["\n", "\r", "\t", "\x1b", "\0", "\u2028", "\u202e", "\x9b", "\ud800"])
def test_characters_that_would_break_or_colour_the_line_are_replaced(strange):
    assert shown(f"a{strange}b") == "a?b"


def test_only_the_beginning_of_a_long_value_is_shown():
    assert shown("x" * 80) == "x" * 80
    assert shown("x" * 81) == "x" * 80 + "…"
    assert shown("abcdef", most=3) == "abc…"


def test_the_first_few_of_many_names_are_listed():
    assert listed([]) == "" and listed(["a"]) == "a"
    assert listed(["a", 2, "c", "d"]) == "a, 2, c, d"
    assert listed(["a", 2, "c", "d", "e"]) == "a, 2, c, d, …"
    assert listed(["a", "b\n", "c"], most=2) == "a, b?, …"


def test_bad_input_is_a_value_error():
    with pytest.raises(ValueError, match="what, where"):
        raise InputError("what, where")


def test_text_of_any_language_is_printed_as_it_is():
    for text in ("VSE∞", "Vögel, 鸟, پرنده\u200cها, 👩\u200d🚀", "a\u00a0b"):
        assert printable(text) == text
    assert printable("a\tb\x1b[2J", kept="\t") == "a\tb?[2J"


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (InputError("a.txt: bad"), "a.txt: bad"),
        (InputError("a\nb\x1b[2J"), "a?b?[2J"),
        (PermissionError(errno.EACCES, "Permission denied", "a.npy"), "a.npy: Permission denied"),
        (OSError(errno.EIO, "Input/output error", b"a\xff"), "a\ufffd: Input/output error"),
        (OSError("Caught OSError in DataLoader worker process 0.\nTraceback\nOSError: [Errno 5] broken"),
         "OSError: [Errno 5] broken"),
        (MemoryError(), "memory ran out (MemoryError); smaller batches need less"),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB.\nmore"), "memory ran out (CUDA out of memory."),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. x"), "a process that loads data died ("),
        (RuntimeError("Pin memory thread exited unexpectedly"), "a process that loads data died (Pin"),
        (UnicodeEncodeError("utf-8", "a\ud800", 1, 2, "surrogates not allowed"), "invalid text ('utf-8' codec"),
    ],
)  # fmt: skip
def test_what_the_machine_or_a_file_did_is_one_line(error, line):
    assert explained(error).startswith(line) and "\n" not in explained(error)


def test_a_full_disk_says_what_to_do():
    line = explained(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "a.npy"))
    assert line.startswith("a.npy: No space left on device; make room on that disk; ") and line.endswith("are kept")


def test_memory_that_torch_does_not_get_is_one_line():
    with pytest.raises(RuntimeError) as error:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert explained(error.value).startswith("memory ran out (")


@pytest.mark.parametrize(
    "error", [ValueError("x"), TypeError("x"), RuntimeError("shapes differ"), RecursionError("x"), KeyError("x")]
)
def test_an_error_of_this_program_is_not_explained_away(error):
    assert explained(error) is None
