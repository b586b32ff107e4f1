"""The hinge-triplet loss and the table of losses."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from lib.core.config import ModelConfig
from lib.training import LOSSES
from lib.training.losses import HingeTriplet, build_loss
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


@pytest.mark.parametrize(("dtype", "suffix", "tolerance"), [(torch.float32, "", 1e-6), (torch.float64, "_f64", 1e-12)])
@needs_shared
def test_the_contrastive_loss_agrees_with_the_released_code_in_value_and_gradients(dtype, suffix, tolerance):
    file = np.load(SHARED / "golden" / "golden_clip_loss.npz")
    loss_of = LOSSES["contrastive"].make(256).to(dtype)
    loss_of.logit_scale.data.fill_(float(file["logit_scale"]))
    scores = torch.from_numpy(file["sims"]).to(dtype).requires_grad_()
    loss = loss_of(scores)
    loss.backward()
    for found, name in ((loss, "loss"), (scores.grad, "grad.sims"), (loss_of.logit_scale.grad, "grad.logit_scale")):
        expected = torch.from_numpy(file[name + suffix])
        assert (found.detach() - expected).abs().max() <= tolerance * expected.abs().max()


def test_the_contrastive_loss_is_the_mean_cross_entropy_of_both_directions():
    scores, loss_of = torch.randn(4, 4).double(), LOSSES["contrastive"].make(256).double()
    scaled = (scores / 0.07).exp()
    rows = [-math.log(scaled[i, i] / scaled[i].sum()) for i in range(4)]
    columns = [-math.log(scaled[i, i] / scaled[:, i].sum()) for i in range(4)]
    assert float(loss_of(scores).detach()) == pytest.approx((sum(rows) + sum(columns)) / 8, rel=1e-6)
    assert torch.equal(loss_of(scores, hardest=True), loss_of(scores, hardest=False))


def test_the_scale_is_kept_below_100_after_a_step_and_not_before():
    loss_of = LOSSES["contrastive"].make(256)
    loss_of.logit_scale.data.fill_(4.7)
    loss_of(torch.randn(3, 3)).backward()
    assert float(loss_of.logit_scale.detach()) == pytest.approx(4.7)
    loss_of.after_step()
    assert float(loss_of.logit_scale.detach()) == pytest.approx(math.log(100))


def test_a_loss_trains_the_parameter_that_the_text_encoder_brings_for_it():
    class Text(torch.nn.Module):
        scale = torch.nn.Parameter(torch.tensor(3.0))

        def loss_parameters(self):
            return {"logit_scale": self.scale}

    model = SimpleNamespace(text_encoder=Text(), config=ModelConfig())
    assert build_loss("contrastive", model, {}).logit_scale is Text.scale
    assert list(build_loss("hinge", model, {"margin": 0.1}).parameters()) == []
