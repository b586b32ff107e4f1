"""The layout of released ESL and VSE-infinity files, read and written. No other module knows their key names.

A released file is {"epoch", "model": [img_enc, txt_enc, sim_vec], "best_rsum", "opt": argparse.Namespace, "Eiters"};
sim_vec is absent in VSE-infinity files. Keys of its state dicts may begin with "module.".
"""

from __future__ import annotations

import argparse
import functools
import re
from collections import OrderedDict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lib.checkpoint.content import Checkpoint, dense_tensors
from lib.checkpoint.deriving import Weights, derived_config
from lib.checkpoint.ours import plain_tensors, write_content
from lib.config import ModelConfig
from lib.encoders.bert import local_bert_values
from lib.errors import InputError, listed, shown
from lib.similarity import HEADS

IMG, TXT, SIM = PARTS = ("img_enc", "txt_enc", "sim_vec")


class Rule(NamedTuple):
    """Which released key is which of ours, in the models that have all traits of `where`.

    {k} is a level, {k-1} the same counted from 0, {rest} the remainder. The released tensor has `ones` more leading
    axes of size 1.
    """

    where: str
    part: str
    released: str
    ours: str
    ones: int = 0


_IMAGE_LEVELS = "plus_encoder.encoders_1.image_levels"
_TEXT_LEVELS = "plus_encoder.encoders_1.text_levels"
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
    Rule("", TXT, "bert.{rest}", "text_encoder.bert.{rest}"),
    Rule("", TXT, "linear.{rest}", "text_encoder.linear.{rest}"),
    Rule("vse_infty region", IMG, "gpool.{rest}", "similarity.image_pool.{rest}"),
    Rule("vse_infty grid", IMG, "image_encoder.gpool.{rest}", "similarity.image_pool.{rest}"),
    Rule("vse_infty", TXT, "gpool.{rest}", "similarity.caption_pool.{rest}"),
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
)

# The backbone registers its layers twice; only the second name is used by its forward pass.
TWINS = (
    ("backbone.resnet.conv1.{rest}", "backbone.base.0.{rest}"),
    ("backbone.resnet.bn1.{rest}", "backbone.base.1.{rest}"),
    ("backbone.resnet.layer1.{rest}", "backbone.base.4.{rest}"),
    ("backbone.resnet.layer2.{rest}", "backbone.base.5.{rest}"),
    ("backbone.resnet.layer3.{rest}", "backbone.base.6.{rest}"),
    ("backbone.resnet.layer4.{rest}", "backbone.top.0.{rest}"),
)


class Unused(NamedTuple):
    """A released tensor without influence on any score; `default(config)` stands in where we have none to write."""

    where: str
    part: str
    released: str
    default: Any


UNUSED = (
    Unused("region", IMG, "mlp.bns.1.weight", lambda config: torch.ones(config.embed_size)),
    Unused("region", IMG, "mlp.bns.1.bias", lambda config: torch.zeros(config.embed_size)),
    Unused("region", IMG, "mlp.bns.1.running_mean", lambda config: torch.zeros(config.embed_size)),
    Unused("region", IMG, "mlp.bns.1.running_var", lambda config: torch.ones(config.embed_size)),
    Unused("region", IMG, "mlp.bns.1.num_batches_tracked", lambda config: torch.tensor(0)),
    Unused("grid", IMG, "backbone.resnet.fc.weight", lambda config: torch.zeros(1000, 2048)),
    Unused("grid", IMG, "backbone.resnet.fc.bias", lambda config: torch.zeros(1000)),
    Unused("", TXT, "bert.embeddings.position_ids", None),
    Unused("esl_a", SIM, "sims.calculator_1.temp_scale_1.weight", lambda config: torch.full((1, 1), 0.0)),
    Unused("esl_a", SIM, "sims.calculator_1.temp_scale_2.weight", lambda config: torch.full((1, 1), 3.0)),
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


@functools.cache
def _regex(pattern: str) -> re.Pattern:
    names = {"{k}": r"(?P<k>0|[1-9][0-9]?)", "{k-1}": r"(?P<less>0|[1-9][0-9]?)", "{rest}": r"(?P<rest>.+)"}
    return re.compile("".join(names.get(piece, re.escape(piece)) for piece in re.split(r"(\{.*?\})", pattern)))


def _rename(key: str, pattern: str, target: str) -> str | None:
    """`key`, which has the form of `pattern`, in the form of `target`; None when it hasn't."""
    match = _regex(pattern).fullmatch(key)
    if match is None:
        return None
    found = match.groupdict()
    k = int(found["k"]) if "k" in found else int(found["less"]) + 1 if "less" in found else 0
    return target.replace("{k}", str(k)).replace("{k-1}", str(k - 1)).replace("{rest}", found.get("rest") or "")


def _traits(similarity: str, grid: bool) -> set[str]:
    return {"grid" if grid else "region", similarity, "vse_infty" if similarity == "vse_infty" else "esl"}


def _applying(rows: tuple, similarity: str, grid: bool) -> list:
    traits = _traits(similarity, grid)
    return [row for row in rows if set(row.where.split()) <= traits]


def name_of(key: str, config: ModelConfig) -> str:
    """What one of our keys is called in a released file: "sim_vec: sims.calculator_1.masks_0.weight"."""
    return _released_name(key, config.similarity, config.image_encoder == "grid")


def _released_name(key: str, similarity: str, grid: bool) -> str:
    for rule in _applying(RULES, similarity, grid):
        if name := _rename(key, rule.ours, rule.released):
            return f"{rule.part}: {name}"
    return key


def recognises(content: Any) -> bool:
    return isinstance(content, dict) and isinstance(content.get("model"), list | tuple)


def read(content: dict[str, Any], path: Path, paths: dict[str, Any]) -> Checkpoint:
    """The Checkpoint of a released file; what it is, is told by its keys, its sizes by the shapes of its weights.

    What shapes don't tell of BERT comes from the folder paths["bert_path"] where it fits. Raises InputError that names
    the keys which belong to no such model, and where `opt` contradicts the weights.
    """
    parts = _parts(content["model"], path)
    similarity, grid = _kind(parts, path)
    model, extras = _our_weights(parts, similarity, grid, path)
    opt = content.get("opt")
    settings = vars(opt) if isinstance(opt, argparse.Namespace) else opt if isinstance(opt, dict) else {}
    settings = {str(name): plain_tensors(value) for name, value in settings.items()}
    named = functools.partial(_released_name, similarity=similarity, grid=grid)
    bert = local_bert_values(paths.get("bert_path"))
    config = derived_config(Weights(model, path, named), similarity, grid, settings, bert)
    return Checkpoint(
        config=config,
        model=model,
        epoch=_number(content, "epoch", int, path),
        step=_number(content, "Eiters", int, path),
        best_rsum=_number(content, "best_rsum", float, path),
        settings=settings,
        extras=extras,
        origin="released",
        path=path,
    )


def _number(content: dict[str, Any], name: str, kind: type, path: Path) -> int | float:
    value = content.get(name, 0)
    try:
        return kind(value)  # also of a tensor with one value
    except (TypeError, ValueError, OverflowError, RuntimeError):
        raise InputError(f"{path}: {name} is {shown(value)}, expected a number") from None


def _parts(dicts: list, path: Path) -> dict[str, dict[str, Tensor]]:
    """The state dicts by name, without "module." and with LayerNorm's weights under their present names."""
    if len(dicts) not in (2, 3):
        raise InputError(f"{path}: model is a list of {len(dicts)}, expected the state dicts {', '.join(PARTS)}")
    parts: dict[str, dict[str, Tensor]] = {}
    for name, weights in zip(PARTS, dicts, strict=False):
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


def _kind(parts: dict[str, dict[str, Tensor]], path: Path) -> tuple[str, bool]:
    """Similarity head and whether the images are raw, told by the keys."""
    grid = any(key.startswith("backbone.") for key in parts[IMG])
    if SIM not in parts:
        if any(key.startswith("gpool.") for key in parts[TXT]):
            return "vse_infty", grid
    elif any(".image_levels.kernel_img_" in key for key in parts[SIM]):
        return "esl_h", grid
    elif any(".image_levels.masks_" in key for key in parts[SIM]):
        return "esl_a", grid
    found = "; ".join(f"{name}: {listed(list(part), 2)}" for name, part in parts.items())
    raise InputError(f"{path}: is neither ESL-H, ESL-A nor VSE∞ (it holds {found}); other models are not supported")


def _our_weights(
    parts: dict[str, dict[str, Tensor]], similarity: str, grid: bool, path: Path
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The weights under our names, and the unused ones; InputError that names every key without a meaning."""
    rules = _applying(RULES, similarity, grid)
    unused = {(row.part, row.released) for row in _applying(UNUSED, similarity, grid)}
    model, extras, unknown = {}, {}, []
    for part, weights in parts.items():
        for key, tensor in weights.items():
            renamed = ((rule, _rename(key, rule.released, rule.ours)) for rule in rules if rule.part == part)
            rule, ours = next(((rule, name) for rule, name in renamed if name), (None, None))
            if (part, key) in unused:
                extras[f"{part}.{key}"] = tensor
            elif rule:
                if tensor.shape[: rule.ones] != (1,) * rule.ones:
                    raise InputError(f"{path}: {part}: {shown(key)} has the shape {tuple(tensor.shape)}, "
                                     f"expected it to begin with {(1,) * rule.ones}")  # fmt: skip
                model[ours] = tensor.reshape(tensor.shape[rule.ones :])
            elif used := _used_name(part, key, grid):
                if not _repeats(tensor, weights.get(used), f"{path}: {part}: {shown(key)}"):
                    extras[f"{part}.{key}"] = tensor
            else:
                unknown.append(f"{part}: {key}")
    if unknown:
        what = f"{HEADS[similarity].label} with {'grid' if grid else 'region'} features"
        raise InputError(f"{path}: {len(unknown)} left over (a file of {what} has no such key): {listed(unknown)}")
    return model, extras


def _used_name(part: str, key: str, grid: bool) -> str | None:
    """The name that counts of a backbone layer that is registered twice."""
    names = (_rename(key, repeated, used) for repeated, used in TWINS if grid and part == IMG)
    return next((name for name in names if name), None)


def _repeats(tensor: Tensor, used: Tensor | None, where: str) -> bool:
    """Whether a layer under its first name equals the one that counts; InputError if its shape differs."""
    if used is None:
        return False
    if tensor.shape != used.shape:
        raise InputError(
            f"{where} has the shape {tuple(tensor.shape)}, but the layer that it repeats has {tuple(used.shape)}"
        )
    return (tensor.data_ptr() == used.data_ptr() and tensor.stride() == used.stride()) or torch.equal(tensor, used)


def write(path: str | Path, checkpoint: Checkpoint) -> None:
    """Write a Checkpoint in the released layout, for the original code. The optimizer has no place in it.

    Tensors that only released files hold are those that were read, else the initial values of the original code.
    """
    config = checkpoint.config
    kind = config.similarity, config.image_encoder == "grid"
    parts = {part: OrderedDict() for part in (PARTS[:2] if config.similarity == "vse_infty" else PARTS)}
    rules = _applying(RULES, *kind)
    for key, tensor in checkpoint.model.items():
        renamed = ((rule, _rename(key, rule.ours, rule.released)) for rule in rules)
        rule, name = next(((rule, name) for rule, name in renamed if name), (None, None))
        if rule is None:
            raise InputError(f"{path}: the released layout has no place for {key}")
        parts[rule.part][name] = tensor.reshape((1,) * rule.ones + tuple(tensor.shape))
    if kind[1]:
        for used in list(parts[IMG]):
            for repeated, pattern in TWINS:
                if name := _rename(used, pattern, repeated):
                    parts[IMG][name] = parts[IMG][used]
    for row in _applying(UNUSED, *kind):
        if row.default is not None:
            parts[row.part][row.released] = row.default(config)
    for name, tensor in checkpoint.extras.items():
        part, _, key = name.partition(".")
        if part not in parts:
            raise InputError(f"{checkpoint.path}: extras holds {shown(name)}, expected {', '.join(parts)} in front")
        parts[part][key] = tensor
    state_dicts = [
        OrderedDict((f"module.{key}", plain_tensors(value)) for key, value in part.items()) for part in parts.values()
    ]
    write_content(path, {
        "epoch": checkpoint.epoch,
        "model": state_dicts,
        "best_rsum": checkpoint.best_rsum,
        "opt": argparse.Namespace(**_opt(checkpoint)),
        "Eiters": checkpoint.step,
    })  # fmt: skip


def _opt(checkpoint: Checkpoint) -> dict[str, Any]:
    """`opt` as it was read, or for a model of ours whatever the original code asks for."""
    settings = plain_tensors(checkpoint.settings)
    if checkpoint.extras and settings:  # came from a released file, whose opt was enough for the original code
        return settings
    config = checkpoint.config
    grid = config.image_encoder == "grid"
    flags = {
        "similarity": config.similarity,
        "embed_size": config.embed_size,
        "precomp_enc_type": "backbone" if grid else "basic",
        "vocab_size": config.text_options.get("vocab_size"),
        **config.similarity_options,
        **config.image_options,
    }
    given = {name: value for name, value in settings.items() if value is not None}
    return {**_OPT_DEFAULTS, **given, **flags}
