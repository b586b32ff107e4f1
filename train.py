"""Train an image-text matching model on COCO or Flickr30K and keep the epoch with the best RSUM on dev."""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import os
import sys
import time
from pathlib import Path

import torch

from lib.alignment import gpu_kernel
from lib.checkpoint import load_into, read_checkpoint, save_checkpoint
from lib.command_line import Parser, script
from lib.config import (
    ModelConfig,
    add_data_arguments,
    add_machine_arguments,
    add_model_arguments,
    add_training_arguments,
)
from lib.datasets.captions import load_tokenizer
from lib.datasets.loaders import ImageTrainSet, RegionTrainSet, train_loader
from lib.datasets.raw import RawImages
from lib.datasets.splits import open_split
from lib.errors import InputError
from lib.evaluation.metrics import retrieval_metrics
from lib.evaluation.report import format_table
from lib.evaluation.scoring import set_precision
from lib.files import check_writable
from lib.model import build_model
from lib.parallel import Runner, visible_devices
from lib.training.engine import Recipe, score_split, tokenize_for, train_one_epoch
from lib.training.optim import build_optimizer, fixed_blocks, set_learning_rates, uses_hardest
from lib.training.tracking import Tracker, close_console, setup_console

MACHINE = {
    "workers",
    "device",
    "score_memory",
    "no_kernels",
    "resume",
    "reset_start_epoch",
    "log_step",
    "val_step",
    "logger_name",
    "model_name",
    "data_path",
    "image_list",
    "num_epochs",
}


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for add in (add_data_arguments, add_model_arguments, add_training_arguments, add_machine_arguments):
        add(parser)
    args = parser.parse_args(argv)
    args.data_path = args.data_path or f"data/{args.data_name}"
    args.model_name = args.model_name or f"runs/{args.data_name}_{args.similarity}"
    args.logger_name = args.logger_name or os.path.join(args.model_name, "log")
    return args


@script
def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    config = ModelConfig(**{f.name: getattr(args, f.name) for f in dataclasses.fields(ModelConfig) if f.name != "bert"})
    devices = visible_devices(args.device)
    set_precision(args.precision)
    gpu_kernel.set_enabled(not args.no_kernels)
    torch.manual_seed(args.seed)

    # Everything that bad input can break is opened before the first step.
    feature_size = {"img_dim": config.img_dim, "need_features": not config.grid}
    train = open_split(args.data_path, args.data_name, "train", **feature_size)
    val = open_split(args.data_path, args.data_name, args.val_split, **feature_size)
    load_train = load_val = None
    if config.grid:
        load_train, load_val = (
            RawImages(args.data_path, args.data_name, split, config.input_scale_factor, config.backbone_source)
            for split in (train, val)
        )
        for images in (load_train, load_val):
            images.check(args.image_list)
    resumed = read_checkpoint(args.resume) if args.resume else None
    folder = check_writable(args.model_name, "--model_name")
    check_writable(args.logger_name, "--logger_name")
    logger = setup_console(Path(args.logger_name) / "train.log")

    tokenizer = load_tokenizer(args.bert_path)
    model = build_model(config, args.bert_path, args.backbone_path, pretrained=resumed is None)
    train_tokens = tokenize_for(model.config, train.captions, tokenizer, args.bert_path)
    val_tokens = tokenize_for(model.config, val.captions, tokenizer, args.bert_path)
    if resumed is not None:
        load_into(model, resumed)
    runner = Runner(model, devices)
    model.similarity.score_memory = args.score_memory * (1 << 20) if args.score_memory else None
    optimizer = build_optimizer(model, args.optim, args.learning_rate, args.backbone_lr_factor)
    start, step, best = 0, 0, -1.0
    if resumed is not None and not args.reset_start_epoch:
        start, step, best = restore(optimizer, resumed, args, logger)

    if config.grid:
        dataset = ImageTrainSet(train, train_tokens, load_train, args.seed)
    else:
        dataset = RegionTrainSet(train, train_tokens, args.seed)
    loader = train_loader(dataset, args.batch_size, args.seed, args.workers, devices[0].type == "cuda")
    goes_on = args.resume and not args.reset_start_epoch and Path(args.resume).resolve().parent == folder.resolve()
    if not goes_on:
        move_aside(folder)
    tracker = Tracker(args.logger_name)
    logger.info(
        "train: %d images, %d captions   %s: %d images, %d captions",
        train.n_images,
        train.n_captions,
        args.val_split,
        val.n_images,
        val.n_captions,
    )
    logger.info(
        "%s, %s parameters, on %s, %d steps per epoch",
        describe(model.config),
        f"{sum(p.numel() for p in model.parameters()):,}",
        ", ".join(map(str, devices)),
        len(loader.batch_sampler),
    )

    def validate(step: int):
        scores = score_split(
            runner,
            val,
            val_tokens,
            args.batch_size,
            args.workers,
            load_val,
            precision=args.precision,
            score_memory=args.score_memory,
        )
        result = retrieval_metrics(scores.matrix, val.image_of_caption)
        for direction in ("i2t", "t2i"):
            tracker.scalars(step, f"{args.val_split}/{direction}_", **getattr(result, direction).as_dict())
        tracker.scalars(step, f"{args.val_split}/", rsum=result.rsum)
        return result

    def validate_within(step: int) -> None:
        if args.val_step and step % args.val_step == 0:
            logger.info("step %d  %s RSUM %.1f", step, args.val_split, validate(step).rsum)

    settings = {k: v for k, v in vars(args).items() if isinstance(v, (int, float, str, bool, type(None)))}
    best_file = folder / "model_best.pth"
    for epoch in range(start, args.num_epochs):
        began = time.perf_counter()
        set_learning_rates(optimizer, epoch, args.lr_update)
        if config.grid:
            blocks = fixed_blocks(epoch, args.embedding_warmup_epochs, args.backbone_warmup_epochs)
            model.image_encoder.backbone.set_trainable_stages(blocks)
        hardest = uses_hardest(epoch, args.vse_mean_warmup_epochs, args.max_violation)
        recipe = Recipe(
            args.margin,
            args.grad_clip,
            hardest,
            args.embedding_warmup_epochs,
            args.accumulate,
            args.precision,
            args.seed,
        )
        step = train_one_epoch(runner, loader, optimizer, recipe, epoch, step, tracker, args.log_step, validate_within)
        result = validate(step)
        improved, best = result.rsum > best, max(best, result.rsum)
        state = {"epoch": epoch + 1, "step": step, "best_rsum": best, "settings": settings}
        if improved:  # first, so that a crash in between makes a resumed run repeat the epoch and write it again
            save_checkpoint(best_file, model, **state)
        save_checkpoint(folder / "checkpoint.pth", model, optimizer=optimizer, **state)
        logger.info(
            "epoch %d done in %.0f s%s", epoch, time.perf_counter() - began, "   best so far" if improved else ""
        )
        logger.info(format_table([(f"{args.data_name} {args.val_split}", result)]))
    if start >= args.num_epochs:
        logger.info("nothing to train: the checkpoint has %d epochs and --num_epochs is %d", start, args.num_epochs)
    where = best_file if best_file.exists() else f"in the run of {args.resume}"
    logger.info("best %s RSUM %.1f: %s", args.val_split, best, where)
    tracker.close()
    close_console()


def describe(config: ModelConfig) -> str:
    images = f"grid cells of {config.backbone_source}" if config.grid else f"regions of size {config.img_dim}"
    return f"{config.similarity} on {images}, embed_size {config.embed_size}"


def move_aside(folder: Path) -> None:
    """Move the checkpoints of an earlier run into a folder of their own, so that a new run overwrites none."""
    earlier = [folder / name for name in ("checkpoint.pth", "model_best.pth") if (folder / name).exists()]
    if earlier:
        aside = next(path for n in itertools.count(1) if not (path := folder / f"earlier_{n}").exists())
        aside.mkdir()
        for file in earlier:
            file.rename(aside / file.name)
        print(f"note: the checkpoints of an earlier run were moved to {aside}", file=sys.stderr)


def restore(optimizer, checkpoint, args: argparse.Namespace, logger) -> tuple[int, int, float]:
    """Give the optimizer its state back; returns epoch, step and best RSUM. Says which settings differ."""
    if checkpoint.optimizer is None:
        raise InputError(
            f"{args.resume}: holds no optimizer state (model_best.pth and released files do not); resume "
            "from checkpoint.pth, or add --reset_start_epoch to start from its weights"
        )
    rates = [group["base_lr"] for group in optimizer.param_groups]
    try:
        adam = ["betas" in group for group in checkpoint.optimizer["param_groups"]]
        if any(each != ("betas" in optimizer.defaults) for each in adam):
            raise ValueError("it is of another optimizer")
        optimizer.load_state_dict(checkpoint.optimizer)
    except (ValueError, KeyError) as error:
        raise InputError(f"{args.resume}: its optimizer state does not fit ({error}); use the same --optim") from None
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["base_lr"] = rate
    now = vars(args)
    for name, value in sorted(checkpoint.settings.items()):
        if name in now and name not in MACHINE and now[name] != value:
            logger.info("note: --%s was %s when %s was written and is %s now", name, value, args.resume, now[name])
    logger.info(
        "resumed %s: epoch %d, step %d, best RSUM %.1f",
        args.resume,
        checkpoint.epoch,
        checkpoint.step,
        checkpoint.best_rsum,
    )
    return checkpoint.epoch, checkpoint.step, checkpoint.best_rsum


if __name__ == "__main__":
    main()
