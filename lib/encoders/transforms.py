"""From an image file to the input of an encoder: crop, resize, flip, normalise (released VSE∞ and CLIP-based ESL code).

Letters: H and W side lengths in pixels, S side length of the square input.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchvision.transforms import functional

BASE_SIZE = 256
MIN_CROP_RATIO = 0.6
FLIP_PROBABILITY = 0.5

# Numbers and not tensors: a tensor that is made while torch.device("meta") is active stays without values for ever.
BGR_MEANS = (102.9801, 115.9465, 122.7717)
RGB_MEANS = (123.675, 116.28, 103.53)
RGB_STDS = (58.395, 57.120003, 57.375)  # ImageNet's times 255 as float32 rounds the products
CLIP_MEANS = (0.48145466, 0.4578275, 0.40821073)  # of range 0 to 1, as the next line
CLIP_STDS = (0.26862954, 0.26130258, 0.27577711)


def input_size(input_scale_factor: float) -> int:
    """Side length in pixels of the network's square input: 256 × input_scale_factor, rounded down."""
    return int(BASE_SIZE * input_scale_factor)


class SquareTransform:
    """An RGB image, uint8 (H, W, 3), as a normalised square, float32 (3, S, S).

    With a random generator it is augmented: a random crop that keeps the same share, 0.6 to 1, of height and width,
    flipped half the time. `antialias` averages over the pixels that an image loses when it is made smaller.
    """

    def __init__(self, size: int, normalize: Callable[[Tensor], Tensor], antialias: bool = False):
        self.size, self.normalize, self.antialias = size, normalize, antialias

    def __call__(self, image: np.ndarray, rng: np.random.Generator | None = None) -> Tensor:
        if rng is None:
            return self.normalize(resize(image, self.size, self.antialias))
        pixels = resize(random_crop(image, rng), self.size, self.antialias)
        return self.normalize(pixels.flip(-1) if rng.random() < FLIP_PROBABILITY else pixels)


def random_crop(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A part of an image (H, W, 3) with the same share of its height and of its width."""
    height, width = image.shape[:2]
    ratio = rng.uniform(MIN_CROP_RATIO, 1.0)
    crop_height, crop_width = max(1, int(height * ratio)), max(1, int(width * ratio))
    top = rng.integers(height - crop_height, endpoint=True)
    left = rng.integers(width - crop_width, endpoint=True)
    return image[top : top + crop_height, left : left + crop_width]


def resize(image: np.ndarray, size: int, antialias: bool = False) -> Tensor:
    """Bilinear, half-pixel centres, as cv2.INTER_LINEAR on float pixels: (H, W, 3) → (3, S, S)."""
    # PyTorch computes source positions in the type of the pixels. In float32 they are exact where S is a power of two
    # (input scale factors 1, 2, …); elsewhere they are off by up to 1e-4 pixels, up to 0.03 grey levels.
    exact = torch.float32 if size & (size - 1) == 0 else torch.float64
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None].to(exact)  # (1, 3, H, W), channels last in memory: faster
    pixels = F.interpolate(pixels, size=(size, size), mode="bilinear", align_corners=False, antialias=antialias)
    return pixels[0].float()  # (3, S, S)


def bgr_minus_mean(pixels: Tensor) -> Tensor:
    """RGB of range 0–255 → BGR minus the means of bottom-up attention, still of that range; in place."""
    return functional.normalize(pixels.flip(0), BGR_MEANS, (1.0, 1.0, 1.0), inplace=True)


def imagenet_normalize(pixels: Tensor) -> Tensor:
    """RGB of range 0–255 → ImageNet's mean 0 and deviation 1; in place."""
    return functional.normalize(pixels, RGB_MEANS, RGB_STDS, inplace=True)


class ClipTransform:
    """The central square of an image as float32 (3, S, S), normalised as CLIP was trained; never augmented.

    An image is resized in the form of its file and converted to RGB only then, so a palette is resized by nearest
    neighbour (released code).
    """

    def __init__(self, size: int):
        self.size = size

    def decode(self, image: Image.Image) -> np.ndarray:
        """An opened file, its shorter side resized to S (bicubic, antialiased), cut to its centre: uint8 (S, S, 3)."""
        short = min(image.size)
        if short != self.size:
            width, height = (self.size if side == short else int(self.size * side / short) for side in image.size)
            if width * height > (Image.MAX_IMAGE_PIXELS or math.inf):  # of an image that is all but a line
                raise Image.DecompressionBombError
            image = image.resize((width, height), Image.Resampling.BICUBIC)
        left, top = (round((side - self.size) / 2) for side in image.size)
        return np.array(image.crop((left, top, left + self.size, top + self.size)).convert("RGB"))

    def __call__(self, image: np.ndarray, rng: np.random.Generator | None = None) -> Tensor:
        pixels = torch.from_numpy(image).permute(2, 0, 1).float()  # (3, S, S)
        return functional.normalize(pixels.div_(255), CLIP_MEANS, CLIP_STDS, inplace=True)


def clip_transform(options: dict) -> ClipTransform:
    """The transform for a CLIP of this image size."""
    return ClipTransform(options["image_size"])
