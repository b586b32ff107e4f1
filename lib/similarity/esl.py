"""The ESL similarity head (Zhang et al., IEEE TCSVT 2023): enhanced word-region similarity in one matrix product.

Letters: B images, C captions, R regions, W word pieces, d_k size of level k, D = d_0, E = sum of all d_k.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from lib.alignment.tiled import alignment_scores
from lib.fragments import Fragments
from lib.functional import l2_normalize, masked_mean
from lib.similarity.aggregators import Aggregator


class Correspondence(nn.Module):
    """The correspondence matrix of one level: M_k after layer normalisation over the whole matrix."""

    def __init__(self, size: int):
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(size, size))
        self.norm = nn.LayerNorm((size, size), eps=1e-8)

    def forward(self) -> Tensor:
        return self.norm(self.matrix)  # (d_k, d_k)


class PlainContribution(nn.Module):
    """ESL-A: the contribution degree of level k is a learned number, c_k = p_k."""

    def __init__(self, levels: int):
        super().__init__()
        self.p = nn.Parameter(torch.full((levels,), 0.1))

    def forward(self) -> Tensor:
        return self.p  # (levels,)


class ThresholdContribution(PlainContribution):
    """ESL-H: c_k = p_k exp((|p_k| - t) exp(l)) with the threshold t = min|p| + sigma (max|p| - min|p|)."""

    def __init__(self, levels: int):
        super().__init__(levels)
        self.sigma = nn.Parameter(torch.zeros(()))
        self.log_sharpness = nn.Parameter(torch.full((), 3.0))

    def forward(self) -> Tensor:
        size = self.p.abs()
        threshold = size.min() + self.sigma * (size.max() - size.min())
        return self.p * ((size - threshold) * self.log_sharpness.exp()).exp()  # (levels,)


class ESLSimilarity(nn.Module):
    """Scores every image with every caption through the measure-units of all levels.

    `prepare_images` and `prepare_captions` do the work of one item once; `score` does the work of a pair. With all
    levels side by side and the caption side multiplied by c_k LN(M_k), word-region similarity is one product over E.
    """

    def __init__(
        self,
        image_aggregator: Aggregator,
        caption_aggregator: Aggregator,
        contribution: nn.Module,
        normalize_images: bool = True,
        normalize_captions: bool = True,
    ):
        super().__init__()
        self.sizes = image_aggregator.sizes
        self.image_aggregator = image_aggregator
        self.caption_aggregator = caption_aggregator
        self.correspondences = nn.ModuleList(Correspondence(size) for size in self.sizes)
        self.contribution = contribution
        self.log_scale = nn.Parameter(torch.full((), math.log(1 / 0.07)))
        self.normalize_images = normalize_images
        self.normalize_captions = normalize_captions
        self.score_memory: int | None = None  # limit of score's buffers in bytes; None: what suits the device

    def prepare_images(self, images: Fragments) -> Fragments:
        """Measure-units of the images: Fragments (B, R, D) -> Fragments (B, R, E)."""
        return images.map(self._image_units)

    def prepare_captions(self, captions: Fragments) -> Fragments:
        """Measure-units of the captions seen through the correspondence matrices: (C, W, D) -> (C, W, E)."""
        matrices = [c * match() for c, match in zip(self.contribution(), self.correspondences, strict=True)]

        def matched(words: Tensor) -> Tensor:
            levels = self._caption_units(words).split(self.sizes, -1)
            return torch.cat([x @ matrix for x, matrix in zip(levels, matrices, strict=True)], -1)  # (n, E)

        return captions.map(matched)

    def score(self, images: Fragments, captions: Fragments) -> Tensor:
        """Scores (B, C) of prepared images and captions."""
        return alignment_scores(images, captions, self.log_scale.exp(), self.score_memory)

    def attention(self, images: Fragments, captions: Fragments) -> Tensor:
        """Word-region similarity S (B, C, W, R) of prepared items, 0 at padding: the picture of what matched what."""
        similarity = torch.einsum("cwe,bre->bcwr", captions.features, images.features)
        return similarity.masked_fill(~(captions.mask[None, :, :, None] & images.mask[:, None, None, :]), 0.0)

    def embed_images(self, images: Fragments) -> Tensor:
        """One unit vector per image (B, E) for image-image retrieval: the mean of its regions' measure-units."""
        return l2_normalize(masked_mean(*images.map(self._image_units)))

    def embed_captions(self, captions: Fragments) -> Tensor:
        """One unit vector per caption (C, E) for caption-caption retrieval: the mean of its words' measure-units."""
        return l2_normalize(masked_mean(*captions.map(self._caption_units)))

    def _image_units(self, regions: Tensor) -> Tensor:
        """All levels of regions (n, D) -> (n, E)."""
        return self.image_aggregator(l2_normalize(regions) if self.normalize_images else regions, renormalize=True)

    def _caption_units(self, words: Tensor) -> Tensor:
        """All levels of words (n, D) -> (n, E)."""
        return self.caption_aggregator(l2_normalize(words) if self.normalize_captions else words, renormalize=False)
