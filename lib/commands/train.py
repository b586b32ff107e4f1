"""What train.py does once its flags are understood: build, train, and keep the epoch with the best RSUM on dev."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import logging
from functools import partial
from typing import Any, NamedTuple

import torch

from lib.checkpoint import Checkpoint, load_for, read_checkpoint
from lib.commands.flags import image_limits, loss_options, machine_paths, model_config
from lib.console.script import to_go_on
from lib.core.config import ModelConfig
from lib.core.errors import InputError
from lib.core.precision import set_precision
from lib.datasets.images import check_image_list
from lib.datasets.inputs import Inputs, open_inputs
from lib.datasets.layout import image_folder
from lib.datasets.loaders import Loader, train_loader
from lib.distributed.launch import is_main, joined, own_devices, rank, world_size
from lib.distributed.messages import gather_objects
from lib.distributed.runner import build_runner
from lib.evaluation.metrics import Retrieval, retrieval_metrics
from lib.files.writing import check_writable
from lib.inference.input_spec import input_spec
from lib.inference.scoring import score_split
from lib.model import build_model, check_memory, complete, describe
from lib.similarity.alignment import Backend
from lib.training.console import close_console, setup_console
from lib.training.engine import Trainer
from lib.training.fit import fit
from lib.training.lock import LOCK
from lib.training.losses import build_loss
from lib.training.optim import build_optimizer
from lib.training.record import METRICS, describe_start, summary, write_start
from lib.training.resuming import resume
from lib.training.run import BEST, Run, move_aside, newest_checkpoint
from lib.training.schedule import SCHEDULES, Schedule
from lib.training.stopping import Stop, Stopped
from lib.training.tracking import Tracker

logger = logging.getLogger("esl")
FEWEST = 50  # images on which an epoch is chosen without a note


class Data(NamedTuple):
    """The split that is trained on, with its loader, and the split that chooses the best epoch."""

    training: Inputs
    loader: Loader
    validation: Inputs


def train(args: argparse.Namespace, command: str) -> None:
    """Train as the flags say; `command` is the command line, for the record of the run."""
    with joined(args.device), open_run(args, command) as run:
        devices, paths = own_devices(args.device), machine_paths(args)
        set_precision(args.precision)
        torch.manual_seed(args.seed)
        config, loss = complete(model_config(args), paths), loss_options(args)
        run.settings = settings_of(args)  # by now with the default of every option
        checkpoint = find_checkpoint(args, run, paths)
        data = open_data(args, config, paths, pinned=devices[0].type == "cuda")
        trainer = build_trainer(args, config, loss, checkpoint, devices, paths)
        start(args, run, trainer, data, checkpoint, paths)
        fit(trainer, data.loader, run, partial(validate, args, trainer, data.validation))
        if run.best_rsum >= 0:
            best = run.folder / BEST
            where = best if best.exists() else f"in the run of {args.resume}"
            logger.info("best %s RSUM %.1f: %s", args.val_split, run.best_rsum, where)


def open_data(args: argparse.Namespace, config: ModelConfig, paths: dict[str, Any], pinned: bool) -> Data:
    """Both splits as the encoders read them, with the loader of this process."""
    limits = image_limits(args)
    if args.image_list:
        check_image_list(image_folder(args.data_path, args.data_name), args.image_list, limits)
    spec = input_spec(config, paths)
    training, validation = (
        open_inputs(args.data_path, args.data_name, split, spec, image_limits=limits)
        for split in ("train", args.val_split)
    )
    loader = train_loader(training, args.batch_size, args.seed, args.workers, pinned, (rank(), world_size()))
    return Data(training, loader, validation)


def build_trainer(
    args: argparse.Namespace,
    config: ModelConfig,
    loss: dict[str, Any],
    checkpoint: Checkpoint | None,
    devices: list[torch.device],
    paths: dict[str, Any],
) -> Trainer:
    """Model, with the weights of a checkpoint if there is one, loss with its options, optimizer and schedule."""
    check_memory(config)
    model = load_for(config, checkpoint) if checkpoint else build_model(config, paths)
    backend = Backend(args.kernels, args.score_memory and args.score_memory << 20)
    runner = build_runner(model, devices, args.precision, backend)
    criterion = build_loss(args.loss, model, loss).to(runner.device)
    rates = args.learning_rate, args.backbone_lr_factor, args.weight_decay, args.pretrained_lr
    optimizer = build_optimizer(model, criterion, args.optim, *rates)
    schedule = build_schedule(args, staged=bool(model.image_encoder.pretrained_parameters()))
    return Trainer(runner, criterion, optimizer, schedule, args.grad_clip, args.accumulate, args.seed)


def start(
    args: argparse.Namespace,
    run: Run,
    trainer: Trainer,
    data: Data,
    checkpoint: Checkpoint | None,
    paths: dict[str, Any],
) -> None:
    """Start the run, or go on where a checkpoint stopped, and write the record of this start."""
    goes_on = checkpoint is not None and not args.reset_start_epoch
    if goes_on:
        resume(run, trainer, checkpoint)
    run.lock()
    if not is_main():
        return
    if goes_on and checkpoint.path.resolve().parent == run.folder.resolve():
        run.mend(checkpoint)
    else:
        move_aside(run.folder)
    run.tracker = Tracker(args.logger_name, run.folder / METRICS, run.step)
    files = [*data.training.split.read_files, *data.validation.split.read_files, *paths.values()]
    record(run, trainer.runner.devices, files)
    announce(args, trainer, data)


def validate(args: argparse.Namespace, trainer: Trainer, validation: Inputs) -> Retrieval:
    """The recalls on the validation split."""
    scores = score_split(trainer.runner, validation, args.batch_size, args.workers)
    return retrieval_metrics(scores.matrix, validation.split.image_of_caption)


@contextlib.contextmanager
def open_run(args: argparse.Namespace, command: str):
    """The run on disk with its console and its answer to signals; InputError where it can't be written.

    Nothing is written before training starts. Where a run was before, its folder is locked at once.
    """
    folder, logs = check_writable(args.model_name, "--model_name"), check_writable(args.logger_name, "--logger_name")
    with Stop() as stop, contextlib.ExitStack() as held:
        setup_console(logs / "train.log")
        run = Run(folder, settings_of(args), command, stop=stop, held=held)
        if (folder / LOCK).exists():
            run.lock()
        try:
            yield run
        except Stopped as stopped:
            logger.info("stopped by %s at step %d; to go on: %s", stopped.name, run.step, to_go_on(run.command))
            raise
        finally:
            run.tracker.close()
            close_console()


def settings_of(args: argparse.Namespace) -> dict[str, Any]:
    """The values of the flags, as they go into checkpoints."""
    return {name: value for name, value in vars(args).items() if isinstance(value, int | float | str | bool | None)}


def find_checkpoint(args: argparse.Namespace, run: Run, paths: dict[str, Any]) -> Checkpoint | None:
    """The checkpoint that --resume names or finds; none of several processes goes on before all have read it."""
    if args.resume == "auto":
        checkpoint = newest_checkpoint(run.folder, paths)
    else:
        checkpoint = read_checkpoint(args.resume, paths) if args.resume else None
    if len(set(gather_objects(checkpoint and checkpoint.step))) > 1:
        raise InputError(f"{run.folder}: not every process sees the same; put --model_name on a disk that all share")
    return checkpoint


def record(run: Run, devices: list, files: list) -> None:
    """Write down with what the run was started, and say it in short."""
    start = describe_start(run.command, run.settings, files, devices, world_size())
    write_start(run.folder, start, run.step)
    for line in summary(start):
        logger.info(line)


def build_schedule(args: argparse.Namespace, staged: bool) -> Schedule:
    kind = SCHEDULES[args.schedule]
    names = [field.name for field in dataclasses.fields(kind) if field.name != "staged"]
    return kind(**{name: getattr(args, name) for name in names}, staged=staged)


def announce(args: argparse.Namespace, trainer: Trainer, data: Data) -> None:
    """Say what is about to be trained."""
    for name, inputs in (("train", data.training), (args.val_split, data.validation)):
        logger.info("%s: %d images, %d captions", name, inputs.split.n_images, inputs.split.n_captions)
    if data.validation.split.n_images < FEWEST:
        few = "so few images of %s choose the best epoch by chance, take %d or more"
        logger.info(few, args.val_split, FEWEST)
    model, devices = trainer.runner.model, trainer.runner.devices
    parameters = f"{sum(p.numel() for p in model.parameters()):,} parameters"
    where, steps = ", ".join(map(str, devices)), len(data.loader.batch_sampler)
    logger.info("%s: %s, on %s, %d steps per epoch", describe(model.config), parameters, where, steps)
