"""Image transformers as grid encoders: ViT (Dosovitskiy et al., ICLR 2021) and Swin (Liu et al., ICCV 2021).

Letters: B images, R patches, S side length of the square input in pixels, H' and W' side lengths in patches.
"""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import (
    ImageProcessingMixin,
    PretrainedConfig,
    PreTrainedModel,
    SwinConfig,
    SwinModel,
    ViTConfig,
    ViTModel,
)

from lib.core.config import Paths
from lib.core.errors import InputError
from lib.encoders import fields
from lib.encoders.grid import GridEncoder
from lib.encoders.pretrained import load_pretrained, own_config, whole_model
from lib.encoders.stages import Stages, fix_stages, in_stages
from lib.encoders.transforms import SquareTransform


class Kind(NamedTuple):
    """An architecture of transformers: its classes and the plain values that its network depends on."""

    label: str
    config: type[PretrainedConfig]
    model: type[PreTrainedModel]
    fields: dict[str, Any]


VIT = Kind("ViT", ViTConfig, ViTModel, fields.VIT)
SWIN = Kind("Swin", SwinConfig, SwinModel, fields.SWIN)


class TransformerBackbone(nn.Module):
    """The last hidden state without its class token: images (B, 3, S, S) -> feature map (B, hidden, H', W').

    Positions are interpolated where S is not the size that they were learned for.
    """

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        other = images.shape[-1] != self.model.config.image_size
        hidden = self.model(pixel_values=images, interpolate_pos_encoding=other).last_hidden_state  # (B, 1 + R, hidden)
        side = math.isqrt(hidden.shape[1])
        patches = hidden[:, hidden.shape[1] - side * side :]  # (B, R, hidden)
        return patches.transpose(1, 2).unflatten(2, (side, side))  # (B, hidden, H', W')

    @property
    def stages(self) -> Stages:
        """The embeddings, then the layers in four shares; of a Swin, its four stages."""
        layers = self.model.layers if hasattr(self.model, "layers") else self.model.encoder.layers
        return in_stages([self.model.embeddings], layers, [self.model.layernorm])

    def fix_blocks(self, count: int) -> None:
        """Freeze the embeddings and the first `count` shares of the layers: 4 freezes all, 0 nothing."""
        fix_stages(self.stages, count)


def transformer_encoder(kind: Kind, embed_size: int, options: dict[str, Any], paths: Paths | None) -> GridEncoder:
    """A grid encoder with the transformer in --backbone_path, or with random weights."""
    config = kind.config(**{name: options[name] for name in kind.fields})
    if paths:
        load = partial(whole_model, kind.model, config, add_pooling_layer=False)
        model = load_pretrained("--backbone_path", _path(paths, kind), load, kind.label)
    else:
        model = kind.model(config, add_pooling_layer=False)
    hidden_size = model.layernorm.normalized_shape[0]
    return GridEncoder(TransformerBackbone(model), hidden_size, embed_size)


def read_transformer_options(kind: Kind, options: dict[str, Any], paths: Paths) -> dict[str, Any]:
    """The values of the transformer in --backbone_path, and how its processor resizes and normalises images.

    Raises InputError where there is none.
    """
    path = _path(paths, kind)
    config = load_pretrained("--backbone_path", path, partial(own_config, kind.config, kind.fields), kind.label)
    processor = load_pretrained(
        "--backbone_path",
        path,
        lambda path: ImageProcessingMixin.get_image_processor_dict(path)[0],
        "image processor's",
    )
    try:
        size = processor["size"]
        size = size if isinstance(size, int) else size.get("height") or size["shortest_edge"]
        means, deviations = (list(map(float, processor[name])) for name in ("image_mean", "image_std"))
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
        reason = f"its preprocessor_config.json has no usable size, image_mean and image_std ({error!r})"
        raise InputError(f"--backbone_path {path}: {reason}; take the model's own file") from None
    found = {name: getattr(config, name) for name in kind.fields}
    found |= {"input_size": options.get("input_size") or size, "image_mean": means, "image_std": deviations}
    return options | {name: list(value) if isinstance(value, tuple) else value for name, value in found.items()}


vit_encoder, swin_encoder = partial(transformer_encoder, VIT), partial(transformer_encoder, SWIN)
read_vit_options, read_swin_options = partial(read_transformer_options, VIT), partial(read_transformer_options, SWIN)


def _path(paths: Paths, kind: Kind) -> str | Path:
    if not paths.get("backbone_path"):
        raise InputError(f"--image_encoder {kind.config.model_type} needs --backbone_path, a folder or a hub name")
    return paths["backbone_path"]


class Normalize:
    """RGB of range 0–255 -> the given mean and deviation of each channel, stated for range 0–1; in place."""

    def __init__(self, means: list[float], deviations: list[float]):
        self.means, self.deviations = (255 * torch.tensor(values)[:, None, None] for values in (means, deviations))

    def __call__(self, pixels: Tensor) -> Tensor:
        return pixels.sub_(self.means).div_(self.deviations)


def transformer_transform(options: dict[str, Any]) -> SquareTransform:
    """Antialiased squares of the size and normalisation of the model's processor, augmented as for the ResNets."""
    normalize = Normalize(options["image_mean"], options["image_std"])
    return SquareTransform(options["input_size"], normalize, antialias=True)


def check_transformer(embed_size: int, options: dict[str, Any]) -> None:
    """InputError for sizes that are not known or that give no whole number of patches."""
    size, patch = options.get("input_size"), options.get("patch_size")
    if not patch or not size:
        raise InputError("the sizes of this image transformer are not known; name it with --backbone_path")
    if type(size) is not int or size % patch:
        raise InputError(f"--input_size is {size}, expected a multiple of the patches' {patch} pixels")
