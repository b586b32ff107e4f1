"""What travels between the rooms: Fragments (regions, grid cells, word pieces) and Tokens (captions before encoding).

Letters: N items, L fragments per item (padded), C captions, W tokens per caption (padded), D embedding size.
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
    def count(self) -> int:
        """How many items there are, N."""
        return len(self.mask)

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

    def chunk(self, parts: int) -> list[Fragments]:
        """The items in at most `parts` equal shares."""
        return [Fragments(*share) for share in zip(*(x.chunk(parts) for x in self), strict=True)]

    @classmethod
    def cat(cls, parts: list[Fragments]) -> Fragments:
        """Items of equally padded parts, one after another."""
        return parts[0] if len(parts) == 1 else cls(*map(torch.cat, zip(*parts, strict=True)))


class Tokens(NamedTuple):
    """Token ids (C, W), padded at the end, and how many of each caption are real (C,), which stays on the CPU."""

    ids: Tensor
    lengths: Tensor

    @property
    def count(self) -> int:
        """How many captions there are, C."""
        return len(self.ids)

    @property
    def mask(self) -> Tensor:
        """True where a token is real (C, W), on the device of the ids."""
        places = torch.arange(self.ids.shape[1], device=self.ids.device)
        return places < self.lengths.to(self.ids.device, non_blocking=True)[:, None]  # (C, W)

    def to(self, device: torch.device, non_blocking: bool = False) -> Tokens:
        """Move the ids to a device; the lengths are needed on the CPU."""
        return Tokens(self.ids.to(device, non_blocking=non_blocking), self.lengths)

    def chunk(self, parts: int) -> list[Tokens]:
        """The captions in at most `parts` equal shares."""
        return [Tokens(*share) for share in zip(self.ids.chunk(parts), self.lengths.chunk(parts), strict=True)]
