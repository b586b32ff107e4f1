"""The layout of released ESL and VSE-infinity files with BERT, read and written.

`model` of such a file is [img_enc, txt_enc, sim_vec]; sim_vec is absent in VSE-infinity files. Every key that is
written begins with "module.".
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lib.checkpoint.checkpoint import Checkpoint
from lib.checkpoint.released import vse as vse_files
from lib.checkpoint.released.renaming import Layout, Rule, Unused
from lib.checkpoint.released.vse import IMG, TXT, holds_state_dicts, named_parts, read_parts, write_parts
from lib.core.config import ModelConfig
from lib.core.errors import InputError, listed

SIM = "sim_vec"
PARTS = (IMG, TXT, SIM)
_IMAGE_LEVELS = "plus_encoder.encoders_1.image_levels"
_TEXT_LEVELS = "plus_encoder.encoders_1.text_levels"
LAYOUT = Layout(
    (
        *vse_files.RULES,
        Rule("", TXT, "bert.{rest}", "text_encoder.bert.{rest}"),
        Rule("", TXT, "linear.{rest}", "text_encoder.linear.{rest}"),
        Rule("esl_a", SIM, f"{_IMAGE_LEVELS}.masks_{{k}}.weight", "similarity.image_aggregator.weights.{k-1}"),
        Rule("esl_a", SIM, f"{_TEXT_LEVELS}.masks_{{k}}.weight", "similarity.caption_aggregator.weights.{k-1}"),
        Rule("esl_h", SIM, f"{_IMAGE_LEVELS}.kernel_img_{{k}}.weight", "similarity.image_aggregator.weights.{k-1}"),
        Rule("esl_h", SIM, f"{_TEXT_LEVELS}.kernel_txt_{{k}}.weight", "similarity.caption_aggregator.weights.{k-1}"),
        Rule("esl", SIM, "sims.calculator_1.masks_{k}.weight", "similarity.correspondences.{k}.matrix"),
        Rule("esl", SIM, "sims.calculator_1.lynorm_{k}.{rest}", "similarity.correspondences.{k}.norm.{rest}"),
        Rule("esl", SIM, "sims.calculator_1.sim_eval.weight", "similarity.contribution.p", ones=1),
        Rule("esl", SIM, "sims.calculator_1.temp_scale.weight", "similarity.log_scale", ones=2),
        Rule("esl_h", SIM, "sims.calculator_1.temp_scale_1.weight", "similarity.contribution.sigma", ones=2),
        Rule("esl_h", SIM, "sims.calculator_1.temp_scale_2.weight", "similarity.contribution.log_sharpness", ones=2),
    ),
    vse_files.TWINS,
    (
        *vse_files.UNUSED,
        Unused("", TXT, "bert.embeddings.position_ids", None),
        Unused("esl_a", SIM, "sims.calculator_1.temp_scale_1.weight", lambda config: torch.full((1, 1), 0.0)),
        Unused("esl_a", SIM, "sims.calculator_1.temp_scale_2.weight", lambda config: torch.full((1, 1), 3.0)),
    ),
)


def _layout(config: ModelConfig) -> Layout:
    return LAYOUT.of(config.similarity, config.image_encoder == "grid")


def name_of(key: str, config: ModelConfig) -> str:
    """What one of our keys is called in a released file: "sim_vec: sims.calculator_1.masks_0.weight"."""
    return _layout(config).name_of(key)


def recognises(content: Any) -> bool:
    return holds_state_dicts(content)


def read(content: dict[str, Any], path: Path, paths: dict[str, Any]) -> Checkpoint:
    """The Checkpoint of a released file; what it is, is told by its keys, its sizes by the shapes of its weights.

    What shapes don't tell of BERT comes from the folder paths["bert_path"] where it fits. Raises InputError that names
    the keys which belong to no such model, and where `opt` contradicts the weights.
    """
    parts = named_parts(content["model"], PARTS, 2, path)
    checkpoint = read_parts(parts, LAYOUT, _similarity(parts, path), content, path, "released", paths)
    if SIM in parts and "val_split" not in checkpoint.settings:
        checkpoint.chosen_on = "test"  # as the released ESL code does; a model of ours keeps its own choice in `opt`
    return checkpoint


def _similarity(parts: dict[str, dict[str, Tensor]], path: Path) -> str:
    """The similarity head, told by the keys."""
    if SIM not in parts:
        if any(key.startswith("gpool.") for key in parts[TXT]):
            return "vse_infty"
    elif any(".image_levels.kernel_img_" in key for key in parts[SIM]):
        return "esl_h"
    elif any(".image_levels.masks_" in key for key in parts[SIM]):
        return "esl_a"
    found = "; ".join(f"{name}: {listed(list(part), 2)}" for name, part in parts.items())
    raise InputError(f"{path}: is neither ESL-H, ESL-A nor VSE∞ (it holds {found}); other models are not supported")


def write(path: str | Path, checkpoint: Checkpoint) -> None:
    """Write a Checkpoint in the released layout, for the original code; InputError for a weight without a place."""
    config = checkpoint.config
    names = PARTS[:2] if config.similarity == "vse_infty" else PARTS
    parts = _layout(config).to_released(checkpoint, names, path)
    write_parts(path, parts, checkpoint, "module.", {"vocab_size": config.text_options.get("vocab_size")})
