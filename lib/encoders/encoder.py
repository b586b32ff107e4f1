"""The contracts of image and text encoders: from what a batch holds to fragments, not normalised.

Letters: B images, R regions or grid cells, C captions, W tokens, D embedding size.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
from torch import Tensor, nn

from lib.config import Part
from lib.fragments import Fragments, Tokens


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


Paths = dict[str, Any]  # files and folders of this machine by the flags that name them: bert_path, backbone_path, ...


@dataclasses.dataclass(frozen=True)
class EncoderPart(Part):
    """A row of a table of encoders: build(embed_size, options, paths), where paths None means random weights.

    With `paths` the pre-trained parts are loaded from there.
    """

    read_options: Callable[[dict, Paths], dict] = lambda options, paths: options  # adds what only the files tell

    def make(self, embed_size: int, paths: Paths | None = None, **given: Any) -> Any:
        return self.build(embed_size, self.complete(embed_size, given), paths)


@dataclasses.dataclass(frozen=True)
class ImageEncoderPart(EncoderPart):
    """`transform(options)` gives the function from a decoded image, uint8 (H, W, 3), and a random generator (None: no
    augmentation) to the encoder's input (3, H, W); None: the input is region features of size options["img_dim"]. A
    method `decode` of that function, from an opened file to uint8 (H, W, 3), replaces plain decoding to RGB."""

    transform: Callable[[dict], Callable[[np.ndarray, np.random.Generator | None], Tensor]] | None = None
    describe: Callable[[dict], str] | None = None  # its label where that depends on the options


@dataclasses.dataclass(frozen=True)
class TextEncoderPart(EncoderPart):
    """`tokeniser` names a row of lib.datasets.tokenisers.TOKENISERS."""

    tokeniser: str = ""
