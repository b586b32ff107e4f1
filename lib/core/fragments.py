"""Items between encoders and heads: Tokens (captions before encoding), Fragments (encoded items) and Prepared ones.

Encoded and prepared items are different types, so that handing over the wrong one is an error. The lengths of items
are known on the CPU from the start and travel with the items, so that nothing has to wait for a GPU.

Letters: N items, L rows per item (padded), C captions, W tokens per caption (padded), D embedding size, K size of a
prepared row.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

import numpy as np
import torch
from torch import Tensor


class Items:
    """Rows (N, L, K) of N items and which of them are `real` (N, L); padding influences nothing.

    `real` may be given as an array or as a tensor. One of a GPU is copied to the CPU when it is needed there, which
    waits for the GPU.
    """

    def __init__(self, rows: Tensor, real: np.ndarray | Tensor):
        self.rows = rows
        self._real, self._mask = (None, real) if isinstance(real, Tensor) else (real, None)

    @classmethod
    def full(cls, rows: Tensor) -> Self:
        """Items without padding."""
        return cls(rows, np.ones(rows.shape[:2], dtype=bool))

    @classmethod
    def unpacked(cls, rows: Tensor, real: np.ndarray) -> Self:
        """The real rows (n, K) of all items in their places (N, L, K); padding is 0."""
        if not real.all():
            places = on_device(np.flatnonzero(real), rows.device)  # (n,)
            rows = rows.new_zeros(real.size, rows.shape[1]).index_copy(0, places, rows)  # (N * L, K)
        return cls(rows.unflatten(0, real.shape), real)  # (N, L, K)

    @classmethod
    def cat(cls, parts: list[Self]) -> Self:
        """Items of equally padded parts, one after another."""
        if len(parts) == 1:
            return parts[0]
        return cls(torch.cat([part.rows for part in parts]), np.concatenate([part.real for part in parts]))

    @property
    def real(self) -> np.ndarray:
        """True where a row is real (N, L), on the CPU."""
        if self._real is None:
            self._real = self._mask.cpu().numpy()
        return self._real

    @property
    def mask(self) -> Tensor:
        """True where a row is real (N, L), on the device of the rows."""
        if self._mask is None:
            self._mask = on_device(self._real, self.rows.device)
        return self._mask

    @property
    def count(self) -> int:
        """The number of items, N."""
        return len(self.rows)

    @property
    def lengths(self) -> np.ndarray:
        """Number of real rows of each item (N,), on the CPU."""
        return self.real.sum(1)

    def packed(self) -> Tensor:
        """The real rows of all items, one after another (n, K)."""
        flat = self.rows.flatten(0, 1)  # (N * L, K)
        if self.real.all():
            return flat
        return flat.index_select(0, on_device(np.flatnonzero(self.real), flat.device))  # (n, K)

    def to(self, *args, **kwargs) -> Self:
        """Move the rows as Tensor.to does; the mask goes where they are."""
        return type(self)(self.rows.to(*args, **kwargs), self.real)

    def pin_memory(self) -> Self:
        """Page-locked rows, as a DataLoader makes them for a GPU."""
        return type(self)(self.rows.pin_memory(), self.real)

    def select(self, items) -> Self:
        """The items that an index, slice or boolean mask names."""
        return type(self)(self.rows[items], self.real[items])

    def chunk(self, parts: int) -> list[Self]:
        """The items in at most `parts` equal shares."""
        rows = self.rows.chunk(parts)
        return [type(self)(*share) for share in zip(rows, _shares(self.real, rows), strict=True)]


class Fragments(Items):
    """Encoded items: `features` (N, L, D) of regions, grid cells or word pieces, as encoders give them."""

    def __iter__(self):
        return iter((self.features, self.mask))

    @property
    def features(self) -> Tensor:
        """The features (N, L, D); padding has no meaning."""
        return self.rows

    @property
    def units(self) -> Tensor:
        """Raises TypeError: encoded items have no units yet."""
        raise TypeError("encoded items where prepared ones are needed; call prepare_images or prepare_captions first")

    def map(self, function: Callable[[Tensor], Tensor], into: type[Items] | None = None) -> Items:
        """Applies `function` (n, D) -> (n, K) to the real fragments; padding takes no part and becomes 0.

        Gives Fragments, or the class of items that `into` names.
        """
        return (into or Fragments).unpacked(function(self.packed()), self.real)  # (N, L, K)


class Prepared(Items):
    """Items that a head has prepared once for all their pairs: `units` (N, L, K), ready to be scored."""

    @property
    def units(self) -> Tensor:
        """The units (N, L, K); padding is 0."""
        return self.rows

    @property
    def features(self) -> Tensor:
        """Raises TypeError: prepared items have no features any more."""
        raise TypeError("prepared items where encoded ones are needed; hand over what the encoder gave")


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
        """The number of captions, C."""
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
    """An array as a tensor of a device, copied there without waiting for the device."""
    return torch.from_numpy(array).to(device, non_blocking=True)


def _shares(array: np.ndarray, like: tuple[Tensor, ...]) -> list[np.ndarray]:
    return np.split(array, np.cumsum([len(share) for share in like])[:-1])
