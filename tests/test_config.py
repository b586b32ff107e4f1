"""ModelConfig, table rows and their options."""

from __future__ import annotations

import dataclasses

import pytest

from lib.config import ModelConfig, Option, Part, lazy, row
from lib.errors import InputError


def sizes_of(embed_size: int, options: dict) -> tuple:
    return embed_size, options


def no_odd_size(embed_size: int, options: dict) -> None:
    if embed_size % options["divisor"]:
        raise InputError(f"--embed_size is {embed_size}, no multiple of {options['divisor']}")


PART = Part("a part", sizes_of, {"divisor": Option(2, "what"), "switch": Option(False, "whether")}, no_odd_size)


def test_a_row_completes_what_is_given_with_its_defaults_and_keeps_what_it_does_not_know():
    given = {"divisor": 3, "read": "from a file"}
    assert PART.complete(6, given) == {"divisor": 3, "switch": False, "read": "from a file"}
    assert given == {"divisor": 3, "read": "from a file"} and PART.complete(6, {}) == {"divisor": 2, "switch": False}


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


def test_a_configuration_survives_its_dict():
    config = ModelConfig("esl_h", "grid", "bert", 256, {"no_imgnorm": True}, {"backbone_source": "tiny"}, {"layers": 2})
    assert ModelConfig(**dataclasses.asdict(config)) == config != ModelConfig()


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
