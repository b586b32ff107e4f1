"""The backward pass that the tests on fake tensors walk, against torch's own."""

from __future__ import annotations

import pytest
import torch

from lib.model import build_model
from lib.training.losses import HingeTriplet
from tests import python_autograd
from tests.helpers import HEADS, small_batch, small_config

pytestmark = pytest.mark.usefixtures("single_thread")


@pytest.mark.parametrize("grid", [False, True])
@pytest.mark.parametrize("similarity", HEADS)
def test_the_gradients_are_those_of_torchs_engine(similarity, grid):
    model, batch = build_model(small_config(similarity, grid, dropout=0.0)), small_batch(grid)
    torch.manual_seed(0)
    HingeTriplet()(model(*batch)).backward()
    expected = {name: p.grad for name, p in model.named_parameters()}
    model.zero_grad()
    torch.manual_seed(0)
    python_autograd.backward(HingeTriplet()(model(*batch)))
    for name, p in model.named_parameters():
        torch.testing.assert_close(
            p.grad, expected[name], rtol=1e-4, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}"
        )
