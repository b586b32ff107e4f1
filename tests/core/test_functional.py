"""Normalisation and masked reductions."""

from __future__ import annotations

import pytest
import torch

from lib.core.functional import EPSILON, l2_normalize, masked_mean, masked_softmax
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


def test_the_gradient_of_l2_normalize_is_that_of_the_released_formula():
    x = torch.randn(5, 7, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(5, 7, dtype=torch.float64)
    (found,) = torch.autograd.grad((l2_normalize(x) * weights).sum(), x)
    (expected,) = torch.autograd.grad((reference.l2norm(x) * weights).sum(), x)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dim", [0, 1, 2, -1])
def test_l2_normalize_works_along_any_dimension(dim):
    x = torch.randn(3, 4, 5, dtype=torch.float64)
    torch.testing.assert_close(l2_normalize(x, dim), reference.l2norm(x, dim), rtol=1e-12, atol=0)


def test_the_number_added_to_every_norm_is_that_of_the_released_code():
    assert EPSILON == reference.EPS == 1e-8


def test_masked_entries_take_no_part_in_softmax_and_mean():
    x, mask = torch.randn(2, 4), torch.tensor([[True, False, True, False], [True] * 4])
    weights = masked_softmax(x, mask)
    torch.testing.assert_close(weights[0, [0, 2]], x[0, [0, 2]].softmax(0))
    torch.testing.assert_close(weights[1], x[1].softmax(0))
    assert (weights[0, [1, 3]] == 0).all()
    values = torch.randn(2, 4, 3)
    torch.testing.assert_close(masked_mean(values, mask)[0], values[0, [0, 2]].mean(0))
    torch.testing.assert_close(masked_mean(values, mask)[1], values[1].mean(0))


def test_what_masked_entries_hold_does_not_matter():
    x, mask = torch.randn(2, 4, 3), torch.tensor([[True, False, True, False], [True] * 4])
    spoilt = x.masked_fill(~mask[..., None], torch.nan)
    assert torch.equal(masked_mean(spoilt, mask), masked_mean(x, mask))
    assert torch.equal(masked_softmax(spoilt[..., 0], mask), masked_softmax(x[..., 0], mask))


@pytest.mark.parametrize("dim", [0, 1])
def test_masked_softmax_works_along_any_dimension(dim):
    x, mask = torch.randn(3, 4), torch.rand(3, 4) < 0.7
    mask[0] = mask[:, 0] = True
    torch.testing.assert_close(masked_softmax(x, mask, dim).sum(dim), torch.ones(x.shape[1 - dim]))


def test_where_nothing_is_real_softmax_and_mean_are_zero_with_finite_gradients():
    x, mask = torch.randn(2, 4, requires_grad=True), torch.tensor([[False] * 4, [True] * 4])
    weights, mean = masked_softmax(x, mask), masked_mean(x[..., None], mask)
    assert (weights[0] == 0).all() and (mean[0] == 0).all()
    ((weights * torch.arange(4.0)).sum() + mean.sum()).backward()
    assert x.grad.isfinite().all() and (x.grad[0] == 0).all() and (x.grad[1] != 0).any()


def test_softmax_of_large_logits_does_not_overflow():
    weights = masked_softmax(torch.tensor([[1e4, 1e4 - 1, 5e4]]), torch.tensor([[True, True, False]]))
    torch.testing.assert_close(weights[0, :2], torch.tensor([1.0, 0.0]).softmax(0))
    assert weights[0, 2] == 0
