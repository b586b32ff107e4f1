"""From a Checkpoint to a model, strictly: every weight has its place, and every place its weight."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from lib.checkpoint import released
from lib.checkpoint.content import Checkpoint, listed, shown
from lib.config import ModelConfig
from lib.errors import InputError
from lib.model import MatchingModel, build_model

_BERT_SHAPING = (
    "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act",
    "max_position_embeddings", "type_vocab_size", "layer_norm_eps",
)  # fmt: skip


def load_model(checkpoint: Checkpoint) -> MatchingModel:
    """The network of a checkpoint with its weights, on the CPU; InputError that names what does not fit."""
    model = _build(checkpoint)
    check_fit(model, checkpoint)
    model.load_state_dict(checkpoint.model)
    return model


def load_into(model: MatchingModel, checkpoint: Checkpoint) -> None:
    """Fill a model that exists (a run that goes on); InputError when the checkpoint is of another network."""
    held, asked = _shaping(checkpoint.config), _shaping(model.config)
    differing = [name for name in asked if name in held and held[name] != asked[name]]
    if differing or held["similarity"] != asked["similarity"]:
        raise InputError(
            f"{checkpoint.path} holds {_words(held, differing)}, but --similarity {_words(asked, differing)} "
            "was asked for; give the flags that it was trained with"
        )
    check_fit(model, checkpoint)
    model.load_state_dict(checkpoint.model)


def check_complete(checkpoint: Checkpoint) -> None:
    """InputError unless the weights are those of the network of the configuration, all and no others."""
    with torch.device("meta"):
        check_fit(_build(checkpoint), checkpoint)


def check_fit(model: nn.Module, checkpoint: Checkpoint) -> None:
    """InputError that names missing weights, left-over weights and weights of another shape."""
    places = model.state_dict()
    shapes = {key: tuple(tensor.shape) for key, tensor in checkpoint.model.items()}
    problems = {
        "missing": [key for key in places if key not in shapes],
        "left over": [key for key in shapes if key not in places],
        "of another shape": [key for key in places if key in shapes and shapes[key] != tuple(places[key].shape)],
    }
    if any(problems.values()):
        parts = [
            f"{len(keys)} {'key' if len(keys) == 1 else 'keys'} {what} "
            f"({listed([_shown(key, what, shapes, places, checkpoint) for key in keys])})"
            for what, keys in problems.items()
            if keys
        ]
        raise InputError(f"{checkpoint.path}: not the weights of {checkpoint.description}: {'; '.join(parts)}")


def _shown(key: str, what: str, shapes: dict, places: dict, checkpoint: Checkpoint) -> str:
    config = checkpoint.config
    name = released.released_name(key, config.similarity, config.grid) if checkpoint.origin == "released" else key
    return f"{name} {shapes[key]}, expected {tuple(places[key].shape)}" if what == "of another shape" else name


def _build(checkpoint: Checkpoint) -> MatchingModel:
    try:
        return build_model(checkpoint.config, pretrained=False)
    except InputError as error:
        raise InputError(f"{checkpoint.path}: {error}") from None
    except Exception as error:  # a configuration with values that no network can have
        raise InputError(f"{checkpoint.path}: its configuration gives no network ({shown(error, 160)})") from None


def _shaping(config: ModelConfig) -> dict[str, Any]:
    """The values on which the weights and what they compute depend, under the names of their flags."""
    names = ["similarity", "embed_size", "precomp_enc_type", "no_imgnorm", "no_txtnorm"]
    names.append("backbone_source" if config.grid else "img_dim")
    if config.similarity != "vse_infty":
        names.append("kernel_size")
    values = {name: getattr(config, name) for name in names}
    return values | {f"BERT {name}": config.bert[name] for name in _BERT_SHAPING if name in config.bert}


def _words(values: dict[str, Any], names: list[str]) -> str:
    """As in: esl_a with embed_size 512, kernel_size 2."""
    names = list(dict.fromkeys(["embed_size", *(name for name in names if name != "similarity")]))
    return f"{values['similarity']} with {', '.join(f'{name} {values[name]}' for name in names)}"
