"""A split as the encoders of a model take it: images and captions, ready for batches.

Letters: R regions, D size of a region feature (img_dim).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from lib.core.fragments import Fragments
from lib.datasets.captions import TokenisedCaptions
from lib.datasets.images import ImageFolder, RawImages
from lib.datasets.layout import image_folder, read_id_mapping
from lib.datasets.regions import RegionFeatures
from lib.datasets.splits import Split, open_split
from lib.datasets.tokenisers import Tokeniser
from lib.files.images import DEFAULT_LIMITS, ImageLimits

SIZE_AUGMENT = 0.2  # probability that a region is dropped while training


class InputSpec(NamedTuple):
    """What a model's encoders read: tokens of a tokeniser; images after `transform`, or regions of size `img_dim`."""

    tokeniser: Tokeniser
    img_dim: int | None = None
    transform: Callable | None = None


class RegionImages:
    """The images of a split as regions: image i is row `rows[i]` of the features, Fragments of (R, D) and (R,).

    With a random generator each region is dropped with probability 0.2; an image that would lose all keeps them.
    """

    def __init__(self, features: RegionFeatures, rows: np.ndarray):
        self.features, self.rows = features, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __call__(self, image: int, rng: np.random.Generator | None = None) -> Fragments:
        features, mask = self.features.row(self.rows[image])  # (R, D), (R,)
        if rng is not None:
            kept = mask & (rng.random(len(mask)) >= SIZE_AUGMENT)
            mask = kept if kept.any() else mask
        return Fragments(torch.from_numpy(features), mask)


@dataclass(frozen=True)
class Inputs:
    """A split with its images, a function of an image's number and a random generator (None: as evaluation sees it),
    and its tokenised captions."""

    split: Split
    images: RegionImages | RawImages
    captions: TokenisedCaptions


def open_inputs(
    data_path: str | Path,
    data_name: str,
    split_name: str,
    spec: InputSpec,
    limit: int | None = None,
    image_limits: ImageLimits = DEFAULT_LIMITS,
) -> Inputs:
    """Open a split for the encoders that `spec` describes; InputError for whatever does not fit or is not there."""
    raw = spec.transform is not None
    split = open_split(data_path, data_name, split_name, spec.img_dim, need_features=not raw, limit=limit)
    if raw:
        where, names = image_folder(data_path, data_name), read_id_mapping(data_path)
        folder = ImageFolder(where, names, split.image_ids, image_limits)
        folder.check()
        images = RawImages(folder, spec.transform)
    else:
        images = RegionImages(split.features, split.rows)
    return Inputs(split, images, TokenisedCaptions(split.captions, spec.tokeniser))
