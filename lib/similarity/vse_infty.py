"""The pooled head of VSE-infinity: GPO for each modality, then cosine similarity (Chen et al., CVPR 2021).

Letters: B images, C captions, D embedding size.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lib.fragments import Fragments
from lib.functional import l2_normalize


class PooledSimilarity(nn.Module):
    """Scores are dot products of pooled, l2-normalised vectors; prepared items are Fragments of one fragment each."""

    def __init__(
        self,
        image_pool: nn.Module,
        caption_pool: nn.Module,
        normalize_images: bool = True,
        normalize_captions: bool = True,
    ):
        super().__init__()
        self.image_pool = image_pool
        self.caption_pool = caption_pool
        self.normalize_images = normalize_images
        self.normalize_captions = normalize_captions

    def embed_images(self, images: Fragments) -> Tensor:
        """Embeddings (B, D) of images given as Fragments (B, R, D)."""
        pooled = self.image_pool(images)
        return l2_normalize(pooled) if self.normalize_images else pooled

    def embed_captions(self, captions: Fragments) -> Tensor:
        """Embeddings (C, D) of captions given as Fragments (C, W, D)."""
        pooled = self.caption_pool(captions)
        return l2_normalize(pooled) if self.normalize_captions else pooled

    def prepare_images(self, images: Fragments) -> Fragments:
        return Fragments.full(self.embed_images(images)[:, None])  # (B, 1, D)

    def prepare_captions(self, captions: Fragments) -> Fragments:
        return Fragments.full(self.embed_captions(captions)[:, None])  # (C, 1, D)

    def score(self, images: Fragments, captions: Fragments) -> Tensor:
        """Scores (B, C) of prepared images and captions; in float32 at least, since bfloat16 scores would tie."""
        dtype = torch.promote_types(images.features.dtype, torch.float32)
        return images.features[:, 0].to(dtype) @ captions.features[:, 0].to(dtype).T
