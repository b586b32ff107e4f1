"""Plain CLIP as a checkpoint: both encoders and cosine similarity, nothing trained."""

from __future__ import annotations

from pathlib import Path

from lib.checkpoint.native import save_checkpoint
from lib.core.config import ModelConfig
from lib.encoders.clip import load_clip_config
from lib.model import build_model


def save_zero_shot(clip_path: str, folder: Path) -> Path:
    """Write the CLIP of a folder, a hub name or a file of OpenAI's names as a checkpoint; returns its path.

    Raises InputError where there is none.
    """
    config = ModelConfig("cosine", "clip", "clip", load_clip_config(clip_path).projection_dim)
    path = folder / f"{Path(clip_path).resolve().name}.pth"
    save_checkpoint(path, build_model(config, {"clip_path": clip_path}))
    return path
