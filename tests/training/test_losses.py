"""The hinge-triplet loss and the table of losses."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lib.training.losses import LOSSES, HingeTriplet
from tests import reference
from tests.conftest import SHARED, needs_shared


@pytest.mark.parametrize("hardest", [False, True])
def test_loss_equals_the_double_loop(hardest):
    scores = torch.randn(9, 9, dtype=torch.float64, requires_grad=True)
    loss = HingeTriplet(0.2)(scores, hardest)
    expected = reference.hinge_triplet_loss(scores, 0.2, hardest)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(*(torch.autograd.grad(x, scores)[0] for x in (loss, expected)))


@needs_shared
@pytest.mark.parametrize(("name", "hardest"), [("sum", False), ("max", True)])
def test_loss_agrees_with_the_released_code_in_value_and_gradient(name, hardest):
    golden = np.load(SHARED / "golden/golden_loss.npz")
    scores = torch.tensor(golden["scores"], requires_grad=True)
    loss = HingeTriplet(float(golden["margin"]))(scores, hardest)
    loss.backward()
    assert abs(float(loss.detach()) - golden[f"{name}.loss_f64"]) <= 1e-5 * golden[f"{name}.loss_f64"]
    expected = torch.tensor(golden[f"{name}.grad"])
    assert (scores.grad - expected).abs().max() <= 1e-4 * expected.abs().max()


def test_a_violation_counts_in_both_directions_and_only_beyond_the_margin():
    scores = torch.tensor([[1.0, 0.9], [0.5, 1.0]])
    assert float(HingeTriplet(0.2)(scores, True)) == pytest.approx(0.1 + 0.1)


def test_scores_that_are_not_square_are_refused():
    with pytest.raises(ValueError, match="square"):
        HingeTriplet()(torch.zeros(2, 3))


def test_a_loss_is_made_from_its_row_with_the_given_options_and_the_defaults_of_the_others():
    scores = torch.randn(6, 6)
    for given, margin in (({}, 0.2), ({"margin": 0.7}, 0.7)):
        loss = LOSSES["hinge"].make(256, **given)
        assert float(loss(scores, True)) == pytest.approx(float(reference.hinge_triplet_loss(scores, margin, True)))
