"""The hinge-triplet loss of VSE++ and its successors."""

from __future__ import annotations

import torch
from torch import Tensor


def hinge_triplet_loss(scores: Tensor, margin: float = 0.2, hardest: bool = True) -> Tensor:
    """Hinge-triplet loss of scores (B, B) whose diagonal holds the positives; a sum, not a mean.

    `hardest` keeps the hardest negative caption of each image and the hardest negative image of each caption
    (VSE++, eq. 6); otherwise all violations count. Raises ValueError when the scores are not square.
    """
    if scores.ndim != 2 or scores.shape[0] != scores.shape[1]:
        raise ValueError(f"hinge_triplet_loss needs square scores, got {tuple(scores.shape)}")
    positives = scores.diagonal()  # (B,)
    diagonal = torch.eye(len(scores), dtype=torch.bool, device=scores.device)
    cost_caption = (margin + scores - positives[:, None]).clamp(min=0).masked_fill(diagonal, 0.0)
    cost_image = (margin + scores - positives[None, :]).clamp(min=0).masked_fill(diagonal, 0.0)
    if hardest:
        return cost_caption.amax(1).sum() + cost_image.amax(0).sum()
    return cost_caption.sum() + cost_image.sum()
