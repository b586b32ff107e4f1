"""Tables of key names in both directions: levels, axes of size 1, twins, unused tensors, and what has no place."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import pytest
import torch

from lib.checkpoint.checkpoint import Checkpoint
from lib.checkpoint.released.renaming import Layout, Rule, Twin, Unused
from lib.core.config import ModelConfig
from lib.core.errors import InputError

LAYOUT = Layout(
    rules=(
        Rule("region", "img", "fc.{rest}", "image.fc.{rest}"),
        Rule("grid", "img", "base.{rest}", "image.backbone.{rest}"),
        Rule("esl", "sim", "calculator_{k}.weight", "levels.{k-1}.weight", ones=2),
        Rule("vse_infty grid", "img", "gpool.{rest}", "pool.{rest}"),
    ),
    twins=(Twin("grid", "img", "resnet.{rest}", "base.{rest}"),),
    unused=(
        Unused("region", "img", "norm.weight", lambda config: torch.ones(config.embed_size)),
        Unused("esl", "sim", "scale", None),
    ),
)
FILE = Path("file.pth")


def checkpoint(model: dict, extras: dict | None = None) -> Checkpoint:
    return Checkpoint(ModelConfig("esl_a", "regions", "bert", 3), model, extras=extras or {}, path=FILE)


def test_the_rows_of_a_model_are_those_all_of_whose_traits_it_has():
    assert [rule.released for rule in LAYOUT.of("esl_a", grid=False).rules] == ["fc.{rest}", "calculator_{k}.weight"]
    of_grid = LAYOUT.of("vse_infty", grid=True)
    assert [rule.released for rule in of_grid.rules] == ["base.{rest}", "gpool.{rest}"]
    assert of_grid.twins and not of_grid.unused
    assert not LAYOUT.of("vse_infty", grid=False).twins


def test_levels_are_counted_from_another_number_and_leading_axes_come_and_go():
    layout, weight = LAYOUT.of("esl_a", grid=False), torch.arange(4.0).view(2, 2)
    parts = {"img": {}, "sim": {"calculator_1.weight": weight[None, None], "calculator_12.weight": weight[None, None]}}
    model, extras = layout.to_ours(parts, FILE, "ESL-A")
    assert extras == {} and sorted(model) == ["levels.0.weight", "levels.11.weight"]
    assert torch.equal(model["levels.0.weight"], weight)
    back = layout.to_released(checkpoint(model), ("img", "sim"), FILE)
    assert {name: tensor.shape for name, tensor in back["sim"].items()} == {
        "calculator_1.weight": (1, 1, 2, 2), "calculator_12.weight": (1, 1, 2, 2)
    }  # fmt: skip
    assert layout.name_of("levels.11.weight") == "sim: calculator_12.weight"
    assert layout.name_of("something.else") == "something.else"


@pytest.mark.parametrize("key", ["calculator_01.weight", "calculator_123.weight", "calculator_.weight", "fc.", "xfc.a"])
def test_a_key_of_another_form_is_left_over(key):
    part = "img" if "fc" in key else "sim"
    with pytest.raises(InputError, match=rf"file.pth: 1 left over \(a file of ESL-A has no such key\): {part}: {key}"):
        LAYOUT.of("esl_a", grid=False).to_ours({part: {key: torch.ones(1, 1, 2)}}, FILE, "ESL-A")


def test_a_weight_without_the_leading_axes_is_named():
    parts = {"sim": {"calculator_1.weight": torch.ones(1, 2, 2)}}
    with pytest.raises(InputError, match=r"sim: calculator_1.weight has the shape \(1, 2, 2\), expected .* \(1, 1\)"):
        LAYOUT.of("esl_a", grid=False).to_ours(parts, FILE, "ESL-A")


def test_an_unused_tensor_is_kept_as_it_was_and_made_where_there_is_none():
    layout = LAYOUT.of("esl_a", grid=False)
    model, extras = layout.to_ours({"img": {"norm.weight": torch.full((3,), 7.0)}, "sim": {}}, FILE, "ESL-A")
    assert model == {} and list(extras) == ["img.norm.weight"]
    made = layout.to_released(checkpoint({}), ("img", "sim"), FILE)
    assert torch.equal(made["img"]["norm.weight"], torch.ones(3)) and not made["sim"]
    kept = layout.to_released(checkpoint({}, extras), ("img", "sim"), FILE)
    assert torch.equal(kept["img"]["norm.weight"], torch.full((3,), 7.0))


def test_the_name_that_is_used_of_a_twin_counts_and_the_other_is_kept_only_where_it_differs():
    layout, used = LAYOUT.of("vse_infty", grid=True), torch.arange(3.0)
    for repeated, kept in ((used, []), (used.clone(), []), (used + 1, ["img.resnet.a"])):
        model, extras = layout.to_ours({"img": OrderedDict({"resnet.a": repeated, "base.a": used})}, FILE, "VSE∞")
        assert torch.equal(model["image.backbone.a"], used) and list(extras) == kept
    written = layout.to_released(checkpoint(model), ("img",), FILE)["img"]
    assert written["resnet.a"] is written["base.a"]
    with pytest.raises(InputError, match=r"img: resnet.a has the shape \(4,\), but the layer that it repeats has \(3,"):
        layout.to_ours({"img": {"resnet.a": torch.ones(4), "base.a": used}}, FILE, "VSE∞")


def test_a_weight_or_an_extra_without_a_place_is_named():
    layout = LAYOUT.of("esl_a", grid=False)
    with pytest.raises(InputError, match="out.pth: the released layout has no place for image.other.weight"):
        layout.to_released(checkpoint({"image.other.weight": torch.ones(1)}), ("img", "sim"), "out.pth")
    with pytest.raises(InputError, match="file.pth: extras holds txt.bias, expected img, sim in front"):
        layout.to_released(checkpoint({}, {"txt.bias": torch.ones(1)}), ("img", "sim"), "out.pth")
