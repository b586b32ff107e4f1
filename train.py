"""Train an image-text matching model and keep the epoch with the best RSUM on dev."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import torch

from lib.alignment import Way
from lib.arguments import (
    add_data_arguments,
    add_machine_arguments,
    add_model_arguments,
    add_path_arguments,
    add_training_arguments,
    given_options,
    machine_paths,
    model_config,
)
from lib.checkpoint import load_for, read_checkpoint
from lib.command_line import Parser, script
from lib.datasets.images import check_image_list
from lib.datasets.inputs import open_inputs
from lib.datasets.layout import image_folder
from lib.datasets.loaders import train_loader
from lib.evaluation.metrics import retrieval_metrics
from lib.evaluation.scoring import score_split
from lib.files import check_writable
from lib.model import build_model, complete, describe, reads
from lib.parallel import Runner, visible_devices
from lib.precision import set_precision
from lib.training.engine import Trainer
from lib.training.fit import BEST, Run, fit, move_aside, resume
from lib.training.losses import LOSSES
from lib.training.optim import build_optimizer
from lib.training.schedule import Schedule
from lib.training.tracking import Tracker, close_console, setup_console


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(description=__doc__)
    add_data_arguments(parser)
    add_model_arguments(parser)
    add_path_arguments(parser)
    add_training_arguments(parser)
    add_machine_arguments(parser)
    args = parser.parse_args(argv)
    args.data_path = args.data_path or f"data/{args.data_name}"
    args.model_name = args.model_name or f"runs/{args.data_name}_{args.similarity}"
    args.logger_name = args.logger_name or os.path.join(args.model_name, "log")
    return args


@script
def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    devices = visible_devices(args.device)
    set_precision(args.precision)
    torch.manual_seed(args.seed)
    paths = machine_paths(args)
    config = complete(model_config(args), paths)

    # data, and everything else that bad input can break, before the first step
    checkpoint = read_checkpoint(args.resume, paths) if args.resume else None
    if args.image_list:
        check_image_list(image_folder(args.data_path, args.data_name), args.image_list)
    what = reads(config, paths)
    train, val = (open_inputs(args.data_path, args.data_name, name, what) for name in ("train", args.val_split))
    run, logger = open_run(args)

    # model, loss and optimizer
    model = load_for(config, checkpoint) if checkpoint else build_model(config, paths)
    runner = Runner(model, devices, args.precision, Way(args.kernels, args.score_memory and args.score_memory << 20))
    loss = LOSSES[args.loss]
    criterion = loss.make(config.embed_size, **given_options(loss, args)).to(runner.device)
    optimizer = build_optimizer(model, criterion, args.optim, args.learning_rate, args.backbone_lr_factor)
    staged = bool(model.image_encoder.pretrained_parameters())
    trainer = Trainer(runner, criterion, optimizer, schedule(args, staged), args.grad_clip, args.accumulate, args.seed)
    loader = train_loader(train, args.batch_size, args.seed, args.workers, runner.device.type == "cuda")

    # start or go on
    if checkpoint and not args.reset_start_epoch:
        resume(run, trainer, checkpoint)
    if run.epoch == 0 or Path(args.resume).resolve().parent != run.folder.resolve():
        move_aside(run.folder)
    run.tracker = Tracker(args.logger_name)
    for name, inputs in (("train", train), (args.val_split, val)):
        logger.info("%s: %d images, %d captions", name, inputs.split.n_images, inputs.split.n_captions)
    parameters = sum(p.numel() for p in model.parameters())
    where, steps = ", ".join(map(str, devices)), len(loader.batch_sampler)
    logger.info("%s: %s parameters, on %s, %d steps per epoch", describe(config), f"{parameters:,}", where, steps)

    def validate():
        scores = score_split(runner, val, args.batch_size, args.workers)
        return retrieval_metrics(scores.matrix, val.split.image_of_caption)

    fit(trainer, loader, run, validate)
    best = run.folder / BEST
    where = best if best.exists() else f"in the run of {args.resume}"
    logger.info("best %s RSUM %.1f: %s", args.val_split, run.best_rsum, where)
    run.tracker.close()
    close_console()


def open_run(args: argparse.Namespace) -> tuple[Run, object]:
    """The run on disk and its console; InputError where its folders can't be written."""
    folder = check_writable(args.model_name, "--model_name")
    logger = setup_console(check_writable(args.logger_name, "--logger_name") / "train.log")
    settings = {k: v for k, v in vars(args).items() if isinstance(v, int | float | str | bool | None)}
    return Run(folder, Tracker(None), settings), logger


def schedule(args: argparse.Namespace, staged: bool) -> Schedule:
    return Schedule(
        args.lr_update, args.vse_mean_warmup_epochs, args.max_violation, args.embedding_warmup_epochs,
        args.backbone_warmup_epochs, staged,
    )  # fmt: skip


if __name__ == "__main__":
    main()
