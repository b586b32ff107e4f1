"""From decoded pixels to the network's input: crop, resize, flip, normalise (released VSE∞ code).

Letters: H and W side lengths in pixels, S side length of the square input.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

BASE_SIZE = 256
MIN_CROP_RATIO = 0.6
FLIP_PROBABILITY = 0.5

_BGR_MEANS = torch.tensor([102.9801, 115.9465, 122.7717])[:, None, None]
_RGB_MEANS = torch.tensor([0.485, 0.456, 0.406])[:, None, None] * 255
_RGB_STDS = torch.tensor([0.229, 0.224, 0.225])[:, None, None] * 255


def input_size(input_scale_factor: float) -> int:
    """Side length in pixels of the network's square input: 256 × input_scale_factor, rounded."""
    return round(BASE_SIZE * input_scale_factor)


def eval_transform(image: np.ndarray, size: int, source: str) -> Tensor:
    """Resize an RGB image, uint8 (H, W, 3), to a square and normalise it for the backbone `source`: float32 (3, size,
    size)."""
    return _normalize(_resize(image, size), source)


def train_transform(image: np.ndarray, size: int, source: str, rng: np.random.Generator) -> Tensor:
    """As `eval_transform`, of a random crop that keeps the same share, 0.6 to 1, of height and width, flipped half the
    time."""
    height, width = image.shape[:2]
    ratio = rng.uniform(MIN_CROP_RATIO, 1.0)
    crop_height, crop_width = max(1, int(height * ratio)), max(1, int(width * ratio))
    top = rng.integers(height - crop_height, endpoint=True)
    left = rng.integers(width - crop_width, endpoint=True)
    pixels = _resize(image[top : top + crop_height, left : left + crop_width], size)
    if rng.random() < FLIP_PROBABILITY:
        pixels = pixels.flip(-1)
    return _normalize(pixels, source)


def _resize(image: np.ndarray, size: int) -> Tensor:
    """Bilinear, half-pixel centres, no antialiasing, as cv2.INTER_LINEAR on float pixels: (H, W, 3) → (3, S, S)."""
    # PyTorch computes source positions in the type of the pixels. In float32 they are exact where S is a power of two
    # (input scale factors 1, 2, …); elsewhere they are off by up to 1e-4 pixels, up to 0.03 grey levels.
    exact = torch.float32 if size & (size - 1) == 0 else torch.float64
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None].to(exact)  # (1, 3, H, W), channels last in memory: faster
    return F.interpolate(pixels, size=(size, size), mode="bilinear", align_corners=False)[0].float()  # (3, S, S)


def _normalize(pixels: Tensor, source: str) -> Tensor:
    """RGB of range 0–255 → BGR minus the detector's means, still of that range, or the ImageNet mean 0 and deviation
    1."""
    if source == "detector":
        return pixels.flip(0).sub_(_BGR_MEANS)
    return pixels.sub_(_RGB_MEANS).div_(_RGB_STDS)
