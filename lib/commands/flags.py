"""Every flag of train.py and eval.py. Choices and the options of rows are read from the tables.

Stands above the model. `model_config` turns flags into a ModelConfig, `machine_paths` into the files of this machine.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterable
from typing import Any

from lib.console.parser import existing, workers
from lib.core.config import EMBED_SIZE, KERNELS, PRECISIONS, ModelConfig, Option, Part
from lib.core.errors import InputError, shown
from lib.core.machine import available_cores
from lib.core.values import Number, not_negative, positive
from lib.datasets import DATA_NAME
from lib.encoders import IMAGE_ENCODERS, TEXT_ENCODERS
from lib.files.images import ImageLimits
from lib.files.vocabulary import vocabulary_file
from lib.similarity import HEADS
from lib.training import LOSSES, OPTIMIZERS
from lib.training.schedule import SCHEDULES

OUTSIDE_IMAGES = "read images, too, whose path leads out of the image folder: absolute, or with .."
PRECOMP_ENC_TYPES = {"basic": "regions", "backbone": "grid"}  # as VSE∞ spells them
# Flags beside the options of rows that have no effect on region features, and on another schedule.
OF_RAW_IMAGES = (
    "image_list", "max_pixels", "allow_outside_images", "embedding_warmup_epochs", "backbone_warmup_epochs",
    "backbone_lr_factor",
)  # fmt: skip
OF_SCHEDULE = {"lr_update": "step", "warmup": "cosine"}
MACHINE_PATHS = ("bert_path", "clip_path", "backbone_path", "vocab_path", "word_vectors")


class Group:
    """A group of flags."""

    def __init__(self, parser: argparse.ArgumentParser, title: str):
        self.group = parser.add_argument_group(title)

    def add(self, flag: str, default: Any = None, *, help: str, **settings: Any) -> None:
        self.group.add_argument(f"--{flag}", default=default, help=help.replace("%", "%%"), **settings)

    def switch(self, flag: str, help: str) -> None:
        self.group.add_argument(f"--{flag}", action="store_true", help=help)

    def options(self, parts: Iterable[Part]) -> None:
        """A flag for every option of the rows; rows that share an option share its flag."""
        options: dict[str, Option] = {}
        for part in parts:
            options |= part.options
        for name, option in options.items():
            default_type = type(option.default)
            text = option.help if option.default is None else f"{option.help} (default: {option.default})"
            if default_type is bool:
                self.group.add_argument(f"--{name}", action="store_const", const=True, help=option.help)
            elif option.choices:
                self.add(name, choices=option.choices, help=text)
            else:
                self.add(name, type=option.type or default_type, help=text)


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the training data."""
    add = Group(parser, "data").add
    add("data_path", metavar="DIR", help="folder of the data set (default: data/<data_name>)")
    add("data_name", "f30k", help=DATA_NAME)
    add("val_split", "dev", help="split on which the best epoch is chosen; the released ESL code chose on test")
    add("image_list", metavar="FILE", help="grid: file names, one per line, that must exist before training starts")


def add_image_arguments(parser: argparse.ArgumentParser, outside: bool = True) -> None:
    """Flags of ImageLimits, which says what image files are read."""
    group = Group(parser, "image files")
    group.add("max_pixels", ImageLimits.max_pixels, type=positive(int), help="an image of more is refused")
    if outside:
        group.switch("allow_outside_images", OUTSIDE_IMAGES)


def image_limits(args: argparse.Namespace) -> ImageLimits:
    return ImageLimits(args.max_pixels, args.allow_outside_images)


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of ModelConfig."""
    group, default = Group(parser, "model"), ModelConfig()
    heads = ", ".join(part.label for part in HEADS.values())
    group.add("similarity", default.similarity, choices=HEADS, help=heads)
    group.add(
        "image_encoder",
        default.image_encoder,
        choices=IMAGE_ENCODERS,
        help="regions: precomputed features; of raw images: grid: cells of a ResNet; clip, vit, swin: patches",
    )
    group.add(
        "precomp_enc_type",
        choices=PRECOMP_ENC_TYPES,
        help="the same as VSE∞ spells it: basic for regions, backbone for grid",
    )
    group.add(
        "text_encoder",
        default.text_encoder,
        choices=TEXT_ENCODERS,
        help="BERT, a bidirectional GRU on SCAN's words, or CLIP's",
    )
    group.add(
        "embed_size",
        default.embed_size,
        type=EMBED_SIZE,
        help="size of the joint space; ESL needs at least kernel_size^8",
    )
    group.options([*HEADS.values(), *IMAGE_ENCODERS.values(), *TEXT_ENCODERS.values()])


def add_path_arguments(parser: argparse.ArgumentParser, evaluation: bool = False) -> None:
    """Flags of the pre-trained parts and vocabularies."""
    add = Group(parser, "pre-trained parts").add
    add(
        "bert_path",
        "bert-base-uncased",
        metavar="DIR|NAME",
        help="BERT in Hugging Face form, a folder or a hub name"
        + ("; only its vocabulary and configuration are read" if evaluation else ""),
    )
    add(
        "clip_path",
        "openai/clip-vit-base-patch16",
        metavar="DIR|NAME|FILE",
        help="clip: CLIP in Hugging Face form, a folder or a hub name, or a file of OpenAI's names"
        + ("; only its vocabulary is read" if evaluation else ""),
    )
    add(
        "vocab_path",
        metavar="FILE|DIR",
        help="bigru: SCAN's vocabulary, a file or a folder of them (default: the folder vocab beside --data_path)",
    )
    if evaluation:
        return
    add(
        "backbone_path",
        metavar="FILE|DIR|NAME",
        help="grid: local weights of the backbone; vit, swin: a model in Hugging Face form, a folder or a hub name",
    )
    add("word_vectors", metavar="FILE", help="bigru: GloVe's or word2vec's text file, for the words that it knows")


def add_training_arguments(parser: argparse.ArgumentParser) -> None:
    """The training recipe, and where a run writes."""
    group = Group(parser, "training")
    add, count, number = group.add, not_negative(int), not_negative(float)
    add("num_epochs", 30, type=positive(int, 1 << 20), help="passes over the training captions")
    add("batch_size", 128, type=Number(int, 2, 1 << 20), help="image-caption pairs of a step")
    add(
        "accumulate",
        1,
        metavar="K",
        type=positive(int),
        help="encode the batch in K chunks to save memory; same loss and gradients, all negatives included",
    )
    add("learning_rate", 5e-4, type=positive(float), help="a pre-trained text encoder gets a tenth of it")
    add("lr_update", 15, metavar="EPOCH", type=count, help="first epoch (from 0) with a tenth of the learning rate")
    add("pretrained_lr", type=positive(float), help="learning rate of every pre-trained part, in place of these shares")
    add("schedule", "step", choices=SCHEDULES, help="step: by --lr_update; cosine: of every step, after a warm-up")
    add("warmup", 0.1, type=Number(float, 0, 1), help="cosine: share of all steps in which the learning rate rises")
    add(
        "optim",
        "adam",
        choices=OPTIMIZERS,
        help="adam means AdamW; transformers_adamw: the variant with which CLIP-based ESL was trained",
    )
    add(
        "loss",
        "hinge",
        choices=LOSSES,
        help="hinge: triplets with the hardest negatives; contrastive: cross-entropy, as CLIP",
    )
    group.options(LOSSES.values())
    add("weight_decay", 1e-4, type=number, help="adam: of all parameters; sgd: of the backbone alone")
    add("grad_clip", 2.0, type=number, help="largest gradient norm, 0 for none")
    group.switch("max_violation", help="hardest negatives from the first step on, without a warm-up")
    add("vse_mean_warmup_epochs", 1, type=count, help="epochs with all violations, before the hardest alone")
    add("embedding_warmup_epochs", 1, type=count, help="grid: epochs with a frozen backbone")
    add("backbone_warmup_epochs", 0, type=count, help="grid: epochs after which one more backbone block is unfrozen")
    add("backbone_lr_factor", 0.01, type=number, help="grid: learning rate of the backbone, relative")
    add("seed", 0, type=count, help="of every random draw")
    group = Group(parser, "output")
    add = group.add
    add(
        "model_name",
        metavar="DIR",
        help="folder of checkpoint.pth and model_best.pth (default: runs/<data_name>_<similarity>)",
    )
    add("logger_name", metavar="DIR", help="folder of the TensorBoard events and train.log (default: <model_name>/log)")
    add("log_step", 200, type=positive(int), help="steps between log lines")
    add(
        "validations",
        1,
        type=positive(int),
        help="validations of an epoch, evenly spread and the last at its end; each may choose the best model",
    )
    add(
        "val_step",
        500,
        type=count,
        help="steps between validations within an epoch, which are logged but never choose the best model; 0: none",
    )
    add("save_step", 0, type=count, help="steps between checkpoints within an epoch; 0: none")
    add(
        "resume",
        metavar="auto|FILE",
        type=lambda text: text if text == "auto" else str(existing(text)),
        help="continue from this checkpoint; auto: from the newest good one in --model_name, if there is one",
    )
    group.switch("reset_start_epoch", help="with --resume: take the weights alone and train from epoch 0")


def device_name(text: str) -> str:
    """An argparse type: the name of a device."""
    if not re.fullmatch(r"cpu|cuda(:\d{1,3})?", text):
        raise argparse.ArgumentTypeError(f"'{shown(text)}' is not cpu, cuda or cuda:N")
    return text


def add_workers(add: Callable) -> None:
    """The flag of the processes that load data."""
    add(
        "--workers",
        default=available_cores(8),
        metavar="N",
        type=workers,
        help="processes that load data, at most one a core; 0 loads in the main process (default: one a core, at most "
        "8)",
    )


def add_machine_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags that depend on the machine and not on the experiment."""
    group = Group(parser, "machine")
    add_workers(group.group.add_argument)
    group.add(
        "device",
        type=device_name,
        help="cpu, cuda or cuda:N (default: all visible GPUs, else the CPU); choose GPUs with CUDA_VISIBLE_DEVICES",
    )
    group.add(
        "precision",
        "float32",
        choices=PRECISIONS,
        help="tf32: products on a GPU; bf16: encoders in bfloat16, and evaluation's products of all pairs too",
    )
    group.add(
        "kernels",
        "auto",
        choices=KERNELS,
        help="ESL scores: auto, compiled kernels (C on a CPU, Triton on a GPU) where they work; torch, without them; "
        "plain, autograd of the definition, slow",
    )
    group.add(
        "score_memory",
        metavar="MB",
        type=positive(int, 1 << 24),
        help="limit of the buffers that scoring works in (default: by device)",
    )


def model_config(args: argparse.Namespace) -> ModelConfig:
    """The configuration that the flags ask for. Notes each flag of a part that was not chosen."""
    if args.precomp_enc_type:
        named = PRECOMP_ENC_TYPES[args.precomp_enc_type]
        if "image_encoder" in args.given and args.image_encoder != named:
            raise InputError(
                f"--precomp_enc_type {args.precomp_enc_type} means --image_encoder {named}, but --image_encoder is "
                f"{args.image_encoder}; give one of them"
            )
        args.image_encoder = named
    note_without_effect(args)
    chosen = HEADS[args.similarity], IMAGE_ENCODERS[args.image_encoder], TEXT_ENCODERS[args.text_encoder]
    note_idle_flags(args, chosen, [*HEADS.values(), *IMAGE_ENCODERS.values(), *TEXT_ENCODERS.values()])
    similarity, image, text = (given_options(part, args) for part in chosen)
    return ModelConfig(args.similarity, args.image_encoder, args.text_encoder, args.embed_size, similarity, image, text)


def loss_options(args: argparse.Namespace) -> dict[str, Any]:
    """The options of the chosen loss. Notes each flag of another one."""
    note_idle_flags(args, [LOSSES[args.loss]], LOSSES.values())
    return given_options(LOSSES[args.loss], args)


def check_training(args: argparse.Namespace) -> None:
    """InputError for flags of train.py that contradict each other."""
    if args.reset_start_epoch and args.resume in (None, "auto"):
        why = "would start over and over" if args.resume else "has nothing to take weights from"
        raise InputError(f"--reset_start_epoch with{' --resume auto' if args.resume else 'out --resume'} {why}; name a "
                         "file to --resume")  # fmt: skip
    if args.accumulate > args.batch_size:
        problem = f"--accumulate {args.accumulate} is more chunks than --batch_size {args.batch_size} has pairs"
        raise InputError(f"{problem}; give at most {args.batch_size}")
    if args.max_violation and "vse_mean_warmup_epochs" in args.given and args.vse_mean_warmup_epochs:
        contradiction = (
            f"--max_violation leaves out the warm-up of --vse_mean_warmup_epochs {args.vse_mean_warmup_epochs}"
        )
        raise InputError(f"{contradiction}; give one of them")
    if args.val_split == "train":
        raise InputError("--val_split train: the best epoch is chosen on images that were not trained on; name another")


def note_without_effect(args: argparse.Namespace) -> None:
    """One line for each flag that was given and that the image encoder or the schedule leaves aside."""
    images = IMAGE_ENCODERS[args.image_encoder]
    on_images = dict.fromkeys(OF_RAW_IMAGES, (images.transform is not None, images.label))
    on_schedule = {name: (args.schedule == kind, f"--schedule {args.schedule}") for name, kind in OF_SCHEDULE.items()}
    for name, (effective, what) in (on_images | on_schedule).items():
        if name in args.given and not effective:
            print(f"note: --{name} has no effect on {what}", file=sys.stderr)


def note_idle_flags(args: argparse.Namespace, chosen: Iterable[Part], every: Iterable[Part]) -> None:
    """One line for each flag that was given and belongs to none of the `chosen` rows."""
    known = {name for part in chosen for name in part.options}
    for name in sorted({name for part in every for name in part.options} - known):
        if getattr(args, name) is not None:
            labels = ", ".join(part.label for part in chosen)
            print(f"note: --{name} has no effect on {labels}", file=sys.stderr)


def given_options(part: Part, args: argparse.Namespace) -> dict[str, Any]:
    """The options of a row as the flags give them, with its defaults, which become the flags' values."""
    for name, option in part.options.items():
        if getattr(args, name) is None:
            setattr(args, name, option.default)
    return {name: getattr(args, name) for name in part.options}


def machine_paths(args: argparse.Namespace) -> dict[str, Any]:
    """The files of this machine that encoders and tokenisers ask for, by their flags; without
    --vocab_path the vocabulary is the data set's."""
    given = vars(args)
    paths = {name: given[name] for name in MACHINE_PATHS if name in given}
    data_name = given.get("data_name") or given.get("dataset")
    return paths | {"vocab_path": vocabulary_file(paths.get("vocab_path"), given.get("data_path"), data_name)}
