"""CLIP's tensors under the names that OpenAI gave them, and under those of transformers.CLIPModel.

OpenAI's files hold queries, keys and values of an attention in one tensor, and both projections transposed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lib.core.errors import InputError, listed

HEAD_SIZE = 64  # of every attention in CLIP's files, which do not state it
_TOWERS = {"visual.": "vision_model.", "": "text_model."}
_NAMES = {
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "logit_scale": "logit_scale",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
    "text_projection": "text_projection.weight",
    "visual.proj": "visual_projection.weight",
}
_TRANSPOSED = {"text_projection", "visual.proj"}
_IN_BLOCK = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "attn.out_proj": "self_attn.out_proj",
}
_THIRDS = ("q_proj", "k_proj", "v_proj")  # of attn.in_proj, in this order
_BLOCK = re.compile(r"(visual\.|)transformer\.resblocks\.(\d+)\.(.+?)([._])(weight|bias)")
_LAYER = re.compile(r"(vision_model\.|text_model\.)encoder\.layers\.(\d+)\.(.+)\.(weight|bias)")
_OPENAI = {ours: name for name, ours in _NAMES.items()}


def transformers_names(name: str) -> list[str]:
    """What transformers calls the parts of one of OpenAI's tensors; none for a name that CLIP has not."""
    if name in _NAMES:
        return [_NAMES[name]]
    if not (found := _BLOCK.fullmatch(name)):
        return []
    tower, layer, inside, joint, kind = found.groups()
    place = f"{_TOWERS[tower]}encoder.layers.{layer}."
    if (inside, joint) == ("attn.in_proj", "_"):
        return [f"{place}self_attn.{third}.{kind}" for third in _THIRDS]
    return [f"{place}{_IN_BLOCK[inside]}.{kind}"] if inside in _IN_BLOCK and joint == "." else []


def openai_name(key: str) -> str | None:
    """Which of OpenAI's tensors holds one of transformers.CLIPModel's; None where it is none of these."""
    if key in _OPENAI:
        return _OPENAI[key]
    if not (found := _LAYER.fullmatch(key)):
        return None
    tower, layer, inside, kind = found.groups()
    place = f"{'visual.' if tower == 'vision_model.' else ''}transformer.resblocks.{layer}."
    if inside.removeprefix("self_attn.") in _THIRDS:
        return f"{place}attn.in_proj_{kind}"
    return next((f"{place}{name}.{kind}" for name, ours in _IN_BLOCK.items() if ours == inside), None)


def to_transformers(weights: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """OpenAI's tensors as transformers.CLIPModel names and cuts them; InputError with `where` in front for others."""
    if unknown := [name for name in weights if not transformers_names(name)]:
        raise InputError(f"{where}: {len(unknown)} left over (CLIP has no such tensor): {listed(unknown)}")
    found = {}
    for name, tensor in weights.items():
        keys = transformers_names(name)
        tensor = tensor.T.contiguous() if name in _TRANSPOSED else tensor
        found |= dict(zip(keys, tensor.chunk(3) if len(keys) == 3 else [tensor], strict=True))
    return found


def to_openai(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a transformers.CLIPModel as OpenAI names and joins them."""
    found = {}
    for name in dict.fromkeys(map(openai_name, weights)):
        parts = [weights[key] for key in transformers_names(name)]
        tensor = torch.cat(parts) if len(parts) > 1 else parts[0]
        found[name] = tensor.T.contiguous() if name in _TRANSPOSED else tensor
    return found


def sizes(weights: Mapping[str, Tensor], where: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The values of both towers, image and text, as the shapes of OpenAI's tensors tell them.

    Raises InputError that begins with `where` when a tensor that tells one is missing or has too few axes.
    """

    def size(name: str, axis: int) -> int:
        if name not in weights or weights[name].dim() < axis + 1:
            raise InputError(f"{where}: {name} is missing or has too few axes; expected the tensors of CLIP")
        return weights[name].shape[axis]

    def tower(prefix: str, width: int) -> dict[str, Any]:
        blocks = {found[2] for found in map(_BLOCK.fullmatch, weights) if found and found[1] == prefix}
        return {
            "hidden_size": width,
            "intermediate_size": size(f"{prefix}transformer.resblocks.0.mlp.c_fc.weight", 0),
            "num_hidden_layers": len(blocks),
            "num_attention_heads": max(1, width // HEAD_SIZE),
            "hidden_act": "quick_gelu",
            "layer_norm_eps": 1e-5,
            "projection_dim": size("text_projection", 1),
        }

    patch, cells = size("visual.conv1.weight", 3), size("visual.positional_embedding", 0) - 1
    image = tower("visual.", size("visual.conv1.weight", 0))
    text = tower("", size("positional_embedding", 1))
    return (
        image | {"patch_size": patch, "image_size": patch * math.isqrt(max(0, cells))},
        text
        | {"vocab_size": size("token_embedding.weight", 0), "max_position_embeddings": size("positional_embedding", 0)},
    )
