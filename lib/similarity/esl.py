"""The ESL similarity head (Zhang et al., IEEE TCSVT 2023): enhanced word-region similarity in one matrix product.

Letters: B images, C captions, R regions, W word pieces, d_k size of level k, D = d_0, E = sum of all d_k.
"""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor, nn

from lib.core.fragments import Fragments, Prepared
from lib.core.functional import l2_normalize, masked_mean
from lib.similarity.aggregators import AdaptiveAggregator, Aggregator, HeuristicAggregator, level_sizes
from lib.similarity.alignment import alignment_scores, images_per_tile
from lib.similarity.alignment.plain import word_region_similarity
from lib.similarity.head import SimilarityHead


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

    def share(self) -> Tensor:
        """The place of the threshold between the smallest |p| (0) and the largest (1)."""
        return self.sigma

    def forward(self) -> Tensor:
        size = self.p.abs()
        threshold = size.min() + self.share() * (size.max() - size.min())
        return self.p * ((size - threshold) * self.log_sharpness.exp()).exp()  # (levels,)


class ESL(SimilarityHead):
    """Compares all words and regions through the measure-units of nine levels.

    With all levels side by side and the caption side multiplied by c_k LN(M_k) once, word-region similarity is one
    product over E.
    """

    correspondence: type[nn.Module] = Correspondence

    def __init__(
        self,
        image_aggregator: Aggregator,
        caption_aggregator: Aggregator,
        contribution: nn.Module,
        no_imgnorm: bool = False,
        no_txtnorm: bool = False,
    ):
        super().__init__()
        self.sizes = image_aggregator.sizes
        self.image_aggregator = image_aggregator
        self.caption_aggregator = caption_aggregator
        self.correspondences = nn.ModuleList(self.correspondence(size) for size in self.sizes)
        self.contribution = contribution
        self.log_scale = nn.Parameter(torch.full((), math.log(1 / 0.07)))
        self.no_imgnorm, self.no_txtnorm = no_imgnorm, no_txtnorm

    def prepare_images(self, images: Fragments) -> Prepared:
        """Measure-units of the images: Fragments (B, R, D) -> Prepared (B, R, E)."""
        return images.map(self._image_units, Prepared)

    def prepare_captions(self, captions: Fragments) -> Prepared:
        """Measure-units of the captions seen through the correspondence matrices: (C, W, D) -> (C, W, E)."""
        matrices = [c * match() for c, match in zip(self.contribution(), self.correspondences, strict=True)]

        def matched(words: Tensor) -> Tensor:
            levels = self._caption_units(words).split(self.sizes, -1)
            return torch.cat([x @ matrix for x, matrix in zip(levels, matrices, strict=True)], -1)  # (n, E)

        return captions.map(matched, Prepared)

    def score(self, images: Prepared, captions: Prepared) -> Tensor:
        return alignment_scores(images, captions, self.log_scale.exp(), self.backend)

    def attention(self, images: Prepared, captions: Prepared) -> Tensor:
        """Word-region similarity S (B, C, W, R) of prepared items, 0 at padding: the picture of what matched what."""
        return word_region_similarity(images, captions)

    def images_per_tile(self, regions: int, count: int, device: torch.device) -> int:
        return images_per_tile(regions, count, device, self.backend)

    def embed_images(self, images: Fragments) -> Tensor:
        """The l2-normalised mean of the regions' measure-units (B, E)."""
        return l2_normalize(masked_mean(*images.map(self._image_units)))

    def embed_captions(self, captions: Fragments) -> Tensor:
        """The l2-normalised mean of the words' measure-units (C, E)."""
        return l2_normalize(masked_mean(*captions.map(self._caption_units)))

    def _image_units(self, regions: Tensor) -> Tensor:
        """All levels of regions (n, D) -> (n, E)."""
        return self.image_aggregator(regions if self.no_imgnorm else l2_normalize(regions), renormalize=True)

    def _caption_units(self, words: Tensor) -> Tensor:
        """All levels of words (n, D) -> (n, E)."""
        return self.caption_aggregator(words if self.no_txtnorm else l2_normalize(words), renormalize=False)


def esl(
    aggregator: type[Aggregator], contribution: type[nn.Module], embed_size: int, options: dict, head: type[ESL] = ESL
) -> ESL:
    """An ESL head whose modalities have an aggregator each, with one kind of contribution degrees."""
    options = dict(options)
    kernel_size = options.pop("kernel_size")
    sizes = level_sizes(embed_size, kernel_size)
    aggregators = aggregator(sizes, kernel_size), aggregator(sizes, kernel_size)
    return head(*aggregators, contribution(len(sizes)), **options)


esl_a = partial(esl, AdaptiveAggregator, PlainContribution)
esl_h = partial(esl, HeuristicAggregator, ThresholdContribution)


def check_levels(embed_size: int, options: dict) -> None:
    """InputError where the sizes give no nine levels."""
    level_sizes(embed_size, options["kernel_size"])
