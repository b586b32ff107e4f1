"""The yardstick: ESL scoring by the released procedure, one caption at a time, written from the formulas.

For every caption: its words are repeated for each image, each of the nine levels is multiplied on its own, and both
attention directions run on the (B, W, R) similarities of that caption. The numbers equal `ESL.score`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lib.core.fragments import Fragments
from lib.core.functional import l2_normalize
from lib.similarity.esl import ESL


def score_by_caption(head: ESL, images: Fragments, captions: Fragments) -> Tensor:
    """Scores (B, C) of encoded, un-normalised fragments; every image has all its regions."""
    scale = head.log_scale.exp()
    image_levels = _levels(head, images.features, head.image_aggregator, not head.no_imgnorm, True)
    matrices = [c * match() for c, match in zip(head.contribution(), head.correspondences, strict=True)]
    columns = []
    for words, mask in zip(*captions, strict=True):
        own = words[mask][None]  # (1, W, D)
        levels = _levels(head, own, head.caption_aggregator, not head.no_txtnorm, False)
        similarity = 0
        for level, matrix, regions in zip(levels, matrices, image_levels, strict=True):
            repeated = level.repeat(len(regions), 1, 1)  # (B, W, d_k)
            similarity = similarity + torch.bmm(repeated @ matrix, regions.transpose(1, 2))  # (B, W, R)
        columns.append(_instance_similarity(similarity, scale))
    return torch.stack(columns, 1)  # (B, C)


def _instance_similarity(S: Tensor, scale: Tensor) -> Tensor:
    g = torch.nn.functional.leaky_relu(S.tanh(), 0.1)
    to_image = (l2_normalize(g, 1) * scale).softmax(2)  # (B, W, R)
    to_text = (l2_normalize(g, 2) * scale).softmax(1)  # (B, W, R)
    return (S * to_image).sum(2).mean(1) + (S * to_text).sum(1).mean(1)  # (B,)


def _levels(head, fragments: Tensor, aggregator, normalize: bool, renormalize: bool) -> tuple[Tensor, ...]:
    x = l2_normalize(fragments) if normalize else fragments
    return aggregator(x, renormalize).split(head.sizes, -1)
