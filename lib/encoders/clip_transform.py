"""From an image file to the input of CLIP (released code of CLIP and CLIP-based ESL), in training and evaluation alike.

Letters: H and W side lengths in pixels, S side length of the square input.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import functional

MEANS = (0.48145466, 0.4578275, 0.40821073)
STDS = (0.26862954, 0.26130258, 0.27577711)


class ClipTransform:
    """The central square of an image as float32 (3, S, S), normalised as CLIP was trained; without augmentation.

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
        return functional.normalize(pixels.div_(255), MEANS, STDS, inplace=True)


def clip_transform(options: dict) -> ClipTransform:
    """The transform for a CLIP of this image size."""
    return ClipTransform(options["image_size"])
