"""One vector an item: pooled from its fragments, compared by dot products.

Letters: B images, C captions, N items, L fragments per item, D embedding size.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lib.core.fragments import Fragments, Prepared
from lib.core.functional import masked_mean


class MeanPool(nn.Module):
    """The mean of an item's fragments: Fragments (N, L, D) -> (N, D)."""

    def forward(self, fragments: Fragments) -> Tensor:
        return masked_mean(fragments.features, fragments.mask)  # (N, D)


def mean_fragment(fragments: Fragments) -> Fragments:
    """The mean of an item's fragments as its only one; of a single fragment, itself: (N, L, D) -> (N, 1, D)."""
    return Fragments.full(MeanPool()(fragments)[:, None])  # (N, 1, D)


def dot_products(images: Prepared, captions: Prepared) -> Tensor:
    """Scores (B, C) of items of one fragment each, in float32 at least: bfloat16 scores would tie."""
    dtype = torch.promote_types(images.units.dtype, torch.float32)
    return images.units[:, 0].to(dtype) @ captions.units[:, 0].to(dtype).T  # (B, C)
