"""Every flag of train.py and eval.py. What a table offers is read from it: choices, and the options of its rows.

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

    def add(self, flag: str, default: Any = None, help: str = "", metavar: str | None = None, **settings: Any) -> None:
        self.group.add_argument(f"--{flag}", default=default, metavar=metavar, help=help.replace("%", "%%"), **settings)

    def switch(self, flag: str, help: str) -> None:
        self.group.add_argument(f"--{flag}", action="store_true", help=help)

    def options(self, parts: Iterable[Part]) -> None:
        """A flag for every option of the rows; rows that share an option share its flag."""
        options: dict[str, Option] = {}
        for part in parts:
            options |= part.options
        for name, option in options.items():
            kind = type(option.default)
            text = option.help if option.default is None else f"{option.help} (default: {option.default})"
            if kind is bool:
                self.group.add_argument(f"--{name}", action="store_const", const=True, help=option.help)
            elif option.choices:
                self.add(name, None, text, choices=option.choices)
            else:
                self.add(name, None, text, type=option.type or kind)


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    """Where the training data is."""
    add = Group(parser, "data").add
    add("data_path", None, "folder of the data set (default: data/<data_name>)", "DIR")
    add("data_name", "f30k", DATA_NAME)
    add("val_split", "dev", "split on which the best epoch is chosen; the released ESL code chose on test")
    add("image_list", None, "grid: file names, one per line, that must exist before training starts", "FILE")


def add_image_arguments(parser: argparse.ArgumentParser, outside: bool = True) -> None:
    """Which image files are read, of those that ImageLimits speaks of."""
    group = Group(parser, "image files")
    group.add("max_pixels", ImageLimits.max_pixels, "an image of more is refused", type=positive(int))
    if outside:
        group.switch("allow_outside_images", OUTSIDE_IMAGES)


def image_limits(args: argparse.Namespace) -> ImageLimits:
    return ImageLimits(args.max_pixels, args.allow_outside_images)


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """What ModelConfig is made of."""
    group, default = Group(parser, "model"), ModelConfig()
    heads = ", ".join(part.label for part in HEADS.values())
    group.add("similarity", default.similarity, heads, choices=HEADS)
    images = "regions: precomputed features; of raw images: grid: cells of a ResNet; clip, vit, swin: patches"
    group.add("image_encoder", default.image_encoder, images, choices=IMAGE_ENCODERS)
    alias = "the same as VSE∞ spells it: basic for regions, backbone for grid"
    group.add("precomp_enc_type", None, alias, choices=PRECOMP_ENC_TYPES)
    texts = "BERT, a bidirectional GRU on SCAN's words, or CLIP's"
    group.add("text_encoder", default.text_encoder, texts, choices=TEXT_ENCODERS)
    size = "size of the joint space; ESL needs at least kernel_size^8"
    group.add("embed_size", default.embed_size, size, type=EMBED_SIZE)
    group.options([*HEADS.values(), *IMAGE_ENCODERS.values(), *TEXT_ENCODERS.values()])


def add_path_arguments(parser: argparse.ArgumentParser, evaluation: bool = False) -> None:
    """Where pre-trained parts and vocabularies are."""
    add = Group(parser, "pre-trained parts").add
    bert = "BERT in Hugging Face form, a folder or a hub name"
    if evaluation:
        bert += "; only its vocabulary and configuration are read"
    add("bert_path", "bert-base-uncased", bert, "DIR|NAME")
    clip = "clip: CLIP in Hugging Face form, a folder or a hub name, or a file of OpenAI's names"
    if evaluation:
        clip += "; only its vocabulary is read"
    add("clip_path", "openai/clip-vit-base-patch16", clip, "DIR|NAME|FILE")
    vocabulary = "bigru: SCAN's vocabulary, a file or a folder of them (default: the folder vocab beside --data_path)"
    add("vocab_path", None, vocabulary, "FILE|DIR")
    if not evaluation:
        backbone = (
            "grid: local weights of the backbone; vit, swin: a model in Hugging Face form, a folder or a hub name"
        )
        add("backbone_path", None, backbone, "FILE|DIR|NAME")
        add("word_vectors", None, "bigru: GloVe's or word2vec's text file, for the words that it knows", "FILE")


def add_training_arguments(parser: argparse.ArgumentParser) -> None:
    """The training recipe, and where a run writes."""
    group = Group(parser, "training")
    add, count, number = group.add, not_negative(int), not_negative(float)
    add("num_epochs", 30, "passes over the training captions", type=positive(int, 1 << 20))
    add("batch_size", 128, "image-caption pairs of a step", type=Number(int, 2, 1 << 20))
    chunks = "encode the batch in K chunks to save memory; same loss and gradients, all negatives included"
    add("accumulate", 1, chunks, "K", type=positive(int))
    add("learning_rate", 5e-4, "a pre-trained text encoder gets a tenth of it", type=positive(float))
    add("lr_update", 15, "first epoch (from 0) with a tenth of the learning rate", "EPOCH", type=count)
    given = "learning rate of every pre-trained part, in place of these shares"
    add("pretrained_lr", None, given, type=positive(float))
    add("schedule", "step", "step: by --lr_update; cosine: of every step, after a warm-up", choices=SCHEDULES)
    add("warmup", 0.1, "cosine: share of all steps in which the learning rate rises", type=Number(float, 0, 1))
    adamw = "adam means AdamW; transformers_adamw: the variant with which CLIP-based ESL was trained"
    add("optim", "adam", adamw, choices=OPTIMIZERS)
    losses = "hinge: triplets with the hardest negatives; contrastive: cross-entropy, as CLIP"
    add("loss", "hinge", losses, choices=LOSSES)
    group.options(LOSSES.values())
    add("weight_decay", 1e-4, "adam: of all parameters; sgd: of the backbone alone", type=number)
    add("grad_clip", 2.0, "largest gradient norm, 0 for none", type=number)
    group.switch("max_violation", "hardest negatives from the first step on, without a warm-up")
    add("vse_mean_warmup_epochs", 1, "epochs with all violations, before the hardest alone", type=count)
    add("embedding_warmup_epochs", 1, "grid: epochs with a frozen backbone", type=count)
    add("backbone_warmup_epochs", 0, "grid: epochs after which one more backbone block is unfrozen", type=count)
    add("backbone_lr_factor", 0.01, "grid: learning rate of the backbone, relative", type=number)
    add("seed", 0, "of every random draw", type=count)
    group = Group(parser, "output")
    add = group.add
    folder = "folder of checkpoint.pth and model_best.pth (default: runs/<data_name>_<similarity>)"
    add("model_name", None, folder, "DIR")
    add("logger_name", None, "folder of the TensorBoard events and train.log (default: <model_name>/log)", "DIR")
    add("log_step", 200, "steps between log lines", type=positive(int))
    spread = "validations of an epoch, evenly spread and the last at its end; each may choose the best model"
    add("validations", 1, spread, type=positive(int))
    within = "steps between validations within an epoch, which are logged but never choose the best model; 0: none"
    add("val_step", 500, within, type=count)
    add("save_step", 0, "steps between checkpoints within an epoch; 0: none", type=count)
    goes_on = "continue from this checkpoint; auto: from the newest good one in --model_name, if there is one"
    add("resume", None, goes_on, "auto|FILE", type=lambda text: text if text == "auto" else str(existing(text)))
    group.switch("reset_start_epoch", "with --resume: take the weights alone and train from epoch 0")


def device_name(text: str) -> str:
    """An argparse type: what a device may be called."""
    if not re.fullmatch(r"cpu|cuda(:\d{1,3})?", text):
        raise argparse.ArgumentTypeError(f"'{shown(text)}' is not cpu, cuda or cuda:N")
    return text


def add_workers(add: Callable) -> None:
    """The flag of the processes that load data."""
    text = "processes that load data, at most one a core; 0 loads in the main process (default: one a core, at most 8)"
    add("--workers", default=available_cores(8), metavar="N", help=text, type=workers)


def add_machine_arguments(parser: argparse.ArgumentParser) -> None:
    """What depends on the machine and not on the experiment."""
    group = Group(parser, "machine")
    add_workers(group.group.add_argument)
    add = group.add
    device = "cpu, cuda or cuda:N (default: all visible GPUs, else the CPU); choose GPUs with CUDA_VISIBLE_DEVICES"
    add("device", None, device, type=device_name)
    precision = "tf32: products on a GPU; bf16: encoders in bfloat16, and evaluation's products of all pairs too"
    add("precision", "float32", precision, choices=PRECISIONS)
    kernels = (
        "ESL scores: auto, compiled kernels (C on a CPU, Triton on a GPU) where they work; torch, without them; plain, "
        "autograd of the definition, slow"
    )
    add("kernels", "auto", kernels, choices=KERNELS)
    memory = "limit of the buffers that scoring works in (default: by device)"
    add("score_memory", None, memory, "MB", type=positive(int, 1 << 24))


def model_config(args: argparse.Namespace) -> ModelConfig:
    """The configuration that the flags ask for; a flag of a part that was not chosen has no effect, which is said."""
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
    """The options of the chosen loss; a flag of another one has no effect, which is said."""
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
    """The files of this machine that encoders and tokenisers ask for, by their flags; the vocabulary is that of the
    data set where no file of its own is named."""
    given = vars(args)
    paths = {name: given[name] for name in MACHINE_PATHS if name in given}
    data_name = given.get("data_name") or given.get("dataset")
    return paths | {"vocab_path": vocabulary_file(paths.get("vocab_path"), given.get("data_path"), data_name)}
