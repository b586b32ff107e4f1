"""What files of the code of VSE∞ have in common, ESL's and those of its BiGRU branch included.

A file is {"epoch", "model": [img_enc, txt_enc, ...], "best_rsum", "opt": argparse.Namespace, "Eiters"}. Keys of its
state dicts may begin with "module.".
"""

from __future__ import annotations

import argparse
import re
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lib.checkpoint.checkpoint import Checkpoint, dense_tensors
from lib.checkpoint.native import plain_tensors, write_content
from lib.checkpoint.released.renaming import Layout, Rule, Twin, Unused
from lib.checkpoint.released.sizes import Weights, derived_config
from lib.core.errors import InputError, shown
from lib.encoders.bert import local_bert_values
from lib.similarity import HEADS

IMG, TXT = "img_enc", "txt_enc"
RULES = (
    Rule("region", IMG, "fc.{rest}", "image_encoder.fc.{rest}"),
    Rule("region", IMG, "mlp.layers.0.{rest}", "image_encoder.mlp.hidden.{rest}"),
    Rule("region", IMG, "mlp.bns.0.{rest}", "image_encoder.mlp.norm.{rest}"),
    Rule("region", IMG, "mlp.layers.1.{rest}", "image_encoder.mlp.output.{rest}"),
    Rule("grid", IMG, "image_encoder.fc.{rest}", "image_encoder.fc.{rest}"),
    Rule("grid", IMG, "backbone.base.0.{rest}", "image_encoder.backbone.conv1.{rest}"),
    Rule("grid", IMG, "backbone.base.1.{rest}", "image_encoder.backbone.bn1.{rest}"),
    Rule("grid", IMG, "backbone.base.4.{rest}", "image_encoder.backbone.layer1.{rest}"),
    Rule("grid", IMG, "backbone.base.5.{rest}", "image_encoder.backbone.layer2.{rest}"),
    Rule("grid", IMG, "backbone.base.6.{rest}", "image_encoder.backbone.layer3.{rest}"),
    Rule("grid", IMG, "backbone.top.0.{rest}", "image_encoder.backbone.layer4.{rest}"),
    Rule("vse_infty region", IMG, "gpool.{rest}", "similarity.image_pool.{rest}"),
    Rule("vse_infty grid", IMG, "image_encoder.gpool.{rest}", "similarity.image_pool.{rest}"),
    Rule("vse_infty", TXT, "gpool.{rest}", "similarity.caption_pool.{rest}"),
)
TWINS = (  # the backbone registers its layers twice
    Twin("grid", IMG, "backbone.resnet.conv1.{rest}", "backbone.base.0.{rest}"),
    Twin("grid", IMG, "backbone.resnet.bn1.{rest}", "backbone.base.1.{rest}"),
    Twin("grid", IMG, "backbone.resnet.layer1.{rest}", "backbone.base.4.{rest}"),
    Twin("grid", IMG, "backbone.resnet.layer2.{rest}", "backbone.base.5.{rest}"),
    Twin("grid", IMG, "backbone.resnet.layer3.{rest}", "backbone.base.6.{rest}"),
    Twin("grid", IMG, "backbone.resnet.layer4.{rest}", "backbone.top.0.{rest}"),
)
UNUSED = (
    Unused("region", IMG, "mlp.bns.1.weight", lambda config: torch.ones(config.embed_size)),
    Unused("region", IMG, "mlp.bns.1.bias", lambda config: torch.zeros(config.embed_size)),
    Unused("region", IMG, "mlp.bns.1.running_mean", lambda config: torch.zeros(config.embed_size)),
    Unused("region", IMG, "mlp.bns.1.running_var", lambda config: torch.ones(config.embed_size)),
    Unused("region", IMG, "mlp.bns.1.num_batches_tracked", lambda config: torch.tensor(0)),
    Unused("grid", IMG, "backbone.resnet.fc.weight", lambda config: torch.zeros(1000, 2048)),
    Unused("grid", IMG, "backbone.resnet.fc.bias", lambda config: torch.zeros(1000)),
)

# Entries of `opt` that the original code asks for, where the settings of a run have none.
_OPT_DEFAULTS = {
    "data_path": "", "data_name": "f30k", "vocab_path": "./vocab/", "margin": 0.2, "num_epochs": 30, "batch_size": 128,
    "word_dim": 300, "grad_clip": 2.0, "learning_rate": 5e-4, "lr_update": 15, "optim": "adam", "workers": 4,
    "log_step": 200, "val_step": 500, "logger_name": "", "model_name": "", "resume": "", "max_violation": True,
    "backbone_path": "", "vse_mean_warmup_epochs": 1, "reset_start_epoch": False, "backbone_warmup_epochs": 5,
    "embedding_warmup_epochs": 2, "backbone_lr_factor": 0.01, "img_dim": 2048, "kernel_size": 2,
    "backbone_source": "detector", "input_scale_factor": 1.0,
}  # fmt: skip


def holds_state_dicts(content: Any) -> bool:
    """Whether a file's content has the form of this family."""
    return isinstance(content, dict) and isinstance(content.get("model"), list | tuple)


def named_parts(dicts: list, names: tuple[str, ...], fewest: int, path: Path) -> dict[str, dict[str, Tensor]]:
    """The state dicts by name, without "module." and with LayerNorm's weights under their present names."""
    if len(dicts) not in range(fewest, len(names) + 1):
        raise InputError(f"{path}: model is a list of {len(dicts)}, expected the state dicts {', '.join(names)}")
    parts: dict[str, dict[str, Tensor]] = {}
    for name, weights in zip(names, dicts, strict=False):
        part = parts[name] = {}
        for key, tensor in dense_tensors(weights, f"{path}: {name}").items():
            key = key.removeprefix("module.")
            key = re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", key))
            if key in part:
                raise InputError(
                    f"{path}: {name} holds {shown(key)} twice, with and without 'module.' or under its old name"
                )
            part[key] = tensor
    return parts


def has_backbone(parts: dict[str, dict[str, Tensor]]) -> bool:
    """Whether the model reads raw images, told by its keys."""
    return any(key.startswith("backbone.") for key in parts[IMG])


def read_parts(
    parts: dict[str, dict[str, Tensor]],
    layout: Layout,
    similarity: str,
    content: dict[str, Any],
    path: Path,
    origin: str,
    paths: dict[str, Any],
) -> Checkpoint:
    """The Checkpoint of a file with these parts, read by the rules of `layout`; its sizes are those of its weights."""
    grid = has_backbone(parts)
    layout = layout.of(similarity, grid)
    what = f"{HEADS[similarity].label} with {'grid' if grid else 'region'} features"
    model, extras = layout.to_ours(parts, path, what)
    opt = content.get("opt")
    settings = vars(opt) if isinstance(opt, argparse.Namespace) else opt if isinstance(opt, dict) else {}
    settings = {str(name): plain_tensors(value) for name, value in settings.items()}
    bert = paths.get("bert_values") or local_bert_values(paths.get("bert_path"))
    chosen_on = settings.get("val_split")
    return Checkpoint(
        config=derived_config(Weights(model, path, layout.name_of), similarity, grid, settings, bert),
        model=model,
        epoch=_number(content, "epoch", int, path),
        step=_number(content, "Eiters", int, path),
        best_rsum=_number(content, "best_rsum", float, path),
        settings=settings,
        extras=extras,
        origin=origin,
        path=path,
        chosen_on=chosen_on if isinstance(chosen_on, str) and chosen_on else None,
    )


def _number(content: dict[str, Any], name: str, kind: type, path: Path) -> int | float:
    value = content.get(name, 0)
    try:
        return kind(value)  # also of a tensor with one value
    except (TypeError, ValueError, OverflowError, RuntimeError):
        raise InputError(f"{path}: {name} is {shown(value)}, expected a number") from None


def write_parts(
    path: str | Path, parts: dict[str, dict[str, Tensor]], checkpoint: Checkpoint, prefix: str, text: dict[str, Any]
) -> None:
    """Write a file for the original code, with `prefix` before every key and `text`, what its text encoder asks of
    `opt`. The optimizer has no place in it."""
    write_content(path, {
        "epoch": checkpoint.epoch,
        "model": [
            OrderedDict((f"{prefix}{key}", plain_tensors(value)) for key, value in part.items())
            for part in parts.values()
        ],
        "best_rsum": checkpoint.best_rsum,
        "opt": argparse.Namespace(**_opt(checkpoint, text)),
        "Eiters": checkpoint.step,
    })  # fmt: skip


def _opt(checkpoint: Checkpoint, text: dict[str, Any]) -> dict[str, Any]:
    """`opt` as it was read, or for a model of ours whatever the original code asks for."""
    settings = plain_tensors(checkpoint.settings)
    if checkpoint.extras and settings:  # came from a released file, whose opt was enough for the original code
        return settings
    config = checkpoint.config
    flags = {
        "similarity": config.similarity,
        "embed_size": config.embed_size,
        "precomp_enc_type": "backbone" if config.image_encoder == "grid" else "basic",
        "val_split": checkpoint.chosen_on or "",  # as read back: "" for an epoch that no split chose
        **text,
        **config.similarity_options,
        **config.image_options,
    }
    return {**_OPT_DEFAULTS, **{name: value for name, value in settings.items() if value is not None}, **flags}
