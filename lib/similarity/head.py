"""The contract of similarity heads: from encoded fragments to scores.

Letters: B images, C captions, R regions, W word pieces, D embedding size, K size of a prepared fragment, E of a vector.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lib.core.fragments import Fragments, Prepared
from lib.core.functional import l2_normalize, masked_mean
from lib.similarity.alignment import Backend


class SimilarityHead(nn.Module):
    """Scores every image with every caption; the head normalises the encoders' fragments.

    A head prepares each item once, whatever it is scored with; `score` does the work of the pairs.
    """

    backend = Backend()  # how scores are computed, for the heads that can choose

    def prepare_images(self, images: Fragments) -> Prepared:
        """The work of single images: Fragments (B, R, D) -> Prepared (B, *, K)."""
        raise NotImplementedError

    def prepare_captions(self, captions: Fragments) -> Prepared:
        """The work of single captions: Fragments (C, W, D) -> Prepared (C, *, K)."""
        raise NotImplementedError

    def score(self, images: Prepared, captions: Prepared) -> Tensor:
        """Scores (B, C) of prepared images and captions, in float32 at least."""
        raise NotImplementedError

    def embed_images(self, images: Fragments) -> Tensor:
        """One unit vector per image (B, E) of encoded images, for retrieval among images: the mean of the fragments."""
        return l2_normalize(masked_mean(*images))

    def embed_captions(self, captions: Fragments) -> Tensor:
        """One unit vector per caption (C, E) of encoded captions, for retrieval among captions."""
        return l2_normalize(masked_mean(*captions))

    def attention(self, images: Prepared, captions: Prepared) -> Tensor | None:
        """Word-region similarity (B, C, W, R) of prepared items, 0 at padding; None if the head compares no words."""
        return None

    def images_per_tile(self, regions: int, count: int, device: torch.device) -> int:
        """The number of images that evaluation scores at a time, of `count` prepared images with so many fragments."""
        return count

    def forward(self, images: Fragments, captions: Fragments) -> Tensor:
        """Scores (B, C) of encoded images and captions."""
        return self.score(self.prepare_images(images), self.prepare_captions(captions))
