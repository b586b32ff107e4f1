"""GPO pooling against the slow reference."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lib.core.fragments import Fragments
from lib.similarity.gpo import GPO, positional_encoding
from tests import reference


def ragged(lengths, size, dtype=torch.float64) -> Fragments:
    lengths = torch.tensor(lengths)
    return Fragments(torch.randn(len(lengths), 6, size, dtype=dtype), torch.arange(6) < lengths[:, None])


def test_pooling_equals_the_slow_reference_in_value_and_gradient():
    gpo = GPO().double()
    parameters = {name: p.detach().clone().requires_grad_() for name, p in gpo.named_parameters()}
    fragments = ragged([6, 1, 4, 4, 2], 5)
    fragments.features.requires_grad_()
    expected = torch.stack(
        [reference.gpo_pool(x[m], int(m.sum()), parameters) for x, m in zip(*fragments, strict=True)]
    )
    weights = torch.randn_like(expected)
    (expected * weights).sum().backward()
    gradient, fragments.features.grad = fragments.features.grad, None
    pooled = gpo(fragments)
    (pooled * weights).sum().backward()
    torch.testing.assert_close(pooled, expected, rtol=0, atol=1e-9)
    torch.testing.assert_close(fragments.features.grad, gradient, rtol=0, atol=1e-9)
    for name, parameter in gpo.named_parameters():
        torch.testing.assert_close(parameter.grad, parameters[name].grad, rtol=0, atol=1e-9)


def test_dropped_fragments_may_stand_anywhere():
    gpo = GPO()
    x = torch.randn(1, 6, 4)
    kept = torch.tensor([[True, False, True, True, False, True]])
    torch.testing.assert_close(gpo(Fragments(x, kept)), gpo(Fragments.full(x[:, kept[0]])))


@pytest.mark.parametrize(("length", "size"), [(1, 32), (13, 32), (5, 8)])
def test_positional_encoding_is_that_of_the_reference(length, size):
    expected = reference.positional_encoding(length, size)
    torch.testing.assert_close(positional_encoding(length, size, torch.float64), expected, rtol=0, atol=1e-12)


def test_weights_are_computed_once_for_each_number_of_fragments(monkeypatch):
    gpo, asked = GPO(), []
    original = gpo.pool_weights
    monkeypatch.setattr(gpo, "pool_weights", lambda lengths: (asked.append(lengths.tolist()), original(lengths))[1])
    gpo(ragged([4, 2, 4, 6, 2], 3, torch.float32))
    assert asked == [[6, 4, 2]]


def test_weights_add_up_to_one_and_are_zero_beyond_the_fragments():
    weights = GPO().pool_weights(np.array([6, 3, 1]))
    torch.testing.assert_close(weights.sum(1), torch.ones(3))
    assert weights.shape == (3, 6) and weights[2, 1:].tolist() == [0.0] * 5 and (weights[1, 3:] == 0).all()
