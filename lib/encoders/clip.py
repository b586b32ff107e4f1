"""CLIP's two encoders (Radford et al., ICML 2021), as transformers.CLIPModel has them: one vector an item, or all.

Letters: B images, R patches, C captions, W tokens (start and end included), D size of CLIP's projection.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from lib.core.config import Paths
from lib.core.errors import InputError
from lib.core.fragments import Fragments, Tokens
from lib.encoders import openai_clip
from lib.encoders.encoder import ImageEncoder, TextEncoder
from lib.encoders.fields import CLIP_IMAGE, CLIP_TEXT
from lib.encoders.grid import kept_cells
from lib.encoders.pretrained import known_values, load_pretrained, own_values, whole_model
from lib.encoders.stages import fix_stages, in_stages
from lib.files.pytorch import read_file
from lib.files.weights import load_strictly, state_dict_of


class ClipImageEncoder(ImageEncoder):
    """Images (B, 3, H, W) -> the projected class token, Fragments (B, 1, D), or with `tokens` all projected patches,
    Fragments (B, R, D), of which some are dropped while training, as grid cells are."""

    def __init__(self, vision_model: nn.Module, visual_projection: nn.Linear, tokens: bool = False):
        super().__init__()
        self.vision_model, self.visual_projection, self.tokens = vision_model, visual_projection, tokens

    def forward(self, images: Tensor) -> Fragments:
        found = self.vision_model(pixel_values=images)
        if not self.tokens:
            return Fragments.full(self.visual_projection(found.pooler_output)[:, None])  # (B, 1, D)
        patches = self.vision_model.post_layernorm(found.last_hidden_state[:, 1:])  # (B, R, width)
        features = self.visual_projection(patches)  # (B, R, D)
        return Fragments(features, kept_cells(*features.shape[:2])) if self.training else Fragments.full(features)

    def pretrained_parameters(self) -> list[nn.Parameter]:
        return list(self.parameters())

    def fix_blocks(self, count: int) -> None:
        tower = self.vision_model
        last = [tower.post_layernorm, self.visual_projection]
        fix_stages(in_stages([tower.embeddings, tower.pre_layrnorm], tower.encoder.layers, last), count)


class ClipTextEncoder(TextEncoder):
    """Tokens (C, W) -> the projected vector at the end token, Fragments (C, 1, D), or with `tokens` all projected
    tokens, Fragments (C, W, D).

    The end token has the largest id of the vocabulary, so the first of the largest ids is taken; a caption that was cut
    and has none is read at its first token (released code). Padding stands behind and attention looks back alone, so
    it changes nothing. `logit_scale` is CLIP's own scalar, a logarithm, which a contrastive loss trains.
    """

    def __init__(self, text_model: nn.Module, text_projection: nn.Linear, logit_scale: Tensor, tokens: bool = False):
        super().__init__()
        self.text_model, self.text_projection, self.tokens = text_model, text_projection, tokens
        self.logit_scale = nn.Parameter(logit_scale.detach().clone())

    def forward(self, captions: Tokens) -> Fragments:
        hidden = self.text_model(input_ids=captions.ids).last_hidden_state  # (C, W, width)
        if not self.tokens:
            ends = hidden[torch.arange(len(hidden), device=hidden.device), captions.ids.argmax(1)]  # (C, width)
            return Fragments.full(self.text_projection(ends)[:, None])  # (C, 1, D)
        features = self.text_projection(hidden).masked_fill(~captions.mask[..., None], 0.0)
        return Fragments(features, captions.real)  # (C, W, D)

    def pretrained_parameters(self) -> list[nn.Parameter]:
        return list(self.parameters())

    def loss_parameters(self) -> dict[str, nn.Parameter]:
        return {"logit_scale": self.logit_scale}


def clip_image_encoder(embed_size: int, options: dict[str, Any], paths: Paths | None) -> ClipImageEncoder:
    clip = load_clip(paths["clip_path"]) if paths else CLIPVisionModelWithProjection(
        CLIPVisionConfig(**{name: options[name] for name in CLIP_IMAGE}))  # fmt: skip
    return ClipImageEncoder(clip.vision_model, clip.visual_projection, options["clip_output"] == "tokens")


def clip_text_encoder(embed_size: int, options: dict[str, Any], paths: Paths | None) -> ClipTextEncoder:
    clip = load_clip(paths["clip_path"]) if paths else CLIPTextModelWithProjection(
        CLIPTextConfig(**{name: options[name] for name in CLIP_TEXT}, **_special_tokens(options)))  # fmt: skip
    scale = clip.logit_scale if paths else torch.tensor(CLIPConfig().logit_scale_init_value)
    return ClipTextEncoder(clip.text_model, clip.text_projection, scale, options["clip_output"] == "tokens")


def _special_tokens(options: dict[str, Any]) -> dict[str, int]:
    """CLIP's start and end tokens, the last two of its vocabulary."""
    return {"bos_token_id": options["vocab_size"] - 2, "eos_token_id": options["vocab_size"] - 1}


def read_image_options(options: dict[str, Any], paths: Paths) -> dict[str, Any]:
    """The values of the image tower in --clip_path; InputError where there is none."""
    return options | clip_values(load_clip_config(paths["clip_path"]))[0]


def read_text_options(options: dict[str, Any], paths: Paths) -> dict[str, Any]:
    """The values of the text tower in --clip_path; InputError where there is none."""
    return options | clip_values(load_clip_config(paths["clip_path"]))[1]


def check_clip(embed_size: int, options: dict[str, Any]) -> None:
    """InputError where the joint space is not that of CLIP's projection."""
    size = options.get("projection_dim")
    if size != embed_size:
        told = f"CLIP projects to {size}; give --embed_size {size}" if size else "CLIP's sizes are not known"
        raise InputError(f"--embed_size is {embed_size}, but {told}")


def clip_values(config: CLIPConfig) -> tuple[dict[str, Any], dict[str, Any]]:
    """The plain values of a CLIPConfig on which the towers depend, image and text."""
    towers = (config.vision_config, CLIP_IMAGE), (config.text_config, CLIP_TEXT)
    return tuple(
        {name: getattr(tower, name) for name in fields} | {"projection_dim": config.projection_dim}  # that counts
        for tower, fields in towers
    )


def load_clip_config(clip_path: str | Path) -> CLIPConfig:
    """The configuration of a CLIP: of a folder in Hugging Face form, a hub name, or a file with OpenAI's names."""
    if Path(clip_path).is_file():
        return _config(*openai_clip.sizes(_openai_weights(clip_path), f"--clip_path {clip_path}"))
    return load_pretrained("--clip_path", clip_path, _own_config, "CLIP")


def _own_config(path: str) -> CLIPConfig:
    values = own_values(CLIPConfig, path)
    size = {"projection_dim": values.get("projection_dim", CLIPConfig().projection_dim)}  # that counts
    towers = []
    for name, kind, fields in (("vision", CLIPVisionConfig, CLIP_IMAGE), ("text", CLIPTextConfig, CLIP_TEXT)):
        given = known_values(values.get(f"{name}_config", {}), fields)
        given |= known_values(values.get(f"{name}_config_dict") or {}, fields)  # as files of old versions have it
        defaults = kind()
        towers.append({field: getattr(defaults, field) for field in fields} | given | known_values(size, fields))
    return _config(*towers)


def _config(image: dict[str, Any], text: dict[str, Any]) -> CLIPConfig:
    text = text | _special_tokens(text)
    return CLIPConfig(vision_config=image, text_config=text, projection_dim=text["projection_dim"])


def load_clip(clip_path: str | Path) -> CLIPModel:
    """A pre-trained CLIP from a folder in Hugging Face form, a hub name, or a file with OpenAI's names, in float32.

    Raises InputError where there is none.
    """
    if not Path(clip_path).is_file():
        return load_pretrained(
            "--clip_path", clip_path, partial(whole_model, CLIPModel, load_clip_config(clip_path)), "CLIP"
        )
    where = f"--clip_path {clip_path}"
    weights = _openai_weights(clip_path)
    clip = CLIPModel(load_clip_config(clip_path))
    load_strictly(clip, openai_clip.to_transformers(weights, where), where)
    return clip


def _openai_weights(path: str | Path) -> dict[str, Tensor]:
    """CLIP's tensors of a file: a state dict, or one under "state_dict" beside others' tensors, as released."""
    content = read_file(path)
    state = state_dict_of(content, f"--clip_path {path}")
    state = {key: value for key, value in state.items() if isinstance(value, Tensor)}
    of_clip = {key.removeprefix("clip."): value for key, value in state.items() if key.startswith("clip.")}
    numbers = ("input_resolution", "context_length", "vocab_size")  # which OpenAI's own files add
    return {key: value for key, value in (of_clip or state).items() if key not in numbers}
