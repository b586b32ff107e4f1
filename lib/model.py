"""MatchingModel, two encoders and a similarity head, and build_model, which reads the tables of all three."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn

from lib.core.config import EMBED_SIZE, ImageEncoderPart, ModelConfig, Paths, TextEncoderPart, row
from lib.core.errors import InputError
from lib.core.fragments import Fragments, Tokens
from lib.core.machine import free_memory
from lib.encoders import IMAGE_ENCODERS, TEXT_ENCODERS
from lib.encoders.encoder import ImageEncoder, TextEncoder
from lib.similarity import HEADS
from lib.similarity.head import SimilarityHead


class MatchingModel(nn.Module):
    """An image encoder, a text encoder and a similarity head; `config` is what build_model rebuilds it from."""

    def __init__(
        self, image_encoder: ImageEncoder, text_encoder: TextEncoder, similarity: SimilarityHead, config: ModelConfig
    ):
        super().__init__()
        self.image_encoder = image_encoder
        self.text_encoder = text_encoder
        self.similarity = similarity
        self.config = config

    def forward(self, images: Fragments | Tensor, captions: Tokens) -> Tensor:
        """Scores (B, C) of all pairs of B images, as the image encoder takes them, and C captions."""
        return self.similarity(self.image_encoder(images), self.text_encoder(captions))


def build_model(config: ModelConfig, paths: Paths | None = None) -> MatchingModel:
    """Build the network of `config`, its pre-trained parts from `paths`, or all of it with random weights.

    Raises InputError if the configuration is invalid or a part can't be loaded.
    """
    config = complete(config, paths)
    return MatchingModel(
        image_part(config).build(config.embed_size, config.image_options, paths),
        text_part(config).build(config.embed_size, config.text_options, paths),
        row(HEADS, config.similarity, "--similarity").build(config.embed_size, config.similarity_options),
        config,
    )


def check_memory(config: ModelConfig) -> None:
    """Raises InputError if the weights of a complete configuration do not fit into the free memory."""
    with torch.device("meta"):
        size = sum(tensor.nbytes for tensor in build_model(config).state_dict().values())
    free = free_memory()
    if free is not None and size > free:
        raise InputError(
            f"the weights of {describe(config)}, embed_size {config.embed_size}, take {size / 1e9:.1f} GB and "
            f"{free / 1e9:.1f} GB of memory are free; choose smaller sizes"
        )


def complete(config: ModelConfig, paths: Paths | None = None) -> ModelConfig:
    """`config` with every option of its parts, including those that are read from the files in `paths`.

    Raises InputError if a name is in no table or a value is invalid.
    """
    if not EMBED_SIZE.holds(config.embed_size):
        raise InputError(f"--embed_size is {config.embed_size}, expected {EMBED_SIZE}")
    image, text, head = image_part(config), text_part(config), row(HEADS, config.similarity, "--similarity")
    image_options, text_options = config.image_options, config.text_options
    if paths is not None:
        image_options = image.read_options(image_options, paths)
        text_options = text.read_options(text_options, paths)
    return dataclasses.replace(
        config,
        similarity_options=head.complete(config.embed_size, config.similarity_options),
        image_options=image.complete(config.embed_size, image_options),
        text_options=text.complete(config.embed_size, text_options),
    )


def image_part(config: ModelConfig) -> ImageEncoderPart:
    """The row of the image encoder."""
    return row(IMAGE_ENCODERS, config.image_encoder, "--image_encoder")


def text_part(config: ModelConfig) -> TextEncoderPart:
    """The row of the text encoder."""
    return row(TEXT_ENCODERS, config.text_encoder, "--text_encoder")


def describe(config: ModelConfig) -> str:
    """A network in a few words, the key of published figures: "ESL-A, region features, BERT"."""
    image = image_part(config)
    images = image.describe(config.image_options) if image.describe else image.label
    return f"{HEADS[config.similarity].label}, {images}, {text_part(config).label}"
