"""Losses of the scores of a batch. A new one is a module, and a row of LOSSES.

A loss takes scores (B, B), whose diagonal holds the positives, and whether only the hardest negatives count. Its
parameters, if it has any, are trained with the model's.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lib.command_line import not_negative
from lib.config import Option, Part


class HingeTriplet(nn.Module):
    """The hinge-triplet loss of VSE++ and its successors: a sum over the batch, not a mean."""

    def __init__(self, margin: float = 0.2):
        super().__init__()
        self.margin = margin

    def forward(self, scores: Tensor, hardest: bool = True) -> Tensor:
        """`hardest` keeps the hardest negative caption of each image and the hardest negative image of each caption
        (VSE++, eq. 6); otherwise all violations count. Raises ValueError when the scores are not square."""
        if scores.ndim != 2 or scores.shape[0] != scores.shape[1]:
            raise ValueError(f"the hinge-triplet loss needs square scores, got {tuple(scores.shape)}")
        positives = scores.diagonal()  # (B,)
        diagonal = torch.eye(len(scores), dtype=torch.bool, device=scores.device)
        cost_caption = (self.margin + scores - positives[:, None]).clamp(min=0).masked_fill(diagonal, 0.0)
        cost_image = (self.margin + scores - positives[None, :]).clamp(min=0).masked_fill(diagonal, 0.0)
        if hardest:
            return cost_caption.amax(1).sum() + cost_image.amax(0).sum()
        return cost_caption.sum() + cost_image.sum()


LOSSES = {
    "hinge": Part(
        "hinge-triplet loss",
        lambda embed_size, options: HingeTriplet(**options),
        {"margin": Option(0.2, "hinge: by how much a positive should beat its negatives", not_negative(float))},
    ),
}
