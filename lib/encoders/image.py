"""Image encoders: regions (precomputed features) and grid cells (raw images).

Letters: B images, R regions or grid cells, D embedding size.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lib.encoders.mlp import MLP
from lib.fragments import Fragments


class RegionEncoder(nn.Module):
    """f = fc(x) + mlp(x) of precomputed region features: Fragments (B, R, img_dim) -> Fragments (B, R, D).

    Dropped and padded regions are left out before the first layer, so they touch neither the output nor the
    BatchNorm statistics nor a gradient; their output rows are 0.
    """

    def __init__(self, img_dim: int, embed_size: int):
        super().__init__()
        self.fc = _projection(img_dim, embed_size)
        self.mlp = MLP(img_dim, embed_size // 2, embed_size)

    def forward(self, regions: Fragments) -> Fragments:
        return regions.map(self._encode)

    def _encode(self, features: Tensor) -> Tensor:
        features = features.to(self.fc.weight.dtype)
        return self.fc(features) + self.mlp(features)  # (n, D)


class GridEncoder(nn.Module):
    """Backbone feature map, one fragment a cell, projected by `fc`: images (B, 3, H, W) -> Fragments (B, R, D).

    While training, an image draws u ~ U(0, 1); if u > 0.2, each of its cells is dropped with probability 0.2 u.
    """

    def __init__(self, backbone: nn.Module, backbone_dim: int, embed_size: int):
        super().__init__()
        self.backbone = backbone
        self.fc = _projection(backbone_dim, embed_size)

    def forward(self, images: Tensor) -> Fragments:
        cells = self.backbone(images).flatten(2).transpose(1, 2)  # (B, R, backbone_dim)
        mask = self.cell_mask(*cells.shape[:2], cells.device)
        return Fragments(self.fc(cells.to(self.fc.weight.dtype)), mask)  # (B, R, D)

    def cell_mask(self, images: int, cells: int, device=None) -> Tensor:
        """Which cells (B, R) stay: all of them in evaluation; at least one of each image while training."""
        if not self.training:
            return torch.ones(images, cells, dtype=torch.bool, device=device)
        u = torch.rand(images, 1, device=device)
        dropped = (torch.rand(images, cells, device=device) < 0.2 * u) & (u > 0.2)
        return ~(dropped & ~dropped.all(1, keepdim=True))


def _projection(in_size: int, out_size: int) -> nn.Linear:
    """Linear layer with weights uniform in +-sqrt(6 / (in + out)) and bias 0, as released."""
    linear = nn.Linear(in_size, out_size)
    bound = (6.0 / (in_size + out_size)) ** 0.5
    nn.init.uniform_(linear.weight, -bound, bound)
    nn.init.zeros_(linear.bias)
    return linear
