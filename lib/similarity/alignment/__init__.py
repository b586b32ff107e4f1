"""From word-region similarity S to one score per image-caption pair: one formula, four ways to compute it.

`plain` is the definition. `tiled` computes S of all pairs as one product and works on it block by block, forward and
backward, through `cpu_kernel` (C, built at first use) for float32 on a CPU, through `gpu_kernel` (Triton) for scores
without gradient on a GPU, and with torch's operations everywhere else.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lib.core.fragments import Prepared
from lib.similarity.alignment import cpu_kernel, plain, tiled, tiles

PLAIN_IMAGES = 32  # images of a tile in the plain backend, which keeps several arrays (B, C, W, R)


class Backend(NamedTuple):
    """How scores are computed: `kernels` auto (the fastest that works here), torch (without kernels) or plain (autograd
    of the definition); `memory` limits the buffers, in bytes (None: what suits the device)."""

    kernels: str = "auto"
    memory: int | None = None


FASTEST = Backend()


def alignment_scores(images: Prepared, captions: Prepared, scale: Tensor, backend: Backend = FASTEST) -> Tensor:
    """Scores (B, C) of prepared images (B, R, E) and captions (C, W, E); `scale` is the scalar tau."""
    if backend.kernels == "plain":
        return plain.alignment_scores(images, captions, scale)
    return tiled.alignment_scores(images, captions, scale, backend.memory, kernels=backend.kernels == "auto")


def images_per_tile(regions: int, count: int, device: torch.device, backend: Backend = FASTEST) -> int:
    """The number of images that evaluation should score at a time, of `count` images with so many regions."""
    if backend.kernels == "plain":
        return min(count, PLAIN_IMAGES)
    packed = backend.kernels == "auto" and cpu_kernel.available(device)
    return tiles.image_tile(regions, count, tiles.budget(device, packed=packed))
