"""What encoders and heads exchange: Fragments (regions, grid cells, word pieces) and Tokens (captions before encoding).

Which fragments are real is known on the CPU from the start and travels with them, so that nothing has to wait for a GPU
to learn it.

Letters: N items, L fragments per item (padded), C captions, W tokens per caption (padded), D embedding size.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor


class Fragments:
    """Features (N, L, D) of N items and which of them are `real` (N, L); padding influences nothing.

    `real` may be given as an array or as a tensor. One of a GPU is copied to the CPU when it is needed there, which
    waits for the GPU.
    """

    def __init__(self, features: Tensor, real: np.ndarray | Tensor):
        self.features = features
        self._real, self._mask = (None, real) if isinstance(real, Tensor) else (real, None)

    def __iter__(self):
        return iter((self.features, self.mask))

    @classmethod
    def full(cls, features: Tensor) -> Fragments:
        """Fragments without padding."""
        return cls(features, np.ones(features.shape[:2], dtype=bool))

    @property
    def real(self) -> np.ndarray:
        """True where a fragment is real (N, L), on the CPU."""
        if self._real is None:
            self._real = self._mask.cpu().numpy()
        return self._real

    @property
    def mask(self) -> Tensor:
        """True where a fragment is real (N, L), on the device of the features."""
        if self._mask is None:
            self._mask = on_device(self._real, self.features.device)
        return self._mask

    @property
    def count(self) -> int:
        """How many items there are, N."""
        return len(self.features)

    @property
    def lengths(self) -> np.ndarray:
        """Number of real fragments of each item (N,), on the CPU."""
        return self.real.sum(1)

    def map(self, function: Callable[[Tensor], Tensor]) -> Fragments:
        """Apply `function` (n, D) -> (n, K) to the real fragments alone; padding becomes 0 and takes no part in it."""
        flat = self.features.flatten(0, 1)  # (N * L, D)
        if self.real.all():
            return Fragments(function(flat).unflatten(0, self.real.shape), self.real)  # (N, L, K)
        places = on_device(np.flatnonzero(self.real), flat.device)  # (n,)
        mapped = function(flat.index_select(0, places))  # (n, K)
        padded = mapped.new_zeros(len(flat), mapped.shape[1]).index_copy(0, places, mapped)  # (N * L, K)
        return Fragments(padded.unflatten(0, self.real.shape), self.real)  # (N, L, K)

    def to(self, *args, **kwargs) -> Fragments:
        """Move the features as Tensor.to does; the mask goes where they are."""
        return Fragments(self.features.to(*args, **kwargs), self.real)

    def pin_memory(self) -> Fragments:
        """Page-locked features, as a DataLoader makes them for a GPU."""
        return Fragments(self.features.pin_memory(), self.real)

    def select(self, items) -> Fragments:
        """The items that an index, slice or boolean mask names."""
        return Fragments(self.features[items], self.real[items])

    def chunk(self, parts: int) -> list[Fragments]:
        """The items in at most `parts` equal shares."""
        features = self.features.chunk(parts)
        return [Fragments(*share) for share in zip(features, _shares(self.real, features), strict=True)]

    @classmethod
    def cat(cls, parts: list[Fragments]) -> Fragments:
        """Items of equally padded parts, one after another."""
        if len(parts) == 1:
            return parts[0]
        return cls(torch.cat([part.features for part in parts]), np.concatenate([part.real for part in parts]))


class Tokens:
    """Token ids (C, W), padded at the end, and how many of each caption are real (C,), an array on the CPU."""

    def __init__(self, ids: Tensor, lengths: np.ndarray | Tensor):
        self.ids, self.lengths = ids, np.asarray(lengths)

    @classmethod
    def padded(cls, captions: list[np.ndarray]) -> Tokens:
        """The token ids of C captions, padded with 0."""
        lengths = list(map(len, captions))
        ids = np.zeros((len(captions), max(lengths, default=0)), dtype=np.int64)  # (C, W)
        for row, caption in zip(ids, captions, strict=True):
            row[: len(caption)] = caption
        return cls(torch.from_numpy(ids), np.array(lengths, dtype=np.int64))

    @property
    def count(self) -> int:
        """How many captions there are, C."""
        return len(self.ids)

    @property
    def real(self) -> np.ndarray:
        """True where a token is real (C, W), on the CPU."""
        return np.arange(self.ids.shape[1]) < self.lengths[:, None]  # (C, W)

    @property
    def mask(self) -> Tensor:
        """True where a token is real (C, W), on the device of the ids."""
        return on_device(self.real, self.ids.device)

    def to(self, device: torch.device, non_blocking: bool = False) -> Tokens:
        """Move the ids to a device; the lengths are needed on the CPU."""
        return Tokens(self.ids.to(device, non_blocking=non_blocking), self.lengths)

    def pin_memory(self) -> Tokens:
        """Page-locked ids, as a DataLoader makes them for a GPU."""
        return Tokens(self.ids.pin_memory(), self.lengths)

    def chunk(self, parts: int) -> list[Tokens]:
        """The captions in at most `parts` equal shares."""
        ids = self.ids.chunk(parts)
        return [Tokens(*share) for share in zip(ids, _shares(self.lengths, ids), strict=True)]


def on_device(array: np.ndarray, device: torch.device) -> Tensor:
    """An array as a tensor of a device, copied there without waiting for what the device is doing."""
    return torch.from_numpy(array).to(device, non_blocking=True)


def _shares(array: np.ndarray, like: tuple[Tensor, ...]) -> list[np.ndarray]:
    return np.split(array, np.cumsum([len(share) for share in like])[:-1])
