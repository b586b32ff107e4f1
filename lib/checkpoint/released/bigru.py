"""The layout of released files of VSE-infinity's BiGRU branch, read and written.

`model` of such a file is [img_enc, txt_enc]. Keys begin with "module." in files of raw images alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lib.checkpoint.checkpoint import Checkpoint
from lib.checkpoint.released import vse as vse_files
from lib.checkpoint.released.renaming import Layout, Rule
from lib.checkpoint.released.vse import IMG, TXT, holds_state_dicts, named_parts, read_parts, write_parts
from lib.core.config import ModelConfig

PARTS = (IMG, TXT)
SIMILARITY = "vse_infty"  # of every such file
LAYOUT = Layout(
    (
        *vse_files.RULES,
        Rule("", TXT, "embed.weight", "text_encoder.embed.weight"),
        Rule("", TXT, "rnn.{rest}", "text_encoder.gru.{rest}"),
    ),
    vse_files.TWINS,
    vse_files.UNUSED,
)


def name_of(key: str, config: ModelConfig) -> str:
    """What one of our keys is called in a released file: "txt_enc: rnn.weight_ih_l0"."""
    return LAYOUT.of(SIMILARITY, config.image_encoder == "grid").name_of(key)


def recognises(content: Any) -> bool:
    """Whether it is a file of this family with word vectors, which BERT's have not."""
    if not holds_state_dicts(content) or len(content["model"]) != len(PARTS):
        return False
    text = content["model"][1]
    return isinstance(text, dict) and not text.keys().isdisjoint({"embed.weight", "module.embed.weight"})


def read(content: dict[str, Any], path: Path, paths: dict[str, Any]) -> Checkpoint:
    """The Checkpoint of a released file, its sizes told by the shapes of its weights.

    Raises InputError that names the keys which belong to no such model, and where `opt` contradicts the weights.
    """
    parts = named_parts(content["model"], PARTS, len(PARTS), path)
    return read_parts(parts, LAYOUT, SIMILARITY, content, path, "released_bigru", paths)


def write(path: str | Path, checkpoint: Checkpoint) -> None:
    """Write a Checkpoint in the released layout, for the original code; InputError for a weight without a place."""
    config = checkpoint.config
    grid = config.image_encoder == "grid"
    parts = LAYOUT.of(config.similarity, grid).to_released(checkpoint, PARTS, path)
    write_parts(path, parts, checkpoint, "module." if grid else "", {**config.text_options, "drop": True})
