"""The definition of the ESL score (paper: instance similarity) in autograd; every faster way is compared with it.

Letters: B images, C captions, R regions, W word pieces, E size of all measure-units side by side.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import leaky_relu

from lib.core.fragments import Prepared
from lib.core.functional import l2_normalize, masked_softmax

NEGATIVE_SLOPE = 0.1  # of the LeakyReLU of attention
LARGEST_PLAIN_SCALE = 60.0  # exp(60), summed over thousands of fragments, stays far below float32's limit exp(88)


def alignment_scores(images: Prepared, captions: Prepared, scale: Tensor | float) -> Tensor:
    """Scores (B, C) of prepared fragments (B, R, E) and (C, W, E); `scale` is the scalar tau."""
    S = word_region_similarity(images, captions)  # (B, C, W, R)
    return instance_similarity(S, images.mask, captions.mask, scale)


def word_region_similarity(images: Prepared, captions: Prepared) -> Tensor:
    """S (B, C, W, R) of prepared fragments, in float32 at least, 0 at padding."""
    S = torch.einsum("cwe,bre->bcwr", captions.units, images.units)
    S = S.to(torch.promote_types(S.dtype, torch.float32))  # what follows a bfloat16 product is float32
    return S.masked_fill(~_real(images.mask, captions.mask), 0.0)


def instance_similarity(S: Tensor, regions: Tensor, words: Tensor, scale: Tensor | float) -> Tensor:
    """Scores (B, C) of S (B, C, W, R), 0 at padding: text-to-image plus image-to-text attention.

    In each direction g = LeakyReLU(tanh S), normalised over one side, gives softmax(scale g) over the other side, which
    weighs S; the weighted sums are averaged. `regions` (B, R) and `words` (C, W) are True where real: nothing else
    counts in any norm, softmax or mean.
    """
    real = _real(regions, words)
    g = leaky_relu(S.tanh(), NEGATIVE_SLOPE)
    over_regions = masked_softmax(scale * l2_normalize(g, 2), real, 3)  # (B, C, W, R)
    over_words = masked_softmax(scale * l2_normalize(g, 3), real, 2)  # (B, C, W, R)
    text_to_image = (over_regions * S).sum((2, 3)) / words.sum(1)  # (B, C)
    image_to_text = (over_words * S).sum((2, 3)) / regions.sum(1, keepdim=True)  # (B, C)
    return text_to_image + image_to_text


def _real(regions: Tensor, words: Tensor) -> Tensor:
    return words[None, :, :, None] & regions[:, None, None, :]  # (B, C, W, R)
