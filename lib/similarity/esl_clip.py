"""The head of CLIP-based ESL: two vectors compared level by level (released code of its CLIP branch).

Letters: B images, C captions, d_k size of level k, D = d_0, E = sum of all d_k.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from lib.core.fragments import Fragments, Prepared
from lib.similarity.aggregators import AdaptiveAggregator, Aggregator, HeuristicAggregator
from lib.similarity.esl import ESL, ThresholdContribution, esl
from lib.similarity.head import SimilarityHead
from lib.similarity.pooling import dot_products, mean_fragment


class ImageToCaption(nn.Module):
    """The correspondence matrix M_k of one level, whose rows are the image's side; it starts as the identity."""

    def __init__(self, size: int):
        super().__init__()
        self.matrix = nn.Parameter(torch.eye(size))

    def forward(self) -> Tensor:
        return self.matrix.T  # (d_k, d_k), rows are the caption's side


class MeanContribution(ThresholdContribution):
    """c_k / levels with the c_k of ESL-H, sigma taken through a sigmoid; for adaptive aggregation too."""

    def __init__(self, levels: int):
        super().__init__(levels)
        nn.init.constant_(self.sigma, -1.0)
        nn.init.constant_(self.log_sharpness, 4.0)

    def share(self) -> Tensor:
        return self.sigma.sigmoid()

    def forward(self) -> Tensor:
        return super().forward() / len(self.p)  # (levels,)


class ESLCLIP(ESL):
    """The mean over levels of c_k v_k M_k t_k, of one vector v an image and one t a caption; the score is final.

    Encoders that give several fragments are read by the mean of these. `log_scale` is in released files and unused.
    """

    correspondence = ImageToCaption
    attention = SimilarityHead.attention  # no words are compared
    images_per_tile = SimilarityHead.images_per_tile

    def prepare_images(self, images: Fragments) -> Prepared:
        """All levels of the images: Fragments (B, R, D) -> Prepared (B, 1, E)."""
        return super().prepare_images(mean_fragment(images))

    def prepare_captions(self, captions: Fragments) -> Prepared:
        """All levels of the captions seen through c_k M_k: Fragments (C, W, D) -> Prepared (C, 1, E)."""
        return super().prepare_captions(mean_fragment(captions))

    def score(self, images: Prepared, captions: Prepared) -> Tensor:
        return dot_products(images, captions)

    def embed_images(self, images: Fragments) -> Tensor:
        return super().embed_images(mean_fragment(images))

    def embed_captions(self, captions: Fragments) -> Tensor:
        return super().embed_captions(mean_fragment(captions))


def esl_clip(aggregator: type[Aggregator], embed_size: int, options: dict) -> ESLCLIP:
    """A CLIP-based ESL head whose modalities have an aggregator each."""
    return esl(aggregator, MeanContribution, embed_size, options, ESLCLIP)


esl_clip_a = partial(esl_clip, AdaptiveAggregator)
esl_clip_h = partial(esl_clip, HeuristicAggregator)
