"""Fragments: regions, grid cells and word pieces all travel as features with a mask.

Letters: N items, L fragments per item (padded), D embedding size.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class Fragments(NamedTuple):
    """Features (N, L, D) of N items and a mask (N, L), True where a fragment is real. Padding influences nothing."""

    features: Tensor
    mask: Tensor

    @classmethod
    def full(cls, features: Tensor) -> Fragments:
        """Fragments without padding."""
        return cls(features, torch.ones(features.shape[:2], dtype=torch.bool, device=features.device))

    @property
    def lengths(self) -> Tensor:
        """Number of real fragments of each item (N,)."""
        return self.mask.sum(1)

    def map(self, function: Callable[[Tensor], Tensor]) -> Fragments:
        """Apply `function` (n, D) -> (n, K) to the real fragments alone; padding becomes 0 and takes no part in it."""
        flat = self.features.flatten(0, 1)  # (N * L, D)
        if self.mask.all():
            return Fragments(function(flat).unflatten(0, self.mask.shape), self.mask)  # (N, L, K)
        places = self.mask.flatten().nonzero()[:, 0]  # (n,)
        mapped = function(flat.index_select(0, places))  # (n, K)
        padded = mapped.new_zeros(len(flat), mapped.shape[1]).index_copy(0, places, mapped)  # (N * L, K)
        return Fragments(padded.unflatten(0, self.mask.shape), self.mask)  # (N, L, K)

    def to(self, *args, **kwargs) -> Fragments:
        """Move both parts to a device (dtype arguments apply to the features alone)."""
        features = self.features.to(*args, **kwargs)
        return Fragments(features, self.mask.to(features.device, non_blocking=kwargs.get("non_blocking", False)))

    def select(self, items) -> Fragments:
        """The items that an index, slice or boolean mask names."""
        return Fragments(self.features[items], self.mask[items])
