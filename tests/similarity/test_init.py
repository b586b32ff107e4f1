"""The table of heads: what each row builds, its options and their defaults."""

from __future__ import annotations

import pytest
import torch

from lib.similarity import HEADS
from lib.similarity.aggregators import AdaptiveAggregator, HeuristicAggregator
from lib.similarity.esl import ESL, PlainContribution, ThresholdContribution
from lib.similarity.esl_clip import ESLCLIP, MeanContribution
from lib.similarity.head import SimilarityHead
from lib.similarity.vse_infty import VSEInfinity

ESL_OPTIONS = {"kernel_size": 2, "no_imgnorm": False, "no_txtnorm": False}
ROWS = {
    "esl_a": ("ESL-A", ESL, ESL_OPTIONS),
    "esl_h": ("ESL-H", ESL, ESL_OPTIONS),
    "vse_infty": ("VSE∞", VSEInfinity, {"no_imgnorm": False, "no_txtnorm": False}),
    "esl_clip_a": ("CLIP-based ESL-A", ESLCLIP, ESL_OPTIONS),
    "esl_clip_h": ("CLIP-based ESL-H", ESLCLIP, ESL_OPTIONS),
    "cosine": ("cosine similarity", VSEInfinity, {"no_imgnorm": False, "no_txtnorm": False}),
}


def test_the_heads_are_those_of_the_papers():
    assert list(HEADS) == list(ROWS)


@pytest.mark.parametrize("name", ROWS)
def test_a_row_builds_its_head_with_the_defaults_of_its_options(name):
    label, kind, options = ROWS[name]
    part = HEADS[name]
    head = part.make(256)
    assert part.label == label and type(head) is kind and isinstance(head, SimilarityHead)
    assert part.complete(256, {}) == options
    assert (head.no_imgnorm, head.no_txtnorm) == (False, False)


@pytest.mark.parametrize("name", ROWS)
def test_given_options_reach_the_head_and_leave_the_others_alone(name):
    given = {"no_imgnorm": True}
    head = HEADS[name].make(256, **given)
    assert (head.no_imgnorm, head.no_txtnorm) == (True, False)
    options = HEADS[name].complete(256, given)
    HEADS[name].build(256, options)
    assert options == ROWS[name][2] | given and given == {"no_imgnorm": True}  # building takes nothing out of them


@pytest.mark.parametrize(
    ("name", "aggregator", "contribution"),
    [
        ("esl_a", AdaptiveAggregator, PlainContribution),
        ("esl_h", HeuristicAggregator, ThresholdContribution),
        ("esl_clip_a", AdaptiveAggregator, MeanContribution),
        ("esl_clip_h", HeuristicAggregator, MeanContribution),
    ],
)
def test_the_esl_heads_differ_in_aggregation_and_contribution(name, aggregator, contribution):
    head = HEADS[name].make(256)
    assert type(head.image_aggregator) is type(head.caption_aggregator) is aggregator
    assert head.image_aggregator is not head.caption_aggregator
    assert type(head.contribution) is contribution and len(head.contribution()) == len(head.sizes) == 9


@pytest.mark.parametrize("name", [name for name in ROWS if name != "cosine"])  # which has nothing to draw
def test_the_same_seed_builds_the_same_head_and_another_seed_another(name):
    states = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        states.append(HEADS[name].make(256).state_dict())
    same, other = (all(torch.equal(v, state[k]) for k, v in states[0].items()) for state in states[1:])
    assert same and not other
