"""Measure-unit aggregators of ESL (sections on heuristic and adaptive aggregation): how level k-1 becomes level k.

Letters: N items, L fragments per item, d_k size of level k, D = d_0, E = sum of all d_k.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lib.core.errors import InputError
from lib.core.functional import l2_normalize

AGGREGATIONS = 8  # 9 levels with level 0


def level_sizes(embed_size: int, kernel_size: int) -> list[int]:
    """Sizes d_0 ... d_8, floor(embed_size / kernel_size^k) each; InputError when one would be empty."""
    if kernel_size < 2:
        raise InputError(f"--kernel_size is {kernel_size}, expected at least 2")
    smallest = kernel_size**AGGREGATIONS
    if embed_size < smallest:
        raise InputError(
            f"--embed_size is {embed_size}, but an ESL head with --kernel_size {kernel_size} needs at least {smallest} "
            f"({AGGREGATIONS} aggregations); give a larger one"
        )
    return [embed_size // kernel_size**k for k in range(AGGREGATIONS + 1)]


class Aggregator(nn.Module):
    """Builds all levels of one modality. Subclasses fill `weights` and say how one level comes from the one before."""

    def __init__(self, sizes: list[int], kernel_size: int):
        super().__init__()
        self.sizes, self.kernel_size = sizes, kernel_size
        self.weights = nn.ParameterList()

    def aggregate(self, k: int, z: Tensor) -> Tensor:
        """Level k (..., d_k), not normalised, from z (..., d_{k-1})."""
        raise NotImplementedError

    def forward(self, x: Tensor, renormalize: bool) -> Tensor:
        """All levels side by side, each l2-normalised: x (..., D) -> (..., E).

        `renormalize` continues the chain from the normalised level (images), else from the plain one (captions).
        Their difference is only visible through the 1e-8 of the norm, but released scores contain it.
        """
        levels, z = [x], x
        for k in range(1, len(self.sizes)):
            z = self.aggregate(k, z)  # (..., d_k)
            level = l2_normalize(z)
            levels.append(level)
            z = level if renormalize else z
        return torch.cat(levels, -1)  # (..., E)


class AdaptiveAggregator(Aggregator):
    """ESL-A: z_k = A_k z_{k-1}, where each row of A_k keeps the two largest entries of a learned, normalised row."""

    def __init__(self, sizes: list[int], kernel_size: int):
        super().__init__(sizes, kernel_size)
        self.weights.extend(torch.randn(out, into) for into, out in zip(sizes, sizes[1:], strict=False))

    def sparse_matrix(self, k: int) -> Tensor:
        """A_k (d_k, d_{k-1}); entries that tie with the second largest of their row all stay."""
        rows = l2_normalize(self.weights[k - 1])
        second = rows.topk(min(2, rows.shape[1]), dim=1).values[:, -1:]  # (d_k, 1)
        return rows.masked_fill(rows < second, 0.0)

    def aggregate(self, k: int, z: Tensor) -> Tensor:
        return z @ self.sparse_matrix(k).T


class HeuristicAggregator(Aggregator):
    """ESL-H: neighbouring values are merged by a learned kernel of `kernel_size` taps, the sum of four channels."""

    def __init__(self, sizes: list[int], kernel_size: int, channels: int = 4):
        super().__init__(sizes, kernel_size)
        convolutions = (nn.Conv1d(1, channels, kernel_size, stride=kernel_size, bias=False) for _ in sizes[1:])
        self.weights.extend(convolution.weight for convolution in convolutions)

    def aggregate(self, k: int, z: Tensor) -> Tensor:
        taps = self.weights[k - 1].sum((0, 1)).unbind()  # s scalars
        size = self.sizes[k]
        windows = z[..., : size * self.kernel_size].unflatten(-1, (size, self.kernel_size))  # (..., d_k, s)
        return sum(a * values for a, values in zip(taps, windows.unbind(-1), strict=True))  # (..., d_k)
