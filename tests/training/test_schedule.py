"""The schedules as tables."""

from __future__ import annotations

import dataclasses
import math

import pytest

from lib.training.schedule import CosineSchedule, Schedule


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
    schedule = Schedule(
        embedding_warmup_epochs=embedding_warmup, backbone_warmup_epochs=backbone_warmup, staged=True
    )  # fmt: skip
    for step in (0, 3):  # one number for all steps of an epoch
        assert [schedule.at(epoch, step, 4).fixed_blocks for epoch in range(len(blocks))] == blocks


def test_nothing_is_fixed_where_there_are_no_pretrained_blocks():
    schedule = Schedule(embedding_warmup_epochs=2, backbone_warmup_epochs=2, staged=False)
    assert [schedule.at(epoch, 0, 4).fixed_blocks for epoch in range(6)] == [0] * 6


@pytest.mark.parametrize(
    ("epoch", "warmup", "staged", "scales"),
    [
        (0, 1, True, [1, 1, 1, 1]),
        (1, 1, True, [0, 0.25, 0.5, 0.75]),
        (2, 1, True, [1, 1, 1, 1]),
        (0, 0, True, [0, 0.25, 0.5, 0.75]),
        (1, 1, False, [1, 1, 1, 1]),
    ],
)
def test_the_loss_ramps_up_in_the_first_epoch_of_an_unfrozen_backbone_alone(epoch, warmup, staged, scales):
    schedule = Schedule(embedding_warmup_epochs=warmup, staged=staged)
    assert [schedule.at(epoch, step, 4).loss_scale for step in range(4)] == scales


@pytest.mark.parametrize(
    ("lr_update", "factors"), [(2, [1, 1, 0.1, 0.1]), (0, [0.1] * 4), (9, [1] * 4), (3, [1, 1, 1, 0.1])]
)
def test_the_learning_rate_is_a_tenth_from_lr_update_on(lr_update, factors):
    schedule = Schedule(lr_update=lr_update)
    assert [schedule.at(epoch, 2, 5).learning_rate for epoch in range(4)] == factors


@pytest.mark.parametrize(
    ("warmup", "max_violation", "hardest"),
    [(1, False, [False, True, True]), (0, False, [True] * 3), (2, False, [False, False, True]), (2, True, [True] * 3)],
)
def test_hardest_negatives_come_after_the_warm_up_or_at_once_with_max_violation(warmup, max_violation, hardest):
    schedule = Schedule(vse_mean_warmup_epochs=warmup, max_violation=max_violation)
    assert [schedule.at(epoch, 0, 5).hardest for epoch in range(3)] == hardest


def test_a_phase_follows_from_epoch_and_step_alone_in_any_order():
    schedule = Schedule(2, 1, False, 1, 1, True)
    places = [(epoch, step) for epoch in range(4) for step in range(3)]
    forward = [schedule.at(*place, 3) for place in places]
    assert [schedule.at(*place, 3) for place in reversed(places)] == forward[::-1]
    with pytest.raises(dataclasses.FrozenInstanceError):
        schedule.lr_update = 9


def test_the_cosine_schedule_rises_from_0_over_its_warm_up_and_falls_to_0_behind_the_last_step():
    schedule = CosineSchedule(num_epochs=2, warmup=0.1)
    rates = [schedule.at(epoch, step, 10).learning_rate for epoch in range(2) for step in range(10)]
    assert rates[:3] == [0.0, 0.5, 1.0] and rates[11] == pytest.approx(0.5)
    assert (
        rates[-1] == pytest.approx((1 + math.cos(math.pi * 17 / 18)) / 2)
        and sorted(rates[2:], reverse=True) == rates[2:]
    )
    assert CosineSchedule(num_epochs=1, warmup=0.0).at(0, 0, 4).learning_rate == 1.0
    assert CosineSchedule(num_epochs=1, warmup=1.0).at(0, 3, 4).learning_rate == 0.75


def test_the_cosine_schedule_has_the_stages_of_the_other_without_its_ramp():
    cosine, step = (
        CosineSchedule(staged=True, embedding_warmup_epochs=1),
        Schedule(staged=True, embedding_warmup_epochs=1),
    )
    assert [cosine.at(epoch, 1, 4).fixed_blocks for epoch in range(3)] == [4, 0, 0]
    assert [cosine.at(epoch, 1, 4).loss_scale for epoch in range(3)] == [1.0] * 3
    assert step.at(1, 1, 4).loss_scale == 0.25
