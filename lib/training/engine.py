"""One training epoch, and the scores of a split.

Letters: B images and captions of a batch, N images, C captions of a split.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import time
from contextlib import nullcontext

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from lib.config import ModelConfig
from lib.datasets.captions import TokenizedCaptions
from lib.datasets.loaders import TrainBatch, caption_batches, image_batches
from lib.datasets.splits import Split
from lib.errors import InputError
from lib.evaluation import scoring
from lib.fragments import Fragments
from lib.parallel import Runner
from lib.training.losses import hinge_triplet_loss
from lib.training.optim import loss_scale
from lib.training.tracking import Average, Tracker

logger = logging.getLogger("esl")
TOKENS_PER_CAPTION = 16  # a caption batch holds about as many tokens as batch_size captions of this length


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What a training step depends on besides the model and the data."""

    margin: float = 0.2
    grad_clip: float = 2.0
    hardest: bool = True
    embedding_warmup_epochs: int = 1
    accumulate: int = 1
    precision: str = "float32"
    seed: int = 0


def tokenize_for(config: ModelConfig, captions: list[str], tokenizer, bert_path: str) -> TokenizedCaptions:
    """Tokenise captions for a model's BERT; InputError when the tokenizer belongs to a larger vocabulary."""
    if config.bert["vocab_size"] < tokenizer.vocab_size:
        raise InputError(
            f"--bert_path {bert_path}: the tokenizer has {tokenizer.vocab_size} entries, the model's BERT "
            f"{config.bert['vocab_size']}; give the tokenizer that the model was trained with"
        )
    return TokenizedCaptions(captions, tokenizer, config.bert["max_position_embeddings"])


def seed_epoch(seed: int, epoch: int) -> None:
    """Seed torch's own draws (dropout, dropped grid cells) of an epoch, so that a resumed run repeats them."""
    torch.manual_seed(int(np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint64)[0] >> 1))


def train_one_epoch(
    runner: Runner,
    loader,
    optimizer: torch.optim.Optimizer,
    recipe: Recipe,
    epoch: int,
    step: int,
    tracker: Tracker,
    log_step: int = 200,
    after_step=None,
) -> int:
    """Train on every batch of the loader once and return the global step reached.

    `after_step(step)` is called after each step but the last. Raises InputError when the loss stops being finite.
    """
    runner.model.train()
    seed_epoch(recipe.seed, epoch)
    loader.batch_sampler.set_epoch(epoch)
    steps = len(loader.batch_sampler)
    losses, data_times, step_times = Average(), Average(), Average()
    with tqdm(total=steps, desc=f"epoch {epoch}", unit="step", disable=None, leave=False) as bar:
        asked = time.perf_counter()
        for index, batch in enumerate(loader):
            started = time.perf_counter()
            data_times.update(started - asked)
            scale = loss_scale(epoch, index, steps, recipe.embedding_warmup_epochs, runner.model.config.grid)
            loss, norm = train_step(runner, batch, optimizer, recipe, scale)
            if not (math.isfinite(loss) and math.isfinite(norm)):
                raise InputError(
                    f"the loss is {loss} at epoch {epoch}, step {index} (gradient norm {norm}): lower --learning_rate "
                    "or --grad_clip; the checkpoints written so far are kept"
                )
            step += 1
            asked = time.perf_counter()
            seconds = asked - started
            step_times.update(seconds)
            count, rate = len(batch.indices), optimizer.param_groups[0]["lr"]
            losses.update(loss / count, count)
            speed = count / (data_times.last + seconds)
            bar.set_postfix(loss=f"{loss / count:.4f}", lr=f"{rate:.1e}", refresh=False, **{"images/s": f"{speed:.0f}"})
            bar.update()
            tracker.scalars(
                step,
                "train/",
                loss=loss,
                loss_per_pair=loss / count,
                lr=rate,
                gradient_norm=norm,
                data_time=data_times.last,
                step_time=seconds,
            )
            if (index + 1) % log_step == 0 or index + 1 == steps:
                logger.info(
                    "epoch %d step %d/%d  loss %.4f (mean %.4f)  lr %.1e  gradient %.2f  data %.3f s  step %.3f s",
                    epoch,
                    index + 1,
                    steps,
                    loss / count,
                    losses.mean,
                    rate,
                    norm,
                    data_times.mean,
                    step_times.mean,
                )
            if after_step is not None and index + 1 < steps:  # after the last one the caller validates anyway
                after_step(step)
                asked = time.perf_counter()
    return step


def train_step(
    runner: Runner, batch: TrainBatch, optimizer: torch.optim.Optimizer, recipe: Recipe, scale: float = 1.0
) -> tuple[float, float]:
    """One optimizer step; returns the loss (a sum over the batch, before `scale`) and the norm before clipping."""
    images = batch.images.to(runner.device, non_blocking=True)
    captions = batch.captions.to(runner.device, non_blocking=True)
    optimizer.zero_grad(set_to_none=True)
    if recipe.accumulate > 1:
        loss = _backward_in_chunks(runner, images, captions, recipe, scale)
    else:
        encoded_images = _encode(runner, runner.encode_images, images, recipe)
        encoded_captions = _encode(runner, runner.encode_captions, captions, recipe)
        loss = hinge_triplet_loss(runner.score(encoded_images, encoded_captions), recipe.margin, recipe.hardest)
        (loss * scale).backward()
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    norm = torch.nn.utils.clip_grad_norm_(parameters, recipe.grad_clip if recipe.grad_clip > 0 else math.inf)
    if torch.isfinite(norm):  # else the weights stay as they were, and train_one_epoch stops
        optimizer.step()
    return float(loss.detach()), float(norm)


def _encode(runner: Runner, encode, items, recipe: Recipe) -> Fragments:
    """Fragments of images or captions, encoded in the recipe's precision, handed on in float32 at least."""
    with _autocast(runner, recipe):
        features, mask = encode(items)
    return Fragments(features.to(torch.promote_types(features.dtype, torch.float32)), mask)


def _autocast(runner: Runner, recipe: Recipe):
    return torch.autocast(runner.device.type, torch.bfloat16) if recipe.precision == "bf16" else nullcontext()


def _backward_in_chunks(runner: Runner, images, captions: Tensor, recipe: Recipe, scale: float) -> Tensor:
    """The gradients of the whole batch, every negative included, with the encoders' activations of one chunk at a time.

    Chunks are encoded without gradient, scored together, and encoded again with the random state they had before, to
    take the gradient of the loss with respect to their fragments further back. The region encoder is small and its
    BatchNorm needs the whole batch, so region features are encoded in one piece.
    """
    pieces = recipe.accumulate
    jobs = [(runner.encode_captions, captions, pieces)]
    jobs.append((runner.encode_images, images, pieces if isinstance(images, Tensor) else 1))

    work, encoded = [], []
    for encode, items, count in jobs:
        parts = list(items.chunk(count)) if count > 1 else [items]
        states, outputs = [], []
        for part in parts:
            states.append(_random_state(runner.device))
            with torch.no_grad() if count > 1 else nullcontext():
                outputs.append(_encode(runner, encode, part, recipe))
        joined = Fragments(*map(torch.cat, zip(*outputs, strict=True)))
        leaf = Fragments(joined.features.detach().requires_grad_(), joined.mask)
        encoded.append(leaf)
        work.append((encode, parts, states, outputs, leaf))
    loss = hinge_triplet_loss(runner.score(encoded[1], encoded[0]), recipe.margin, recipe.hardest)
    (loss * scale).backward()
    after = _random_state(runner.device)
    for encode, parts, states, outputs, leaf in work:
        gradients = leaf.features.grad.split([len(output.mask) for output in outputs])
        for part, state, output, gradient in zip(parts, states, outputs, gradients, strict=True):
            if not output.features.requires_grad:
                _set_random_state(state, runner.device)
                output = _encode(runner, encode, part, recipe)
            output.features.backward(gradient)
    _set_random_state(after, runner.device)
    return loss


def _random_state(device: torch.device):
    return torch.get_rng_state(), torch.cuda.get_rng_state_all() if device.type == "cuda" else None


def _set_random_state(state, device: torch.device) -> None:
    torch.set_rng_state(state[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state_all(state[1])


@dataclasses.dataclass
class SplitScores:
    """Scores (N, C) of a split, and one vector per item where they were asked for."""

    matrix: np.ndarray
    image_vectors: np.ndarray | None = None
    caption_vectors: np.ndarray | None = None


def score_split(
    runner: Runner,
    split: Split,
    tokenized: TokenizedCaptions,
    batch_size: int = 128,
    workers: int = 0,
    load_image=None,
    vectors: bool = False,
    precision: str = "float32",
    score_memory: int | None = None,
) -> SplitScores:
    """Score all images of a split with all its captions, each encoded once; the model is left in the mode it was in."""
    training = runner.model.training
    runner.model.eval()
    try:
        batches = image_batches(split, batch_size, workers, load_image, runner.device.type == "cuda")
        images = scoring.encode_images(runner, batches, split.n_images, vectors, precision)
        batches = caption_batches(tokenized, batch_size * TOKENS_PER_CAPTION)
        captions = scoring.encode_captions(runner, batches, split.n_captions, vectors, precision)
        matrix = scoring.similarity_matrix(runner, images, captions, score_memory)
    finally:
        runner.model.train(training)
    return SplitScores(matrix, images.vectors, captions.vectors)
