"""Random problems that every backend must solve as the definition does, and how far from it an answer is."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from lib.core.fragments import Prepared
from lib.similarity.alignment import plain

SIZES = {"captions": 7, "words": 6, "regions": 9, "images": 40, "size": 24}
CASES = {
    "nothing_special": {},
    "random_sizes": {"captions": 11, "words": 13, "regions": 5, "images": 23, "size": 17, "both": True},
    "other_random_sizes": {"captions": 3, "words": 2, "regions": 19, "images": 53, "size": 40, "both": True},
    "ragged_captions": {"ragged": True},
    "masked_regions": {"masked": True},
    "both_masks": {"both": True},
    "one_word": {"words": 1},
    "one_region": {"regions": 1, "ragged": True},
    "one_image": {"images": 1, "both": True},
    "one_caption": {"captions": 1, "masked": True},
    "one_of_all": {"captions": 1, "words": 1, "regions": 1, "images": 1},
    "one_image_short_of_a_task": {"images": 31, "masked": True},
    "a_whole_task_of_images": {"images": 32, "masked": True},
    "one_image_more_than_a_task": {"images": 33, "masked": True},
    "several_tasks": {"images": 100, "ragged": True},
    "long_caption": {"words": 150, "captions": 2, "ragged": True},
    "256_cells": {"regions": 256, "captions": 2, "both": True},
    "tiny_similarities": {"factor": 1e-4},
    "large_similarities": {"factor": 30.0},
    "zero_similarities": {"factor": 0.0, "both": True},
    "smallest_scale": {"scale": 1e-3},
    "largest_plain_scale": {"scale": 60.0, "ragged": True},
    "several_blocks": {"captions": 40, "ragged": True, "memory": 1 << 14},
    "several_image_tiles": {"images": 70, "both": True, "memory": 1},
}
LARGE_SCALES = {
    "scale_above_60": {"scale": 61.0, "both": True},
    "scale_whose_exponential_is_no_float32": {"scale": 150.0, "both": True},
    "scale_above_60_in_pieces": {"scale": 400.0, "captions": 20, "both": True, "memory": 1 << 14},
}
# Bounds of `errors` in float32. exp(scale g) multiplies the relative error of g by the scale. Where a norm is over one
# or two values, a gradient is a small difference of large terms.
SCORES = dict.fromkeys(CASES, 2e-6) | dict.fromkeys(LARGE_SCALES, 2e-5)
GRADIENTS = dict.fromkeys(CASES, 1e-4) | dict.fromkeys(LARGE_SCALES, 1e-3)


class Problem(NamedTuple):
    """Prepared images (B, R, E) and captions (C, W, E), tau, and the memory to score with, in bytes."""

    images: Prepared
    captions: Prepared
    scale: Tensor
    memory: int | None

    def to(self, dtype: torch.dtype) -> Problem:
        """The same values, as `dtype` holds them."""
        return Problem(self.images.to(dtype), self.captions.to(dtype), self.scale.to(dtype), self.memory)


def problem(name: str) -> Problem:
    """The problem of this name in float32, with padding that holds anything."""
    case = {**SIZES, **{**CASES, **LARGE_SCALES}[name]}
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))

    def side(count: int, length: int, factor: float, ragged: bool) -> Prepared:
        features = torch.randn(count, length, case["size"], generator=generator)
        features = features / features.norm(dim=-1, keepdim=True) * factor
        lengths = torch.full((count,), length)
        if ragged:
            lengths = torch.randint(1, length + 1, (count,), generator=generator)
        mask = torch.arange(length) < lengths[:, None]
        return Prepared(features.masked_fill(~mask[..., None], 9.0), mask)

    both = case.get("both", False)
    images = side(case["images"], case["regions"], 1.0, both or case.get("masked", False))
    captions = side(case["captions"], case["words"], case.get("factor", 1.0), both or case.get("ragged", False))
    return Problem(images, captions, torch.tensor(case.get("scale", 14.3)), case.get("memory"))


def outcome(score: Callable[[Prepared, Prepared, Tensor], Tensor], given: Problem) -> list[Tensor]:
    """The scores, and the gradients of a weighted sum of them with respect to images, captions and tau."""
    leaves = [x.detach().clone().requires_grad_() for x in (given.images.units, given.captions.units, given.scale)]
    scores = score(Prepared(leaves[0], given.images.mask), Prepared(leaves[1], given.captions.mask), leaves[2])
    (scores * torch.linspace(0.5, 1.5, scores.numel(), dtype=scores.dtype).view_as(scores)).sum().backward()
    return [scores.detach(), *(leaf.grad for leaf in leaves)]


def definition(given: Problem) -> list[Tensor]:
    """What autograd of the definition gives in float64."""
    return outcome(plain.alignment_scores, given.to(torch.float64))


def errors(found: list[Tensor], expected: list[Tensor]) -> list[float]:
    """The largest difference of the scores and of each gradient, relative to its largest value.

    The gradient with respect to tau is a sum over all pairs and is held against the sum of the scores.
    """
    sizes = [other.abs().max() for other in expected]
    if len(expected) > 3:
        sizes[3] = torch.maximum(sizes[3], expected[0].abs().sum())
    differences = [(one.double() - other).abs().max() for one, other in zip(found, expected, strict=True)]
    return [float(each / size.clamp(min=1e-30)) for each, size in zip(differences, sizes, strict=True)]
