"""The head of VSE-infinity: GPO for each modality, then cosine similarity (Chen et al., CVPR 2021).

Letters: B images, C captions, D embedding size.
"""

from __future__ import annotations

from torch import Tensor, nn

from lib.core.fragments import Fragments, Prepared
from lib.core.functional import l2_normalize
from lib.similarity.gpo import GPO
from lib.similarity.head import SimilarityHead
from lib.similarity.pooling import MeanPool, dot_products


class VSEInfinity(SimilarityHead):
    """Scores are dot products of pooled, l2-normalised vectors; prepared items are Prepared with one fragment each."""

    def __init__(
        self, image_pool: nn.Module, caption_pool: nn.Module, no_imgnorm: bool = False, no_txtnorm: bool = False
    ):
        super().__init__()
        self.image_pool = image_pool
        self.caption_pool = caption_pool
        self.no_imgnorm, self.no_txtnorm = no_imgnorm, no_txtnorm

    def embed_images(self, images: Fragments) -> Tensor:
        pooled = self.image_pool(images)
        return pooled if self.no_imgnorm else l2_normalize(pooled)

    def embed_captions(self, captions: Fragments) -> Tensor:
        pooled = self.caption_pool(captions)
        return pooled if self.no_txtnorm else l2_normalize(pooled)

    def prepare_images(self, images: Fragments) -> Prepared:
        return Prepared.full(self.embed_images(images)[:, None])  # (B, 1, D)

    def prepare_captions(self, captions: Fragments) -> Prepared:
        return Prepared.full(self.embed_captions(captions)[:, None])  # (C, 1, D)

    def score(self, images: Prepared, captions: Prepared) -> Tensor:
        return dot_products(images, captions)


def vse_infty(embed_size: int, options: dict) -> VSEInfinity:
    """VSE-infinity with GPO(32, 32) of its own for each modality."""
    return VSEInfinity(GPO(32, 32), GPO(32, 32), **options)


def cosine(embed_size: int, options: dict) -> VSEInfinity:
    """Cosine similarity of the means of the fragments, as plain CLIP compares its vectors; nothing to train."""
    return VSEInfinity(MeanPool(), MeanPool(), **options)
