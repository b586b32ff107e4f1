"""Values from files fit into a message of one line, however long or strange they are."""

from __future__ import annotations

import pytest

from lib.errors import InputError, listed, shown


def test_a_short_value_is_shown_as_it_is():
    assert shown("Vögel über 7") == "Vögel über 7"
    assert shown(3.5) == "3.5" and shown(None) == "None"


@pytest.mark.parametrize("strange", ["\n", "\r", "\t", "\x1b", "\0", "\u2028", "\u202e"])
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
