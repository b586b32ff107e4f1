"""ModelConfig: the plain values from which a network is rebuilt. The checkpoint holds it."""

from __future__ import annotations

import argparse
import dataclasses
import os
from typing import Any

from lib.command_line import not_negative, positive
from lib.errors import InputError

SIMILARITIES = ("esl_a", "esl_h", "vse_infty")
BACKBONES = ("detector", "wsl", "imagenet_res152", "tiny")
ENCODERS = ("basic", "backbone")
AGGREGATIONS = 8  # of the ESL heads: 9 levels with level 0


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """What rebuilds the network. `bert` holds the values of a transformers BertConfig."""

    similarity: str = "esl_a"
    embed_size: int = 512
    kernel_size: int = 2
    img_dim: int = 2048
    no_imgnorm: bool = False
    no_txtnorm: bool = False
    precomp_enc_type: str = "basic"
    backbone_source: str = "detector"
    input_scale_factor: float = 1.0
    bert: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        _one_of("--similarity", self.similarity, SIMILARITIES)
        _one_of("--precomp_enc_type", self.precomp_enc_type, ENCODERS)
        _one_of("--backbone_source", self.backbone_source, BACKBONES)
        for name in ("embed_size", "img_dim"):
            if getattr(self, name) < 1:
                raise InputError(f"--{name} is {getattr(self, name)}, expected a positive number")
        if self.embed_size < 2:
            raise InputError(f"--embed_size is {self.embed_size}, expected at least 2")
        if self.input_scale_factor <= 0:
            raise InputError(f"--input_scale_factor is {self.input_scale_factor}, expected a positive number")
        if self.similarity != "vse_infty":
            if self.kernel_size < 2:
                raise InputError(f"--kernel_size is {self.kernel_size}, expected at least 2")
            smallest = self.kernel_size**AGGREGATIONS
            if self.embed_size < smallest:
                raise InputError(
                    f"--embed_size is {self.embed_size}, but --similarity {self.similarity} with --kernel_size "
                    f"{self.kernel_size} needs at least {smallest} ({AGGREGATIONS} aggregations); give a larger one"
                )

    @property
    def grid(self) -> bool:
        """Whether the images are raw (grid cells of a backbone) and not precomputed regions."""
        return self.precomp_enc_type == "backbone"

    def as_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ModelConfig:
        """Rebuild from a checkpoint; raises InputError for a field that this version does not know."""
        known = {field.name for field in dataclasses.fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise InputError(
                f"the checkpoint's configuration has unknown entries {', '.join(unknown)}: "
                "it was written by a newer version of this code"
            )
        return cls(**values)


def _one_of(flag: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise InputError(f"{flag} is '{value}', expected one of {', '.join(allowed)}")


def add_machine_arguments(parser: argparse.ArgumentParser, workers: int | None = None) -> None:
    """What depends on the machine and not on the experiment."""
    group = parser.add_argument_group("machine")
    cores = min(8, os.cpu_count() or 1)
    group.add_argument(
        "--workers",
        type=not_negative(int),
        default=cores if workers is None else workers,
        metavar="N",
        help="processes that load data; 0 loads in the main process (default: %(default)s)",
    )
    group.add_argument(
        "--device",
        metavar="NAME",
        help="cpu, cuda or cuda:N (default: all visible GPUs, else the CPU); choose GPUs with CUDA_VISIBLE_DEVICES",
    )
    group.add_argument(
        "--precision",
        choices=("float32", "tf32", "bf16"),
        default="float32",
        help="float32; tf32: products on a GPU; bf16: encoders in bfloat16, and evaluation's products of all "
        "pairs too (default: %(default)s)",
    )
    group.add_argument(
        "--no_kernels",
        action="store_true",
        help="score with torch alone, without the Triton kernel (GPU) and the compiled one (CPU)",
    )
    group.add_argument(
        "--score_memory",
        type=positive(int),
        metavar="MB",
        help="limit of the buffers that scoring works in (default: by device)",
    )


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    """Where the training data is."""
    group = parser.add_argument_group("data")
    group.add_argument("--data_path", metavar="DIR", help="<root>/coco or <root>/f30k (default: data/<data_name>)")
    group.add_argument("--data_name", choices=("coco", "f30k"), default="f30k", help="(default: %(default)s)")
    group.add_argument(
        "--val_split",
        default="dev",
        metavar="SPLIT",
        help="split on which the best epoch is chosen (default: %(default)s; the released ESL code chose on test)",
    )
    group.add_argument(
        "--image_list", metavar="FILE", help="grid: file names, one per line, that must exist before training starts"
    )


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """What ModelConfig is made of."""
    group = parser.add_argument_group("model")
    default = ModelConfig()
    group.add_argument(
        "--similarity",
        choices=SIMILARITIES,
        default=default.similarity,
        help="ESL-A, ESL-H or VSE-infinity's pooled head (default: %(default)s)",
    )
    group.add_argument(
        "--embed_size",
        type=positive(int),
        default=default.embed_size,
        metavar="D",
        help="size of the joint space; ESL needs at least kernel_size^8 (default: %(default)s)",
    )
    group.add_argument(
        "--kernel_size",
        type=positive(int),
        default=default.kernel_size,
        metavar="S",
        help="ESL: values that one aggregation merges (default: %(default)s)",
    )
    group.add_argument(
        "--img_dim",
        type=positive(int),
        default=default.img_dim,
        metavar="N",
        help="size of a region feature (default: %(default)s)",
    )
    group.add_argument("--no_imgnorm", action="store_true", help="do not l2-normalise the image side")
    group.add_argument("--no_txtnorm", action="store_true", help="do not l2-normalise the caption side")
    group.add_argument(
        "--bert_path",
        default="bert-base-uncased",
        metavar="DIR|NAME",
        help="BERT in Hugging Face form: a folder, or a hub name (default: %(default)s)",
    )
    group.add_argument(
        "--precomp_enc_type",
        choices=ENCODERS,
        default=default.precomp_enc_type,
        help="basic: precomputed region features; backbone: grid cells of raw images (default: %(default)s)",
    )
    group.add_argument(
        "--backbone_source",
        choices=BACKBONES,
        default=default.backbone_source,
        help="grid: BUTD ResNet-101, WSL ResNeXt-101, ImageNet ResNet-152, or a tiny random one for "
        "trying things (default: %(default)s)",
    )
    group.add_argument("--backbone_path", metavar="FILE", help="grid: local weights of the backbone")
    group.add_argument(
        "--input_scale_factor",
        type=positive(float),
        default=default.input_scale_factor,
        metavar="X",
        help="grid: images are resized to squares of 256 * X pixels (default: %(default)s)",
    )


def add_training_arguments(parser: argparse.ArgumentParser) -> None:
    """The training recipe."""
    group = parser.add_argument_group("training")
    group.add_argument("--num_epochs", type=positive(int), default=30, metavar="N", help="(default: %(default)s)")
    group.add_argument(
        "--batch_size",
        type=positive(int),
        default=128,
        metavar="N",
        help="image-caption pairs of a step (default: %(default)s)",
    )
    group.add_argument(
        "--accumulate",
        type=positive(int),
        default=1,
        metavar="K",
        help="encode the batch in K chunks to save memory; same loss and gradients, all negatives "
        "included (default: %(default)s)",
    )
    group.add_argument(
        "--learning_rate",
        type=positive(float),
        default=5e-4,
        metavar="X",
        help="BERT gets a tenth of it (default: %(default)s)",
    )
    group.add_argument(
        "--lr_update",
        type=not_negative(int),
        default=15,
        metavar="EPOCH",
        help="first epoch (from 0) with a tenth of the learning rate (default: %(default)s)",
    )
    group.add_argument(
        "--optim", choices=("adam", "sgd"), default="adam", help="adam means AdamW (default: %(default)s)"
    )
    group.add_argument("--margin", type=not_negative(float), default=0.2, metavar="X", help="(default: %(default)s)")
    group.add_argument(
        "--grad_clip",
        type=not_negative(float),
        default=2.0,
        metavar="X",
        help="largest gradient norm, 0 for none (default: %(default)s)",
    )
    group.add_argument(
        "--max_violation", action="store_true", help="hardest negatives from the first step on, without a warm-up"
    )
    group.add_argument(
        "--vse_mean_warmup_epochs",
        type=not_negative(int),
        default=1,
        metavar="N",
        help="epochs with all violations, before the hardest alone (default: %(default)s)",
    )
    group.add_argument(
        "--embedding_warmup_epochs",
        type=not_negative(int),
        default=1,
        metavar="N",
        help="grid: epochs with a frozen backbone (default: %(default)s)",
    )
    group.add_argument(
        "--backbone_warmup_epochs",
        type=not_negative(int),
        default=0,
        metavar="N",
        help="grid: epochs after which one more backbone block is unfrozen (default: %(default)s)",
    )
    group.add_argument(
        "--backbone_lr_factor",
        type=not_negative(float),
        default=0.01,
        metavar="X",
        help="grid: learning rate of the backbone, relative (default: %(default)s)",
    )
    group.add_argument(
        "--seed", type=not_negative(int), default=0, metavar="N", help="of every random draw (default: %(default)s)"
    )
    group = parser.add_argument_group("output")
    group.add_argument(
        "--model_name",
        metavar="DIR",
        help="folder of checkpoint.pth and model_best.pth (default: runs/<data_name>_<similarity>)",
    )
    group.add_argument(
        "--logger_name",
        metavar="DIR",
        help="folder of the TensorBoard events and train.log (default: <model_name>/log)",
    )
    group.add_argument(
        "--log_step",
        type=positive(int),
        default=200,
        metavar="N",
        help="steps between log lines (default: %(default)s)",
    )
    group.add_argument(
        "--val_step",
        type=not_negative(int),
        default=500,
        metavar="N",
        help="steps between validations within an epoch, which are logged but never choose the best "
        "model; 0: only after each epoch (default: %(default)s)",
    )
    group.add_argument("--resume", metavar="FILE", help="continue from this checkpoint")
    group.add_argument(
        "--reset_start_epoch", action="store_true", help="with --resume: take the weights alone and train from epoch 0"
    )
