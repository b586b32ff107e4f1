"""Small functions that everything shares: l2 normalisation and masked reductions."""

from __future__ import annotations

import torch
from torch import Tensor

EPSILON = 1e-8  # added to every norm


def l2_normalize(x: Tensor, dim: int = -1) -> Tensor:
    """x / (sqrt(sum x^2) + 1e-8) along `dim`, as in the released code.

    A zero vector stays zero and gets gradient 0. (The released code gives NaN there; the limit, 1e8 times the incoming
    gradient, would overflow in a chain of nine normalised levels.)
    """
    norm = torch.linalg.vector_norm(x, dim=dim, keepdim=True)
    return x / torch.where(norm > 0, norm + EPSILON, torch.inf)


def masked_softmax(x: Tensor, mask: Tensor, dim: int = -1) -> Tensor:
    """Softmax over the entries where `mask` is True; the others get weight 0."""
    return x.masked_fill(~mask, -torch.inf).softmax(dim).masked_fill(~mask, 0.0)


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean of the real fragments: x (N, L, D), mask (N, L) -> (N, D)."""
    total = x.masked_fill(~mask[..., None], 0.0).sum(1)  # (N, D)
    return total / mask.sum(1, keepdim=True).clamp(min=1)
