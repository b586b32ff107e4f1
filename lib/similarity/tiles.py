"""How the work on S is cut: blocks for the matrix product, tiles for what follows it.

A block holds captions of one length (on a GPU: of similar length) and is big enough for an efficient product; a tile
is the part of a block that is processed at a time and, on a CPU, stays in its second-level caches.
"""

from __future__ import annotations

import bisect
import functools
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

BUFFERS = 2  # arrays of a tile's size that are written again and again; S itself is only streamed
TYPICAL_WORDS = 16
BLOCK_ROWS = 512  # words of a block on a CPU: the product gains little from more, and S leaves the caches
CPU_BLOCK_BYTES = 32 << 20
GPU_BLOCK_BYTES = 512 << 20


class Budget(NamedTuple):
    """How large a part of S may be: of a matrix product (a block), and of what is processed at a time (a tile)."""

    block: int
    tile: int
    on_cpu: bool


def budget(device: torch.device, memory: int | None = None) -> Budget:
    """Sizes, in values of S, from the caches and the cores of a CPU; `memory` (bytes for all buffers) limits both."""
    on_cpu = device.type == "cpu"
    block = CPU_BLOCK_BYTES // 4 if on_cpu else GPU_BLOCK_BYTES // 4
    tile = _cache_bytes() * torch.get_num_threads() // (BUFFERS * 4) if on_cpu else block
    most = block if memory is None else max(1, memory // (4 * (1 + BUFFERS)))
    return Budget(min(block, most), min(tile, most), on_cpu)


class Block(NamedTuple):
    """Captions `captions` (a slice in length order), whose words are `rows` of the packed words, `width` at most."""

    captions: slice
    rows: slice
    width: int
    mask: Tensor | None  # (C, W), None where all captions have `width` words
    lengths: Tensor | None  # (C,) int32, None as well

    @property
    def count(self) -> int:
        return self.captions.stop - self.captions.start

    def pad(self, packed: Tensor) -> Tensor:
        """Packed words (rows, E) with zero rows where captions are shorter: (C * W, E)."""
        if self.mask is None:
            return packed
        padded = packed.new_zeros(self.mask.numel(), packed.shape[1])  # (C * W, E)
        padded[self.mask.flatten()] = packed
        return padded

    def unpad(self, padded: Tensor) -> Tensor:
        """The inverse of `pad`: (C * W, K) -> (rows, K)."""
        return padded if self.mask is None else padded[self.mask.flatten()]

    def tiles(self, columns: int, elements: int) -> Iterator[slice]:
        """Captions of the block, from 0, in runs whose part of S has about `elements` values."""
        step = max(1, elements // (self.width * columns))
        for start in range(0, self.count, step):
            yield slice(start, min(start + step, self.count))


def blocks(lengths: list[int], columns: int, device: torch.device, size: Budget) -> Iterator[Block]:
    """Cut captions of ascending `lengths` into blocks for a product with `columns` columns, equal ones within a run.

    A run is captions of one length on a CPU, of similar length on a GPU.
    """
    most = min(size.block // max(columns, 1), BLOCK_ROWS if size.on_cpu else BLOCK_ROWS * 64)
    begin = row = 0
    while begin < len(lengths):
        longest = lengths[begin] if size.on_cpu else int(1.25 * lengths[begin] + 1)
        end = bisect.bisect_right(lengths, longest)
        parts = -(-(end - begin) // max(1, most // lengths[end - 1]))
        step = -(-(end - begin) // parts)
        for start in range(begin, end, step):
            inside = lengths[start : min(start + step, end)]
            rows = slice(row, row + sum(inside))
            mask = counts = None
            if inside[0] != inside[-1]:
                counts = torch.tensor(inside, dtype=torch.int32).to(device, non_blocking=True)  # (C,)
                mask = torch.arange(inside[-1], device=device) < counts[:, None]  # (C, W)
            yield Block(slice(start, start + len(inside)), rows, inside[-1], mask, counts)
            row = rows.stop
        begin = end


def image_tile(regions: int, images: int, size: Budget) -> int:
    """Images of a block: few enough that a caption of usual length fits a tile, and runs of images stay long."""
    fitting = size.tile // (2 * TYPICAL_WORDS * regions)
    fitting = max(32, fitting // 16 * 16)
    parts = -(-images // fitting)
    return -(-images // parts)  # equal parts


@functools.cache
def _cache_bytes() -> int:
    """Second-level cache of one core; 1 MiB where the system does not say."""
    unit = {"K": 1 << 10, "M": 1 << 20}
    try:
        text = Path("/sys/devices/system/cpu/cpu0/cache/index2/size").read_text().strip()
        return int(text[:-1]) * unit[text[-1]]
    except (OSError, KeyError, ValueError):
        pass
    try:
        return max(os.sysconf("SC_LEVEL2_CACHE_SIZE"), 0) or 1 << 20
    except (ValueError, OSError, AttributeError):
        return 1 << 20


def onednn_product(rows: Tensor, columns: Tensor) -> Tensor:
    """rows (n, E) times columns (m, E) through oneDNN: (n, m)."""
    return torch.ops.mkldnn._linear_pointwise(rows, columns, None, "none", [], "")


@functools.cache
def onednn_is_faster() -> bool:
    """Whether oneDNN multiplies float32 clearly faster than torch.mm here (on some AMD processors by a factor of two).

    Measured once per process on a product of a block's shape; a near draw always means torch.mm, so that runs agree.
    """
    rows, columns = torch.ones(BLOCK_ROWS, 1024), torch.ones(4096, 1024)
    out = torch.empty(len(rows), len(columns))

    def best(product) -> float:
        times = []
        for _ in range(4):
            start = time.perf_counter()
            product()
            times.append(time.perf_counter() - start)
        return min(times[1:])

    try:
        onednn = best(lambda: onednn_product(rows, columns))
    except (AttributeError, NotImplementedError, RuntimeError):  # a build of torch without oneDNN
        return False
    return onednn < 0.75 * best(lambda: torch.mm(rows, columns.T, out=out))


class Scratch:
    """Memory that the tiles of one call share, so that none of them allocates."""

    def __init__(self, device: torch.device):
        self._device = device
        self._held: dict[str, Tensor] = {}

    def take(self, name: str, *shape: int, dtype: torch.dtype) -> Tensor:
        """An uninitialised tensor of `shape`; a later call with the same name overwrites it."""
        size = math.prod(shape)
        held = self._held.get(name)
        if held is None or held.numel() < size or held.dtype != dtype:
            held = self._held[name] = torch.empty(size, dtype=dtype, device=self._device)
        return held[:size].view(shape)
