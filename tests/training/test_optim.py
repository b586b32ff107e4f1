"""The schedules as tables, and the optimizer's parameter groups."""

from __future__ import annotations

import pytest
import torch

from lib.model import build_model
from lib.training.optim import (
    build_optimizer,
    fixed_blocks,
    learning_rate_factor,
    loss_scale,
    parameter_groups,
    set_learning_rates,
    uses_hardest,
)
from tests.helpers import HEADS, small_config


@pytest.mark.parametrize(
    ("embedding_warmup", "backbone_warmup", "blocks"),
    [
        (1, 0, [4, 0, 0, 0, 0, 0]),  # the reference run
        (0, 0, [0, 0, 0, 0, 0, 0]),
        (3, 0, [4, 4, 4, 0, 0, 0]),
        (1, 1, [4, 3, 2, 1, 0, 0]),
        (0, 1, [3, 2, 1, 0, 0, 0]),
        (1, 2, [4, 3, 3, 2, 2, 1, 1, 0, 0]),
        (2, 3, [4, 4, 3, 3, 3, 2, 2, 2, 1, 1, 1, 0]),
        (99, 1, [4, 4, 4, 4]),
    ],
)
def test_the_backbone_thaws_from_the_top_a_block_for_each_warm_up(embedding_warmup, backbone_warmup, blocks):
    assert [fixed_blocks(epoch, embedding_warmup, backbone_warmup) for epoch in range(len(blocks))] == blocks


@pytest.mark.parametrize(
    ("epoch", "warmup", "grid", "scales"),
    [
        (0, 1, True, [1, 1, 1, 1]),
        (1, 1, True, [0, 0.25, 0.5, 0.75]),
        (2, 1, True, [1, 1, 1, 1]),
        (0, 0, True, [0, 0.25, 0.5, 0.75]),
        (1, 1, False, [1, 1, 1, 1]),
    ],
)
def test_the_loss_ramps_up_in_the_first_epoch_of_an_unfrozen_backbone_alone(epoch, warmup, grid, scales):
    assert [loss_scale(epoch, step, 4, warmup, grid) for step in range(4)] == scales


@pytest.mark.parametrize(
    ("lr_update", "factors"), [(2, [1, 1, 0.1, 0.1]), (0, [0.1] * 4), (9, [1] * 4), (3, [1, 1, 1, 0.1])]
)
def test_the_learning_rate_is_a_tenth_from_lr_update_on(lr_update, factors):
    assert [learning_rate_factor(epoch, lr_update) for epoch in range(4)] == factors


@pytest.mark.parametrize(
    ("warmup", "max_violation", "hardest"),
    [(1, False, [False, True, True]), (0, False, [True] * 3), (2, False, [False, False, True]), (2, True, [True] * 3)],
)
def test_hardest_negatives_come_after_the_warm_up_or_at_once_with_max_violation(warmup, max_violation, hardest):
    assert [uses_hardest(epoch, warmup, max_violation) for epoch in range(3)] == hardest


@pytest.mark.parametrize("grid", [False, True])
@pytest.mark.parametrize("similarity", HEADS)
def test_every_parameter_is_in_exactly_one_group(similarity, grid):
    model = build_model(small_config(similarity, grid))
    grouped = [id(p) for group in parameter_groups(model, 1e-3) for p in group["params"]]
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == {id(p) for p in model.parameters()}


@pytest.mark.parametrize("grid", [False, True])
@pytest.mark.parametrize("similarity", HEADS)
def test_bert_and_backbone_have_their_own_rates_and_all_else_the_full_one(similarity, grid):
    model = build_model(small_config(similarity, grid))
    groups = {group["name"]: group for group in parameter_groups(model, 5e-4, backbone_lr_factor=0.02)}
    assert list(groups) == ["head", "bert", *(["backbone"] if grid else [])]
    expected = {"head": 5e-4, "bert": 5e-5} | ({"backbone": 1e-5} if grid else {})
    assert {name: group["lr"] for name, group in groups.items()} == pytest.approx(expected)
    assert {name: group["base_lr"] for name, group in groups.items()} == pytest.approx(expected)
    rate_of = {id(p): group["name"] for group in groups.values() for p in group["params"]}
    for name, parameter in model.named_parameters():
        own = next((part for part in ("bert", "backbone") if f".{part}." in name), "head")
        assert rate_of[id(parameter)] == own, name  # the head of similarity and every projection train at the full rate


def test_a_frozen_backbone_keeps_its_place_in_the_optimizer():
    model = build_model(small_config(grid=True))
    model.image_encoder.backbone.set_trainable_stages(4)
    optimizer = build_optimizer(model, "adam", 1e-3)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(model.parameters()))


def test_adam_is_adamw_with_weight_decay_on_everything():
    optimizer = build_optimizer(build_model(small_config()), "adam", 1e-3)
    assert type(optimizer) is torch.optim.AdamW
    assert [group["weight_decay"] for group in optimizer.param_groups] == [1e-4] * 2


@pytest.mark.parametrize("grid", [False, True])
def test_sgd_has_momentum_and_nesterovs_for_grid_encoders(grid):
    optimizer = build_optimizer(build_model(small_config(grid=grid)), "sgd", 1e-3)
    assert type(optimizer) is torch.optim.SGD
    assert all(group["momentum"] == 0.9 and group["nesterov"] == grid for group in optimizer.param_groups)


def test_an_unknown_optimizer_is_refused():
    with pytest.raises(ValueError, match="'lamb', expected adam or sgd"):
        build_optimizer(build_model(small_config()), "lamb", 1e-3)


def test_setting_the_rates_of_an_epoch_depends_on_the_epoch_alone():
    optimizer = build_optimizer(build_model(small_config(grid=True)), "adam", 1e-3, 0.01)
    for epoch, factor in ((0, 1), (7, 0.1), (5, 0.1), (4, 1), (9, 0.1)):
        set_learning_rates(optimizer, epoch, lr_update=5)
        rates = [group["lr"] for group in optimizer.param_groups]
        assert rates == pytest.approx([1e-3 * factor, 1e-4 * factor, 1e-5 * factor])
