"""The layout of released files of CLIP-based ESL, read and written.

A file is {"epoch", "state_dict", "optimizer", "config"}: one flat state dict of CLIP under OpenAI's names and the
head's weights; an optimizer with two more copies of them, which is left alone; a config.all_config.AllConfig.
"""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import Tensor

from lib.checkpoint.checkpoint import Checkpoint, dense_tensors
from lib.checkpoint.native import plain_tensors, write_content
from lib.checkpoint.released.renaming import Layout, Rule
from lib.checkpoint.released.sizes import Weights, adaptive_kernel_size, heuristic_kernel_size
from lib.core.config import ModelConfig
from lib.core.errors import InputError, shown
from lib.encoders import openai_clip
from lib.files.pytorch import AllConfig
from lib.model import complete
from lib.similarity import HEADS

STATE, CLIP, HEAD = "state_dict", "clip.", "pool_frames.cross_attn."
_IMAGE_LEVELS = f"{HEAD}plus_encoder.encoders_1.image_levels"
_TEXT_LEVELS = f"{HEAD}plus_encoder.encoders_1.text_levels"
_CALCULATOR = f"{HEAD}sims.calculator_1"
_TOWERS = {"vision_model": "image_encoder", "visual_projection": "image_encoder"}  # the rest: text_encoder
LAYOUT = Layout(
    (
        Rule("esl_clip_a", STATE, f"{_IMAGE_LEVELS}.masks_{{k}}.weight", "similarity.image_aggregator.weights.{k-1}"),
        Rule("esl_clip_a", STATE, f"{_TEXT_LEVELS}.masks_{{k}}.weight", "similarity.caption_aggregator.weights.{k-1}"),
        Rule("esl_clip_h", STATE, f"{_IMAGE_LEVELS}.kernel_img_{{k}}.weight",
             "similarity.image_aggregator.weights.{k-1}"),
        Rule("esl_clip_h", STATE, f"{_TEXT_LEVELS}.kernel_txt_{{k}}.weight",
             "similarity.caption_aggregator.weights.{k-1}"),
        Rule("", STATE, f"{_CALCULATOR}.masks_{{k}}.weight", "similarity.correspondences.{k}.matrix"),
        Rule("", STATE, f"{_CALCULATOR}.sim_eval.weight", "similarity.contribution.p", ones=1),
        Rule("", STATE, f"{_CALCULATOR}.temp_scale.weight", "similarity.log_scale", ones=2),
        Rule("", STATE, f"{_CALCULATOR}.temp_scale_1.weight", "similarity.contribution.sigma", ones=2),
        Rule("", STATE, f"{_CALCULATOR}.temp_scale_2.weight", "similarity.contribution.log_sharpness", ones=2),
    )
)  # fmt: skip

# What the original code asks of its settings, where those of a run have none.
_CONFIG_DEFAULTS = {
    "dataset_name": "MS-COCO", "videos_dir": "./MS-COCO/", "clip_arch": "ViT-B/16", "arch": "clip_transformer",
    "huggingface": False, "loss": "clip", "clip_lr": 1e-6, "noclip_lr": 3e-5, "batch_size": 64, "num_epochs": 15,
    "weight_decay": 0.2, "warmup_proportion": 0.1, "evals_per_epoch": 4, "metric": "t2v", "pooling_type": "transformer",
    "num_mha_heads": 1, "transformer_dropout": 0, "num_workers": 8, "seed": 24, "log_step": 100, "load_epoch": 0,
    "exp_name": "", "output_dir": "./outputs", "model_path": "./outputs", "tb_log_dir": "logs", "no_tensorboard": True,
}  # fmt: skip


def _layout(similarity: str) -> Layout:
    return LAYOUT.of(similarity, grid=True)


def name_of(key: str, config: ModelConfig) -> str:
    """What one of our keys is called in a released file: "state_dict: clip.visual.proj"."""
    if openai := openai_clip.openai_name(key.partition(".")[2]):
        return f"{STATE}: {CLIP}{openai}"
    return _layout(config.similarity).name_of(key)


def recognises(content: Any) -> bool:
    """Whether it is a file of CLIP and a head, told by its keys."""
    state = content.get(STATE) if isinstance(content, dict) else None
    if not isinstance(state, dict):
        return False
    return all(any(str(key).startswith(prefix) for key in state) for prefix in (CLIP, HEAD))


def read(content: dict[str, Any], path: Path, paths: dict[str, Any]) -> Checkpoint:
    """The Checkpoint of a released file, its sizes told by the shapes of its weights, whatever its settings say.

    Raises InputError that names the keys which belong to no such model.
    """
    content.pop("optimizer", None)
    state = dense_tensors(content[STATE], f"{path}: {STATE}")
    clip = {key.removeprefix(CLIP): value for key, value in state.items() if key.startswith(CLIP)}
    rest = {key: value for key, value in state.items() if not key.startswith(CLIP)}
    similarity = "esl_clip_h" if any(".image_levels.kernel_img_" in key for key in rest) else "esl_clip_a"
    towers = openai_clip.to_transformers(clip, f"{path}: {STATE}")
    model, _ = _layout(similarity).to_ours({STATE: rest}, path, HEADS[similarity].label)
    model |= {f"{_TOWERS.get(key.partition('.')[0], 'text_encoder')}.{key}": value for key, value in towers.items()}
    config = content.get("config")
    settings = plain_tensors(vars(config)) if isinstance(config, AllConfig) else {}
    epoch = content.get("epoch", 0)
    if type(epoch) is not int:
        raise InputError(f"{path}: epoch is {shown(epoch)}, expected a number")
    return Checkpoint(
        config=_config(Weights(model, path, _layout(similarity).name_of), clip, similarity, settings),
        model=model,
        epoch=epoch,
        settings=settings,
        origin="released_clip",
        path=path,
    )


def _config(weights: Weights, clip: dict[str, Tensor], similarity: str, settings: dict[str, Any]) -> ModelConfig:
    image, text = openai_clip.sizes(clip, f"{weights.path}: {STATE}")
    if similarity == "esl_clip_h":
        kernel_size = heuristic_kernel_size(weights)
    else:
        kernel_size = adaptive_kernel_size(weights, settings.get("kernel_size"))
    output = {"clip_output": "pooled"}
    try:
        return complete(ModelConfig(
            similarity, "clip", "clip", text["projection_dim"], {"kernel_size": kernel_size},
            image | output, text | output | {"cut_end": True},
        ))  # fmt: skip
    except (InputError, TypeError) as error:
        raise InputError(f"{weights.path}: {shown(error, 400)}") from None


def write(path: str | Path, checkpoint: Checkpoint) -> None:
    """Write a Checkpoint in the released layout, for the original code; InputError for a model that it has not."""
    config, towers, rest = checkpoint.config, {}, {}
    altered = [name for name in ("no_imgnorm", "no_txtnorm") if config.similarity_options.get(name)]
    if altered or "tokens" in (config.image_options.get("clip_output"), config.text_options.get("clip_output")):
        what = f"--{altered[0]}" if altered else "--clip_output tokens"
        raise InputError(f"{path}: the released layout has no place for a model with {what}")
    for key, value in checkpoint.model.items():
        part, _, name = key.partition(".")
        of_clip = part != "similarity" and openai_clip.openai_name(name)
        (towers if of_clip else rest)[name if of_clip else key] = value
    head = _layout(config.similarity).to_released(dataclasses.replace(checkpoint, model=rest), (STATE,), path)[STATE]
    state = {f"{CLIP}{name}": value for name, value in openai_clip.to_openai(towers).items()} | head
    settings = AllConfig()
    vars(settings).update(_settings(checkpoint))
    with _importable(AllConfig, "config.all_config"):
        write_content(path, {
            "epoch": checkpoint.epoch,
            STATE: plain_tensors(state),
            "optimizer": {"state": {}, "param_groups": []},
            "config": settings,
        })  # fmt: skip


def _settings(checkpoint: Checkpoint) -> dict[str, Any]:
    """The settings as they were read, or for a model of ours whatever the original code asks for."""
    settings, config = plain_tensors(checkpoint.settings), checkpoint.config
    if "clip_arch" in settings:  # came from a released file
        return settings
    return _CONFIG_DEFAULTS | {
        "embed_dim": config.embed_size,
        "sim_dim": config.embed_size,
        "kernel_size": config.similarity_options["kernel_size"],
        "input_res": config.image_options["image_size"],
    }


@contextlib.contextmanager
def _importable(kind: type, name: str) -> Iterator[None]:
    """Let a class be pickled under the name of a module that is not here."""
    package, (own_module, own_name) = name.partition(".")[0], (kind.__module__, kind.__qualname__)
    before = {key: sys.modules.get(key) for key in (package, name)}
    sys.modules |= {package: ModuleType(package), name: ModuleType(name)}
    setattr(sys.modules[name], kind.__name__, kind)
    kind.__module__, kind.__qualname__ = name, kind.__name__
    try:
        yield
    finally:
        kind.__module__, kind.__qualname__ = own_module, own_name
        for key, module in before.items():
            if module is None:
                del sys.modules[key]
            else:
                sys.modules[key] = module
