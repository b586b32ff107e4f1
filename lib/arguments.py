"""Every flag of train.py and eval.py. What a table offers is read from it: choices, and the options of its rows.

Stands above the model. `model_config` turns flags into a ModelConfig, `machine_paths` into the files of this machine.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable
from typing import Any

from lib.alignment import KERNELS
from lib.command_line import not_negative, positive
from lib.config import ModelConfig, Option, Part
from lib.datasets import DATA_SETS
from lib.encoders import IMAGE_ENCODERS, TEXT_ENCODERS
from lib.precision import PRECISIONS
from lib.similarity import HEADS
from lib.training.losses import LOSSES
from lib.training.optim import OPTIMIZERS

DATA_NAME = f"{', '.join(DATA_SETS)}, or a name for your own data"


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
        choices=PRECISIONS,
        default="float32",
        help="float32; tf32: products on a GPU; bf16: encoders in bfloat16, and evaluation's products of all "
        "pairs too (default: %(default)s)",
    )
    group.add_argument(
        "--kernels",
        choices=KERNELS,
        default="auto",
        help="ESL scores: auto, the compiled kernels (C on a CPU, Triton on a GPU) where they work; torch, without "
        "them; plain, autograd of the definition, slow (default: %(default)s)",
    )
    group.add_argument(
        "--score_memory",
        type=positive(int),
        metavar="MB",
        help="limit of the buffers that scoring works in (default: by device)",
    )


def add_path_arguments(parser: argparse.ArgumentParser, evaluation: bool = False) -> None:
    """Where pre-trained parts and vocabularies are."""
    group = parser.add_argument_group("pre-trained parts")
    read = "only its vocabulary and configuration are read" if evaluation else "BERT in Hugging Face form"
    group.add_argument(
        "--bert_path",
        default="bert-base-uncased",
        metavar="DIR|NAME",
        help=f"a folder, or a hub name; {read} (default: %(default)s)",
    )
    if not evaluation:
        group.add_argument("--backbone_path", metavar="FILE", help="grid: local weights of the backbone")


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    """Where the training data is."""
    group = parser.add_argument_group("data")
    group.add_argument("--data_path", metavar="DIR", help="folder of the data set (default: data/<data_name>)")
    group.add_argument("--data_name", default="f30k", metavar="NAME", help=f"{DATA_NAME} (default: %(default)s)")
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
    heads = ", ".join(part.label for part in HEADS.values())
    group.add_argument(
        "--similarity", choices=HEADS, default=default.similarity, help=f"{heads} (default: %(default)s)"
    )
    group.add_argument(
        "--image_encoder",
        choices=IMAGE_ENCODERS,
        default=default.image_encoder,
        help="regions: precomputed features; grid: cells of raw images (default: %(default)s)",
    )
    group.add_argument(
        "--precomp_enc_type",
        choices=PRECOMP_ENC_TYPES,
        help="the same as VSE∞ spells it: basic for regions, backbone for grid",
    )
    group.add_argument(
        "--text_encoder", choices=TEXT_ENCODERS, default=default.text_encoder, help="(default: %(default)s)"
    )
    group.add_argument(
        "--embed_size",
        type=positive(int),
        default=default.embed_size,
        metavar="D",
        help="size of the joint space; ESL needs at least kernel_size^8 (default: %(default)s)",
    )
    _add_options(group, [*HEADS.values(), *IMAGE_ENCODERS.values(), *TEXT_ENCODERS.values()])


PRECOMP_ENC_TYPES = {"basic": "regions", "backbone": "grid"}


def _add_options(group, parts: Iterable[Part]) -> None:
    """A flag for every option of the rows; rows that share an option share its flag."""
    options: dict[str, Option] = {}
    for part in parts:
        options |= part.options
    for name, option in options.items():
        if option.default is False:
            group.add_argument(f"--{name}", action="store_const", const=True, help=option.help)
        else:
            kind = {"choices": option.choices} if option.choices else {"metavar": "X"}
            text = f"{option.help} (default: {option.default})".replace("%", "%%")
            group.add_argument(f"--{name}", type=option.type or type(option.default), help=text, **kind)


def model_config(args: argparse.Namespace) -> ModelConfig:
    """The configuration that the flags ask for; a flag of a part that was not chosen has no effect, which is said."""
    if args.precomp_enc_type:
        args.image_encoder = PRECOMP_ENC_TYPES[args.precomp_enc_type]
    chosen = HEADS[args.similarity], IMAGE_ENCODERS[args.image_encoder], TEXT_ENCODERS[args.text_encoder]
    known = {name for part in chosen for name in part.options}
    every = [*HEADS.values(), *IMAGE_ENCODERS.values(), *TEXT_ENCODERS.values()]
    for name in sorted({name for part in every for name in part.options} - known):
        if getattr(args, name) is not None:
            labels = ", ".join(part.label for part in chosen)
            print(f"note: --{name} has no effect on {labels}", file=sys.stderr)
    similarity, image, text = (given_options(part, args) for part in chosen)
    return ModelConfig(args.similarity, args.image_encoder, args.text_encoder, args.embed_size, similarity, image, text)


def given_options(part: Part, args: argparse.Namespace) -> dict[str, Any]:
    """The options of a row as the flags give them, with its defaults, which become the flags' values."""
    for name, option in part.options.items():
        if getattr(args, name) is None:
            setattr(args, name, option.default)
    return {name: getattr(args, name) for name in part.options}


def machine_paths(args: argparse.Namespace) -> dict[str, Any]:
    """The files of this machine that encoders and tokenisers ask for, by their flags."""
    return {name: value for name, value in vars(args).items() if name in ("bert_path", "backbone_path")}


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
        help="a pre-trained text encoder gets a tenth of it (default: %(default)s)",
    )
    group.add_argument(
        "--lr_update",
        type=not_negative(int),
        default=15,
        metavar="EPOCH",
        help="first epoch (from 0) with a tenth of the learning rate (default: %(default)s)",
    )
    group.add_argument("--optim", choices=OPTIMIZERS, default="adam", help="adam means AdamW (default: %(default)s)")
    group.add_argument("--loss", choices=LOSSES, default="hinge", help="(default: %(default)s)")
    _add_options(group, LOSSES.values())
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
