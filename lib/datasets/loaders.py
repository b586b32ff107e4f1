"""Batches for training and for encoding a split once. Every random draw of a training sample comes from
(seed, epoch, caption index), so results don't depend on the number of loader workers.

Letters: B images (training: one per caption), C captions, N images of a split, R regions, W word pieces.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from lib.core.errors import InputError
from lib.core.fragments import Fragments, Tokens
from lib.datasets.captions import TokenisedCaptions
from lib.datasets.inputs import Inputs

SHARED_MEMORY = Path("/dev/shm")
# An InputError of a worker as torch raises it: the worker's traceback, its line ends printed as "?".
_WRAPPED = re.compile(r"Caught InputError in DataLoader worker process.*InputError: (.*)\?")


class TrainBatch(NamedTuple):
    """A batch of matching pairs: image b belongs to caption b."""

    images: Fragments | Tensor  # regions in the dtype of their file, or raw images (B, 3, H, W)
    captions: Tokens  # (B, W)
    indices: np.ndarray  # (B,) the captions' places in the split


class Pairs(Dataset):
    """One sample per caption of a split: its augmented image and its noisy tokens. Keys are (epoch, caption index)."""

    def __init__(self, inputs: Inputs, seed: int):
        self.images, self.captions, self.seed = inputs.images, inputs.captions, seed
        self.image_of_caption = inputs.split.image_of_caption

    def __len__(self) -> int:
        return len(self.image_of_caption)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Fragments | Tensor, np.ndarray, int]:
        epoch, index = key
        rng = np.random.default_rng([self.seed, epoch, index])
        tokens = self.captions.noisy_ids(index, rng)  # (W)
        return self.images(int(self.image_of_caption[index]), rng), tokens, index


class EpochSampler(Sampler):
    """Batches of (epoch, index), shuffled anew each epoch from (seed, epoch).

    The last, smaller batch is dropped; a set smaller than one batch gives that one batch. `part` is which of how many
    equal shares of each batch is given, where several processes train.
    """

    def __init__(self, n_samples: int, batch_size: int, seed: int, part: tuple[int, int] = (0, 1)):
        self.n_samples, self.batch_size, self.seed, self.part = n_samples, batch_size, seed, part
        self.set_epoch(0)

    def set_epoch(self, epoch: int, done: int = 0) -> None:
        """Name the epoch that the next iteration shuffles and draws for, and how many of its batches are left out."""
        self.epoch, self.done = epoch, done
        # the length as third entry: no sample has that index, so no sample shares this stream
        self.order = np.random.default_rng([self.seed, epoch, self.n_samples]).permutation(self.n_samples)

    def __len__(self) -> int:
        return max(1, self.n_samples // self.batch_size)

    def batch(self, number: int) -> np.ndarray:
        """The places of the captions of a whole batch of the epoch (B,)."""
        return self.order[number * self.batch_size : (number + 1) * self.batch_size]

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        which, parts = self.part
        for number in range(self.done, len(self)):
            batch = self.batch(number)
            own = batch[len(batch) * which // parts : len(batch) * (which + 1) // parts]
            yield [(self.epoch, int(index)) for index in own]


class Loader(DataLoader):
    """A DataLoader that raises the InputError of a worker in one line, and never touches torch's global random state.

    Raises InputError if the shared memory of this machine is too small for the batches of its workers.
    """

    fits = False  # whether the batches are known to fit

    def __init__(self, dataset: Dataset, collate: Callable, workers: int, **kwargs):
        generator = torch.Generator().manual_seed(0)
        super().__init__(dataset, collate_fn=collate, num_workers=workers, generator=generator, **kwargs)

    def __iter__(self) -> Iterator:
        if self.num_workers and not self.fits:
            self._check_shared_memory()
        try:
            yield from super().__iter__()
        except InputError as error:
            if not (wrapped := _WRAPPED.fullmatch(str(error))):
                raise
            error.__traceback__ = None  # holds torch's iterator, which would keep the workers waiting
            raise InputError(wrapped[1]) from None

    def _check_shared_memory(self) -> None:
        """Workers hand batches over in shared memory; where that is full, they die, or wait for ever."""
        keys = next(iter(self.batch_sampler), None)
        if not keys or not SHARED_MEMORY.is_dir():
            return
        processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))  # of torchrun, on this machine
        waiting = processes * (self.num_workers * self.prefetch_factor + 1)
        needed, free = waiting * len(keys) * _bytes(self.dataset[keys[0]]), shutil.disk_usage(SHARED_MEMORY).free
        if needed > free:
            raise InputError(
                f"{SHARED_MEMORY}: {free / 1e6:.0f} MB free, but the batches of --workers {self.num_workers} may fill "
                f"{needed / 1e6:.0f} MB; use fewer workers (0 needs none), or give a container more (docker --shm-size)"
            )
        self.fits = True


def _bytes(sample) -> int:
    """The size of the tensors and arrays in a sample."""
    if isinstance(sample, Tensor | np.ndarray):
        return sample.nbytes
    return sum(map(_bytes, sample)) if isinstance(sample, tuple | Fragments) else 8


def train_loader(
    inputs: Inputs,
    batch_size: int,
    seed: int,
    workers: int = 0,
    pin_memory: bool = False,
    part: tuple[int, int] = (0, 1),
) -> Loader:
    """Training batches (TrainBatch) of a split, or a part of each; workers stay alive between epochs.

    Call `loader.batch_sampler.set_epoch(epoch)` before each epoch. Bad data raises InputError while iterating, batches
    too small for the parts at once.
    """
    pairs = Pairs(inputs, seed)
    if min(batch_size, len(pairs)) < part[1]:
        raise InputError(f"batches of {min(batch_size, len(pairs))} pairs can't be shared by {part[1]} processes")
    return Loader(
        pairs,
        _collate_pairs,
        workers,
        batch_sampler=EpochSampler(len(pairs), batch_size, seed, part),
        pin_memory=pin_memory and torch.cuda.is_available(),
        persistent_workers=workers > 0,
    )


def _collate_pairs(samples: list) -> TrainBatch:
    images, captions, indices = zip(*samples, strict=True)
    return TrainBatch(_stack(images), Tokens.padded(captions), np.array(indices))


def _stack(images: tuple) -> Fragments | Tensor:
    if isinstance(images[0], Fragments):
        features = torch.stack([image.features for image in images])  # (B, R, D)
        return Fragments(features, np.stack([image.real for image in images]))
    return default_collate(images)  # (B, 3, H, W), in a worker straight into shared memory


class InOrder(Dataset):
    """The images of a split, or a part of them, without augmentation."""

    def __init__(self, images: Callable, part: slice = slice(None)):
        self.images, self.places = images, range(len(images))[part]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, number: int) -> Fragments | Tensor:
        return self.images(self.places[number])


def image_batches(
    images: Callable, batch_size: int, workers: int = 0, pin_memory: bool = False, part: slice = slice(None)
) -> Loader:
    """Each image, or each of a part, in order and not augmented: Fragments (B, R, D) or raw images (B, 3, H, W)."""
    pin_memory = pin_memory and torch.cuda.is_available()
    return Loader(InOrder(images, part), _stack, workers, batch_size=batch_size, pin_memory=pin_memory)


def caption_batches(captions: TokenisedCaptions, tokens_per_batch: int) -> list[tuple[np.ndarray, Tokens]]:
    """All captions without noise as (indices (C,), Tokens (C, W)), longest first, so that padding is rare.

    A batch holds at most `tokens_per_batch` tokens, padding included, and at least one caption.
    """
    lengths = captions.lengths
    order = np.argsort(-lengths, kind="stable")
    batches, start = [], 0
    while start < len(order):
        stop = start + max(1, tokens_per_batch // int(lengths[order[start]]))
        indices = order[start:stop]
        batches.append((indices, Tokens.padded([captions.ids(index) for index in indices])))
        start = stop
    return batches
