"""Normalisation and masked reductions."""

from __future__ import annotations

import torch

from lib.functional import l2_normalize, masked_mean, masked_softmax
from tests import reference


def test_l2_normalize_is_the_released_formula_and_finite_at_zero():
    x = torch.randn(5, 7, dtype=torch.float64)
    x[2] = 0
    x[3] *= 1e-8  # where the 1e-8 of the denominator counts
    x.requires_grad_()
    y = l2_normalize(x)
    torch.testing.assert_close(y, reference.l2norm(x), rtol=1e-12, atol=0)
    y.sum().backward()
    assert x.grad.isfinite().all() and (x.grad[2] == 0).all() and (x.grad[3] != 0).any()


def test_masked_entries_take_no_part_in_softmax_and_mean():
    x, mask = torch.randn(2, 4), torch.tensor([[True, False, True, False], [True] * 4])
    weights = masked_softmax(x, mask)
    torch.testing.assert_close(weights[0, [0, 2]], x[0, [0, 2]].softmax(0))
    assert (weights[0, [1, 3]] == 0).all()
    values = torch.randn(2, 4, 3)
    torch.testing.assert_close(masked_mean(values, mask)[0], values[0, [0, 2]].mean(0))
