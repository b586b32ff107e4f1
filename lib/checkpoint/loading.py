"""From a Checkpoint to a model, strictly: every weight has its place, and every place its weight."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from lib.checkpoint.checkpoint import Checkpoint
from lib.checkpoint.formats import FORMATS
from lib.core.config import ModelConfig
from lib.core.errors import InputError, shown
from lib.files.weights import check_fit, load_strictly
from lib.model import MatchingModel, build_model, image_part, text_part


def load_model(checkpoint: Checkpoint) -> MatchingModel:
    """The network of a checkpoint with its weights, on the CPU; InputError that names what does not fit."""
    check_complete(checkpoint)  # before memory is taken for a network
    model = _build(checkpoint)
    load_strictly(model, checkpoint.model, *_naming(checkpoint))
    return model


def check_complete(checkpoint: Checkpoint) -> None:
    """InputError unless the weights are those of the network of the configuration, all and no others."""
    with torch.device("meta"):
        check_fit(_build(checkpoint), checkpoint.model, *_naming(checkpoint))


def load_for(config: ModelConfig, checkpoint: Checkpoint) -> MatchingModel:
    """The network of `config`, a run that goes on, with a checkpoint's weights; InputError when that is of another."""
    held, asked = _shaping(checkpoint.config), _shaping(config)
    differing = [name for name in asked if name in held and held[name] != asked[name]]
    if differing:
        raise InputError(
            f"{checkpoint.path} holds {_words(held, differing)}, but {_words(asked, differing)} was asked for; give "
            "the flags that it was trained with"
        )
    model = build_model(config)
    load_strictly(model, checkpoint.model, *_naming(checkpoint))
    return model


def _naming(checkpoint: Checkpoint) -> tuple:
    """How a message begins that says what does not fit, and how it names a weight."""
    named = partial(FORMATS[checkpoint.origin].name_of, config=checkpoint.config)
    return f"{checkpoint.path}: not the weights of {checkpoint.description}", named


def _build(checkpoint: Checkpoint) -> MatchingModel:
    try:
        return build_model(checkpoint.config)
    except InputError as error:
        raise InputError(f"{checkpoint.path}: {error}") from None
    except Exception as error:  # a configuration with values that no network can have
        raise InputError(f"{checkpoint.path}: its configuration gives no network ({shown(error, 160)})") from None


def _shaping(config: ModelConfig) -> dict[str, Any]:
    """The values on which the weights and what they compute depend, under the names of their flags."""
    text = text_part(config)
    texts = {name: value for name, value in config.text_options.items() if name not in text.training_only}
    return {
        **{name: getattr(config, name) for name in ("similarity", "image_encoder", "text_encoder", "embed_size")},
        **{k: v for k, v in config.similarity_options.items()},
        **{k: v for k, v in config.image_options.items() if k not in image_part(config).training_only},
        **{f"{text.label} {name}": value for name, value in texts.items()},
    }


def _words(values: dict[str, Any], names: list[str]) -> str:
    """As in: similarity esl_a, embed_size 512, kernel_size 2."""
    return ", ".join(f"{name} {values[name]}" for name in dict.fromkeys(["similarity", "embed_size", *names]))
