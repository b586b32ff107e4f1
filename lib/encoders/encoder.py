"""The contracts of image and text encoders: from what a batch holds to fragments, not normalised.

Letters: B images, R regions or grid cells, C captions, W tokens, D embedding size.
"""

from __future__ import annotations

from torch import Tensor, nn

from lib.core.fragments import Fragments, Tokens


class ImageEncoder(nn.Module):
    """Encodes region features, Fragments (B, R, img_dim), or raw images (B, 3, H, W) to Fragments (B, R, D)."""

    whole_batch = False  # True where an image's encoding depends on the others of its batch, which is then never split

    def forward(self, images: Fragments | Tensor) -> Fragments:
        raise NotImplementedError

    def pretrained_parameters(self) -> list[nn.Parameter]:
        """Those that get the learning rate of the backbone."""
        return []

    def fix_blocks(self, count: int) -> None:
        """Keep the first `count` of four pre-trained blocks as they are: 4 all of them, 0 none."""


class TextEncoder(nn.Module):
    """Encodes captions: Tokens (C, W) to Fragments (C, W, D)."""

    def forward(self, captions: Tokens) -> Fragments:
        raise NotImplementedError

    def pretrained_parameters(self) -> list[nn.Parameter]:
        """Those that get a tenth of the learning rate."""
        return []

    def loss_parameters(self) -> dict[str, nn.Parameter]:
        """Those that a loss trains as its own where it has parameters of these names."""
        return {}
