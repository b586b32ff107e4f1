"""Plain CLIP as a checkpoint: both encoders and cosine similarity, nothing trained."""

from __future__ import annotations

from pathlib import Path

from lib.checkpoint.native import save_checkpoint
from lib.core.config import ModelConfig
from lib.encoders.clip import load_clip_config
from lib.model import MatchingModel, build_model


def build_zero_shot(clip_path: str) -> MatchingModel:
    """The CLIP of a folder, a hub name or a file of OpenAI's names; InputError where there is none."""
    config = ModelConfig("cosine", "clip", "clip", load_clip_config(clip_path).projection_dim)
    return build_model(config, {"clip_path": clip_path})


def save_zero_shot(clip_path: str, folder: Path) -> Path:
    """Write the CLIP of `build_zero_shot` as a checkpoint; returns its path."""
    path = folder / f"{Path(clip_path).resolve().name}.pth"
    save_checkpoint(path, build_zero_shot(clip_path))
    return path
