"""The grid encoder: raw images through a backbone, one fragment per cell of its feature map (released VSE∞ code).

Letters: B images, R grid cells, D embedding size, H and W side lengths in pixels.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor, nn

from lib.core.fragments import Fragments
from lib.core.host_random import host_rand
from lib.encoders.backbones import CHANNELS, build_backbone
from lib.encoders.encoder import ImageEncoder
from lib.encoders.regions import projection
from lib.encoders.transforms import SquareTransform, bgr_minus_mean, imagenet_normalize, input_size


class GridEncoder(ImageEncoder):
    """Backbone feature map, one fragment a cell, projected by `fc`: images (B, 3, H, W) -> Fragments (B, R, D).

    While training, an image draws u ~ U(0, 1); if u > 0.2, each of its cells is dropped with probability 0.2 u.
    """

    def __init__(self, backbone: nn.Module, backbone_dim: int, embed_size: int):
        super().__init__()
        self.backbone = backbone
        self.fc = projection(backbone_dim, embed_size)

    def forward(self, images: Tensor) -> Fragments:
        cells = self.backbone(images).flatten(2).transpose(1, 2)  # (B, R, backbone_dim)
        return Fragments(self.fc(cells.to(self.fc.weight.dtype)), self.kept_cells(*cells.shape[:2]))  # (B, R, D)

    def kept_cells(self, images: int, cells: int) -> np.ndarray:
        """Which cells (B, R) stay: all of them in evaluation; at least one of each image while training."""
        return kept_cells(images, cells) if self.training else np.ones((images, cells), dtype=bool)

    def pretrained_parameters(self) -> list[nn.Parameter]:
        return list(self.backbone.parameters())

    def fix_blocks(self, count: int) -> None:
        self.backbone.fix_blocks(count)


def kept_cells(images: int, cells: int) -> np.ndarray:
    """Which cells (B, R) stay while training: an image draws u ~ U(0, 1), and if u > 0.2, each of its cells is dropped
    with probability 0.2 u, but never all of them."""
    u, draws = host_rand(images, 1), host_rand(images, cells)
    dropped = (draws < 0.2 * u) & (u > 0.2)
    return (~(dropped & ~dropped.all(1, keepdim=True))).numpy()


def grid_encoder(embed_size: int, options: dict, paths: dict | None) -> GridEncoder:
    path = paths.get("backbone_path") if paths else None
    backbone = build_backbone(options["backbone_source"], path, pretrained=paths is not None)
    return GridEncoder(backbone, CHANNELS, embed_size)


def grid_transform(options: dict) -> SquareTransform:
    """The transform for a backbone: squares of 256 * input_scale_factor pixels, normalised as it was trained."""
    normalize = bgr_minus_mean if options["backbone_source"] == "detector" else imagenet_normalize
    return SquareTransform(input_size(options["input_scale_factor"]), normalize)
