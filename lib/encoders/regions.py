"""The region encoder: precomputed region features (released ESL and VSE∞ code).

Letters: B images, R regions, D embedding size, n real regions of a batch.
"""

from __future__ import annotations

from torch import Tensor, nn

from lib.core.fragments import Fragments
from lib.encoders.encoder import ImageEncoder


class RegionEncoder(ImageEncoder):
    """f = fc(x) + mlp(x) of precomputed region features: Fragments (B, R, img_dim) -> Fragments (B, R, D).

    Dropped and padded regions are left out before the first layer, so they touch neither the output nor the
    BatchNorm statistics nor a gradient; their output rows are 0.
    """

    whole_batch = True  # for BatchNorm's statistics

    def __init__(self, img_dim: int, embed_size: int):
        super().__init__()
        self.fc = projection(img_dim, embed_size)
        self.mlp = MLP(img_dim, embed_size // 2, embed_size)

    def forward(self, regions: Fragments) -> Fragments:
        return regions.map(self._encode)

    def _encode(self, features: Tensor) -> Tensor:
        features = features.to(self.fc.weight.dtype)
        return self.fc(features) + self.mlp(features)  # (n, D)


class MLP(nn.Module):
    """Linear -> BatchNorm -> ReLU -> Linear over rows (n, in) -> (n, out)."""

    def __init__(self, in_size: int, hidden_size: int, out_size: int):
        super().__init__()
        self.hidden = nn.Linear(in_size, hidden_size)
        self.norm = nn.BatchNorm1d(hidden_size)
        self.output = nn.Linear(hidden_size, out_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.output(self.norm(self.hidden(x)).relu())


def projection(in_size: int, out_size: int) -> nn.Linear:
    """Linear layer with weights uniform in +-sqrt(6 / (in + out)) and bias 0, as released."""
    linear = nn.Linear(in_size, out_size)
    bound = (6.0 / (in_size + out_size)) ** 0.5
    nn.init.uniform_(linear.weight, -bound, bound)
    nn.init.zeros_(linear.bias)
    return linear


def region_encoder(embed_size: int, options: dict, paths: dict | None) -> RegionEncoder:
    return RegionEncoder(options["img_dim"], embed_size)
