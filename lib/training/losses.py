"""Losses on the scores of a batch, the rows of lib.training.LOSSES.

A loss takes scores (B, B), whose diagonal holds the positives, and whether only the hardest negatives count. Its
parameters, if it has any, are trained with the model's; `after_step`, if it has one, is called after each step. `mean`
is True for a loss that is the mean over the pairs, not their sum.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lib.model import MatchingModel
from lib.training import LOSSES


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


class Contrastive(nn.Module):
    """The symmetric cross-entropy of CLIP: each image among the captions of the batch, each caption among its images.

    A mean over both. Scores are multiplied by exp(logit_scale), a trained scalar of at most log 100 after each step.
    """

    mean, largest = True, math.log(100)

    def __init__(self):
        super().__init__()
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def forward(self, scores: Tensor, hardest: bool = True) -> Tensor:
        """Every negative counts, whatever `hardest` says."""
        logits = scores * self.logit_scale.exp()  # (B, B)
        own = torch.arange(len(logits), device=logits.device)
        return (cross_entropy(logits, own) + cross_entropy(logits.T, own)) / 2

    @torch.no_grad()
    def after_step(self) -> None:
        self.logit_scale.clamp_(max=self.largest)


def hinge(embed_size: int, options: dict[str, Any]) -> HingeTriplet:
    return HingeTriplet(**options)


def contrastive(embed_size: int, options: dict[str, Any]) -> Contrastive:
    return Contrastive()


def build_loss(name: str, model: MatchingModel, options: dict[str, Any]) -> nn.Module:
    """The loss of a row; what the text encoder brings for it, as CLIP its logit_scale, takes the place of its own."""
    criterion = LOSSES[name].make(model.config.embed_size, **options)
    for key, parameter in model.text_encoder.loss_parameters().items():
        if key in criterion.state_dict():
            setattr(criterion, key, parameter)
    return criterion
