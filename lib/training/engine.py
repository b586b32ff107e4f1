"""A step and an epoch of training.

Letters: B matching pairs of a batch.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import time
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor, nn

from lib.core.errors import InputError, listed
from lib.core.fragments import Fragments
from lib.datasets.loaders import Loader, TrainBatch
from lib.distributed.launch import rank
from lib.distributed.runner import Runner, seed_devices
from lib.training.optim import learning_rates, set_learning_rates, step_if
from lib.training.progress import Step, timed
from lib.training.randomness import random_state, set_random_state
from lib.training.schedule import Phase, Schedule

logger = logging.getLogger("esl")
MOST_SKIPPED = 3


@dataclasses.dataclass
class Trainer:
    """What a step needs beside its batch: the model on its devices, loss, optimizer, schedule.

    Gradients are clipped to the norm `grad_clip` (0: not at all); a batch is encoded in `accumulate` chunks.
    """

    runner: Runner
    criterion: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    grad_clip: float = 2.0
    accumulate: int = 1
    seed: int = 0
    skipped: int = 0  # steps in a row, up to now

    def steps(self, loader: Loader, epoch: int, number: int = 0, done: int = 0) -> Iterator[Step]:
        """Train on the batches of an epoch, one update a turn, without its first `done` batches.

        `number` is the global number of the last step before.
        """
        self.runner.model.train()
        if not done:  # else the epoch goes on with the random states that it had
            self.seed_epoch(epoch)
        loader.batch_sampler.set_epoch(epoch, done)
        steps = len(loader.batch_sampler)
        self.runner.model.image_encoder.fix_blocks(self.schedule.at(epoch, 0, steps).fixed_blocks)
        mean = getattr(self.criterion, "mean", False)
        for index, (batch, waited) in enumerate(timed(loader), done):
            began = time.perf_counter()
            loss, norm = self.step(batch, self.schedule.at(epoch, index, steps))
            loss = loss * len(batch.indices) if mean else loss
            number += 1
            captions, rates = loader.batch_sampler.batch(index), learning_rates(self.optimizer)
            yield Step(number, index + 1, captions, loss, norm, rates, mean, waited, began)

    def step(self, batch: TrainBatch, phase: Phase) -> tuple[Tensor, Tensor]:
        """One optimizer step; returns the loss (of the whole batch, before its scale) and the norm before clipping.

        Both stay on the device. Where they are not finite, weights, optimizer and BatchNorm statistics stay as they
        were.
        """
        buffers = list(self.runner.model.buffers())
        before = [buffer.clone() for buffer in buffers]
        images = batch.images.to(self.runner.device, non_blocking=True)
        captions = batch.captions.to(self.runner.device, non_blocking=True)
        set_learning_rates(self.optimizer, phase.learning_rate)
        self.optimizer.zero_grad(set_to_none=True)
        loss = self._backward(images, captions, phase)
        self.runner.reduce_gradients()
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        norm = nn.utils.clip_grad_norm_(parameters, self.grad_clip if self.grad_clip > 0 else math.inf)
        finite = loss.isfinite() & norm.isfinite()
        step_if(self.optimizer, finite)
        for buffer, earlier in zip(buffers, before, strict=True):
            torch.where(finite, buffer, earlier, out=buffer)
        return loss.detach(), norm

    def _backward(self, images, captions, phase: Phase) -> Tensor:
        """Leave the gradients of the scaled loss in the parameters; returns the loss."""
        runner = self.runner
        chunks = 1 if runner.model.image_encoder.whole_batch else self.accumulate
        encoded_images = ChunkedEncoding(runner.encode_images, images, chunks, runner.device)
        encoded_captions = ChunkedEncoding(runner.encode_captions, captions, self.accumulate, runner.device)
        scores = runner.score(encoded_images.fragments, encoded_captions.fragments)
        loss = self.criterion(scores, phase.hardest)
        (loss * phase.loss_scale).backward()
        encoded_captions.backward()
        encoded_images.backward()
        return loss

    def watch(self, steps: list[Step]) -> None:
        """Warn of steps that were skipped; InputError after MOST_SKIPPED in a row."""
        for step in steps:
            if math.isfinite(step.loss) and math.isfinite(step.norm):
                self.skipped = 0
                continue
            self.skipped += 1
            figures = f"the loss is {step.loss}, the gradient norm {step.norm}"
            captions = listed(step.captions.tolist(), 8)
            logger.warning(
                "warning: step %d was skipped: %s (rows of its captions: %s)", step.number, figures, captions
            )
            if self.skipped == MOST_SKIPPED:
                raise InputError(
                    f"{MOST_SKIPPED} steps in a row were skipped, the last one step {step.number}: {figures}; look at "
                    "these captions and their images, or lower --learning_rate or --grad_clip; the checkpoints written "
                    "so far are kept"
                )

    def seed_epoch(self, epoch: int, done: int = 0) -> None:
        """Seed torch's own draws (dropout, dropped cells) of an epoch, so that a resumed run repeats them.

        Each process of several has a seed of its own, and one that joins within the epoch another one.
        """
        own = [rank(), done] if rank() or done else []
        seed = int(np.random.SeedSequence([self.seed, epoch, *own]).generate_state(1, np.uint64)[0] >> 1)
        seed_devices(seed, self.runner.devices)


class ChunkedEncoding:
    """The encoded items of a batch, made with the encoder's activations of one chunk at a time.

    Several chunks are encoded without gradient, and again, from the random state that they had before, once the
    gradient with respect to `fragments` is there to be taken further back. One chunk is encoded once, as usual.
    """

    def __init__(self, encode: Callable, items, chunks: int, device: torch.device):
        self.encode, self.device, self.pieces = encode, device, []
        if chunks == 1:
            self.fragments = encode(items)
            return
        outputs = []
        for chunk in items.chunk(chunks):
            self.pieces.append((chunk, random_state(device)))
            with torch.no_grad():
                outputs.append(encode(chunk))
        self.fragments = Fragments.cat(outputs)
        self.fragments.features.requires_grad_()

    def backward(self) -> None:
        """Take the gradient of the fragments back through the encoder."""
        if not self.pieces:
            return
        after, start = random_state(self.device), 0
        for chunk, state in self.pieces:
            set_random_state(state, self.device)
            features = self.encode(chunk).features
            features.backward(self.fragments.features.grad[start : start + len(features)])
            start += len(features)
        set_random_state(after, self.device)
