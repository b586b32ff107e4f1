"""What a flag or a file may say: numbers in a range, a few words, yes or no, short lists; anything else is refused."""

from __future__ import annotations

import argparse
import math

import pytest

from lib.core.values import Choice, Number, Several, Switch, problem


@pytest.mark.parametrize(
    ("number", "good", "bad"),
    [
        (Number(int, 1, 64), ["1", "64", " 7 "], ["0", "65", "1.0", "1e1", "nan", "", "x", "9" * 5000, "-3"]),
        (Number(float, 0, 1), ["0", "1", "0.5", "1e-9"], ["-1e-9", "1.0001", "nan", "inf", "-inf", "x", "1e999"]),
        (Number(float, 0, above=True), ["5e-324", "2", "1e308"], ["0", "-0.0", "inf", "1e309"]),
        (Number(int, 0), ["0", str(2**53)], ["-1", str(2**53 + 1), str(2**70)]),
    ],
)
def test_a_number_is_read_and_held_against_its_range(number, good, bad):
    for text in good:
        value = number(text)
        assert value == number.kind(text) and type(value) is number.kind and number.holds(value)
    for text in bad:
        with pytest.raises(argparse.ArgumentTypeError) as error:
            number(text)
        assert str(error.value).endswith(f" is not {number}") and len(str(error.value)) < 200


@pytest.mark.parametrize("value", [True, "1", None, [1], {}, 1.5, math.nan, b"1"])
def test_a_whole_number_is_of_no_other_type(value):
    assert not Number(int, 0, 9).holds(value)


def test_what_is_expected_is_said():
    assert str(Number(int, 1, 64)) == "a whole number from 1 to 64"
    assert str(Number(int, 1)) == "a whole number of at least 1"
    assert str(Number(float, 0, above=True)) == "a finite number above 0"
    assert str(Number(float, 0, 64, above=True)) == "a finite number above 0 to 64"
    assert str(Choice(("a", "b"))) == "one of a, b" and str(Switch()) == "True or False"
    assert str(Several(Number(int, 1, 9), 1, 3)) == "a list of 1 to 3 numbers, each a whole number from 1 to 9"


def test_words_switches_and_lists_hold_their_own_kind_alone():
    assert Choice(("a",)).holds("a") and not any(map(Choice(("a",)).holds, ("b", None, ["a"], 0)))
    assert Switch().holds(False) and not any(map(Switch().holds, (0, None, "False")))
    pair = Several(Number(int, 0, 9), 1, 2)
    assert pair.holds([1]) and pair.holds((1, 9))
    assert not any(map(pair.holds, ([], [1, 2, 3], [10], ["1"], 1, "12", None, {1: 2}, [True])))


def test_the_first_value_that_is_wrong_is_named():
    allowed = {"size": Number(int, 1, 9), "kind": Choice(("a",))}
    assert problem({"size": 3, "kind": "a"}, allowed) is None and problem({}, {}) is None
    assert problem({"size": 10}, allowed) == "size is 10, expected a whole number from 1 to 9"
    assert problem({"depth\n": 3}, allowed) == "depth? is none of size, kind"
    assert problem({"kind": "x" * 10_000}, allowed).endswith("…, expected one of a")
