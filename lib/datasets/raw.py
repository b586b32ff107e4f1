"""Raw images of a split as the network's input: decoded, transformed, found by id."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from torch import Tensor

from lib.datasets.images import ImageFolder, check_image_list
from lib.datasets.layout import image_folder, read_id_mapping
from lib.datasets.splits import Split
from lib.datasets.transforms import eval_transform, input_size, train_transform


class RawImages:
    """`load(row, rng)` of the loaders: image `row` of a split as float32 (3, size, size), augmented if `rng` is given.

    Raises InputError naming file and id when an image is missing or corrupt.
    """

    def __init__(self, data_path: str | Path, data_name: str, split: Split, input_scale_factor: float, source: str):
        self.images = ImageFolder(image_folder(data_path, data_name), read_id_mapping(data_path), split.image_ids)
        self.size, self.source = input_size(input_scale_factor), source

    def __call__(self, row: int, rng: np.random.Generator | None) -> Tensor:
        image = self.images.read(row)
        if rng is None:
            return eval_transform(image, self.size, self.source)
        return train_transform(image, self.size, self.source, rng)

    def check(self, image_list: str | Path | None = None) -> None:
        """Find missing files now: those of the split, or those that `image_list` names. Raises InputError."""
        if image_list is not None:
            check_image_list(self.images.folder, image_list)
        self.images.check()
