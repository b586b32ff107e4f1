"""GPO pooling against the slow reference and the golden values."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lib.core.fragments import Fragments
from lib.similarity.gpo import GPO, positional_encoding
from tests import reference
from tests.conftest import SHARED, needs_shared


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


def test_padding_changes_neither_the_pooled_vector_nor_its_gradient():
    gpo = GPO()
    fragments = ragged([6, 3, 5], 4, torch.float32)
    x = fragments.features.requires_grad_()
    expected = gpo(fragments)
    expected.sum().backward()
    gradient, x.grad = x.grad, None
    padded = torch.nn.functional.pad(x, (0, 0, 0, 3), value=9.0)
    found = gpo(Fragments(padded, torch.nn.functional.pad(fragments.mask, (0, 3))))
    found.sum().backward()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(x.grad, gradient, rtol=0, atol=1e-6)
    assert (x.grad[~fragments.mask] == 0).all()


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


def test_one_fragment_is_pooled_to_itself():
    x = torch.randn(2, 1, 4)
    torch.testing.assert_close(GPO()(Fragments.full(x)), x[:, 0])


@needs_shared
def test_gpo_agrees_with_the_released_model_in_value_and_gradient():
    golden = {k: torch.tensor(v) for k, v in np.load(SHARED / "golden/golden_gpo.npz").items()}
    gpo = GPO()
    gpo.load_state_dict({k.removeprefix("gpo."): v for k, v in golden.items() if k.startswith("gpo.")})
    mask = torch.arange(golden["features"].shape[1]) < golden["lengths"][:, None]
    features = golden["features"].requires_grad_()
    pooled = gpo(Fragments(features, mask))
    (pooled * golden["fixed_weights"]).sum().backward()

    def close(found, name, tolerance):
        assert (found - golden[name]).abs().max() <= tolerance * golden[name].abs().max(), name

    close(positional_encoding(13, 32), "pe", 1e-5)
    close(pooled, "pooled", 1e-5)
    lengths, which = np.unique(-golden["lengths"].numpy(), return_inverse=True)  # longest first
    close(gpo.pool_weights(-lengths)[which][..., None], "pool_weights", 1e-5)
    close(features.grad, "grad.features", 1e-4)
    for name, parameter in gpo.named_parameters():
        close(parameter.grad, "grad.gpo." + name, 1e-4)
