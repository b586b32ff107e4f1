"""ModelConfig, table rows and their options."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest

from lib.core.config import ModelConfig, Option, Part, lazy, row
from lib.core.errors import InputError
from lib.core.values import Choice, positive


def sizes_of(embed_size: int, options: dict) -> tuple:
    return embed_size, options


def no_odd_size(embed_size: int, options: dict) -> None:
    if embed_size % options["divisor"]:
        raise InputError(f"--embed_size is {embed_size}, no multiple of {options['divisor']}")


PART = Part("a part", sizes_of, {"divisor": Option(2, "what"), "switch": Option(False, "whether")}, no_odd_size)


def test_a_row_completes_what_is_given_with_its_defaults():
    part = dataclasses.replace(PART, fields={"read": Choice(("this", "that"))})
    given = {"divisor": 3, "read": "that"}
    assert part.complete(6, given) == {"divisor": 3, "switch": False, "read": "that"}
    assert given == {"divisor": 3, "read": "that"} and PART.complete(6, {}) == {"divisor": 2, "switch": False}
    with pytest.raises(InputError, match="^a part: read is other, expected one of this, that$"):
        part.complete(6, given | {"read": "other"})
    with pytest.raises(InputError, match="^a part: read is none of divisor, switch$"):
        PART.complete(6, given)


@pytest.mark.parametrize(
    ("option", "good", "bad"),
    [
        (Option(2, ""), [0, -7, 2**50], [2.0, True, "2", None, 2**60, [2]]),
        (Option(2.5, ""), [2, -0.5, 1e9], [math.nan, math.inf, "2", True, None]),
        (Option(False, ""), [True, False], [0, 1, "True", None]),
        (Option("a", "", choices=("a", "b")), ["a", "b"], ["c", "", None, 1, ["a"]]),
        (Option(None, "", positive(int, 9)), [None, 1, 9], [0, 10, 1.0, "1"]),
        (Option(1, "", positive(int, 9)), [1, 9], [0, 10, None]),
        (Option(3, "", type=int), [3, -4], ["3", None]),
    ],
)
def test_an_option_holds_what_its_flag_takes(option, good, bad):
    assert all(map(option.holds, good)) and not any(map(option.holds, bad))
    for value in bad:
        with pytest.raises(InputError, match="^--it is .*, expected (a|one|True)"):
            Part("a part", sizes_of, {"it": option}).complete(6, {"it": value})


def test_a_row_builds_its_part_from_size_and_complete_options():
    assert PART.make(9, divisor=3) == (9, {"divisor": 3, "switch": False})


def test_a_row_refuses_sizes_that_it_cannot_have_before_it_builds():
    for make in (lambda: PART.complete(7, {}), lambda: PART.make(7)):
        with pytest.raises(InputError, match="--embed_size is 7, no multiple of 2"):
            make()


def test_a_row_without_options_or_check_takes_any_size():
    part = Part("plain", sizes_of)
    assert part.make(7) == (7, {}) and part.training_only == ()


def test_a_name_without_a_row_is_refused_with_the_names_that_have_one():
    table = {"one": PART, "two": PART}
    assert row(table, "two", "--part") is PART
    with pytest.raises(InputError, match="^--part is 'three', expected one of one, two$"):
        row(table, "three", "--part")


def test_a_configuration_survives_json():
    config = ModelConfig("esl_h", "grid", "bert", 256, {"no_imgnorm": True}, {"backbone_source": "tiny"}, {"layers": 2})
    assert ModelConfig(**json.loads(json.dumps(dataclasses.asdict(config)))) == config != ModelConfig()


def test_a_configuration_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        ModelConfig().embed_size = 256


def test_configurations_share_no_options():
    ModelConfig().image_options["img_dim"] = 3
    assert ModelConfig().image_options == {}


def test_lazy_calls_the_function_that_it_names_and_finds_it_only_then():
    assert lazy("math:hypot")(3, 4) == 5
    missing = lazy("lib.no_such_module:build")
    with pytest.raises(ModuleNotFoundError):
        missing()
