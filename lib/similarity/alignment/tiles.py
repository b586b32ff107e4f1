"""The division of the work on S: blocks for the matrix product, tiles for the operations after it.

A block is big enough for an efficient product. If a fused kernel follows, nothing else is cut. If torch works on S
operation by operation, a block holds captions of one length and is worked on in tiles that stay in the second-level
caches. (On a GPU a block holds captions of similar length, padded.)
"""

from __future__ import annotations

import bisect
import dataclasses
import functools
import itertools
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lib.core.fragments import on_device

BUFFERS = 2  # arrays of a tile's size that are written again and again; S itself is only streamed
TYPICAL_WORDS = 16
BLOCK_ROWS = 512  # words of a block on a CPU: the product gains little from more
GPU_BLOCK_BYTES = 512 << 20
IMAGE_STEP = 32  # images that fill a few whole vectors
LARGE_PRODUCT = 1 << 27  # multiplications: below, the way of multiplying does not matter
LEAST_BLOCK_BYTES, MOST_BLOCK_BYTES = 8 << 20, 32 << 20  # on a CPU, whatever its third-level cache


class Budget(NamedTuple):
    """Sizes of the cuts of S, in values: of a matrix product (a block), and of one operation (a tile).

    A block has about `rows` words at most and `columns` regions; its longest caption has up to `spread` times the words
    of its shortest.
    """

    block: int
    tile: int
    rows: int
    columns: int
    spread: float


def budget(device: torch.device, memory: int | None = None, packed: bool = False) -> Budget:
    """Sizes from the caches and the cores of a CPU; `memory` (bytes for all buffers) limits them.

    `packed`: what follows the product takes captions of any lengths and keeps little beside a block; a product may hold
    a second one.
    """
    if device.type == "cpu":
        block = min(max(_cache_bytes(3) // 2, LEAST_BLOCK_BYTES), MOST_BLOCK_BYTES) // 4
        tile = _cache_bytes(2) * torch.get_num_threads() // (BUFFERS * 4)
        rows, spread = BLOCK_ROWS, math.inf if packed else 1.0
    else:
        block = tile = GPU_BLOCK_BYTES // 4
        rows, spread = BLOCK_ROWS * 64, 1.25
    if memory is not None:
        most = max(1, memory // (4 * (2 if packed else 1 + BUFFERS)))
        block, tile = min(block, most), min(tile, most)
    # Without a fused kernel, a caption of usual length with all these columns is half a tile.
    columns = block // rows if packed else tile // (2 * TYPICAL_WORDS)
    return Budget(block, tile, rows, columns, spread)


@dataclasses.dataclass(frozen=True)
class Block:
    """Captions `captions` (a slice in length order) of `lengths` words, whose words are `rows` of the packed words."""

    captions: slice
    rows: slice
    lengths: list[int]
    device: torch.device

    @property
    def width(self) -> int:
        """Words of the longest caption."""
        return self.lengths[-1]

    @functools.cached_property
    def counts(self) -> Tensor | None:
        """Words of each caption, int32 (C,); None where all have `width`."""
        return None if self._real is None else on_device(np.array(self.lengths, dtype=np.int32), self.device)

    @functools.cached_property
    def mask(self) -> Tensor | None:
        """Real words (C, W), None where all captions have `width`."""
        return None if self._real is None else on_device(self._real, self.device)

    def pad(self, packed: Tensor) -> Tensor:
        """Packed words (rows, ...) with zero rows where captions are shorter: (C * W, ...)."""
        if self._real is None:
            return packed
        padded = packed.new_zeros(self._real.size, *packed.shape[1:])  # (C * W, ...)
        return padded.index_copy_(0, self._places, packed)

    def unpad(self, padded: Tensor) -> Tensor:
        """The inverse of `pad`: (C * W, ...) -> (rows, ...)."""
        return padded if self._real is None else padded.index_select(0, self._places)

    @functools.cached_property
    def _real(self) -> np.ndarray | None:
        if self.lengths[0] == self.width:
            return None
        return np.arange(self.width) < np.array(self.lengths)[:, None]  # (C, W)

    @functools.cached_property
    def _places(self) -> Tensor:
        return on_device(np.flatnonzero(self._real), self.device)  # (rows,)

    def tiles(self, columns: int, elements: int) -> Iterator[slice]:
        """Captions of the block, from 0, in runs whose part of S has about `elements` values."""
        step = max(1, elements // (self.width * columns))
        for start in range(0, len(self.lengths), step):
            yield slice(start, min(start + step, len(self.lengths)))


def blocks(lengths: list[int], columns: int, device: torch.device, size: Budget) -> Iterator[Block]:
    """Cut captions of ascending `lengths` into blocks for a product with `columns` columns.

    Captions of similar length, as `size.spread` says, make a run; a run is cut into blocks of about equally many words.
    """
    most = max(1, min(size.block // max(columns, 1), size.rows))
    stops = [0, *itertools.accumulate(lengths)]  # the words before each caption, and all
    begin = 0
    while begin < len(lengths):
        end = bisect.bisect_right(lengths, size.spread * lengths[begin])
        words = stops[end] - stops[begin]
        parts = -(-words // most)
        cuts = {bisect.bisect_left(stops, stops[begin] + words * part // parts) for part in range(parts + 1)}
        for start, stop in itertools.pairwise(sorted(cuts)):
            yield Block(slice(start, stop), slice(stops[start], stops[stop]), lengths[start:stop], device)
        begin = end


def image_tile(regions: int, images: int, size: Budget) -> int:
    """Images of a block: as many as its columns allow, in equal parts that fill whole vectors."""
    fitting = max(1, size.columns // regions // IMAGE_STEP) * IMAGE_STEP
    parts = max(1, -(-images // fitting))
    return min(images, -(-images // (parts * IMAGE_STEP)) * IMAGE_STEP)


@functools.cache
def _cache_bytes(level: int) -> int:
    """Size of a core's second-level or of the third-level cache; 1 MiB and 16 MiB where the system does not say."""
    unit = {"K": 1 << 10, "M": 1 << 20}
    try:
        text = Path(f"/sys/devices/system/cpu/cpu0/cache/index{level}/size").read_text().strip()
        return int(text[:-1]) * unit[text[-1]]
    except (OSError, KeyError, ValueError, IndexError):
        pass
    usual = {2: 1 << 20, 3: 16 << 20}[level]
    try:
        return max(os.sysconf(f"SC_LEVEL{level}_CACHE_SIZE"), 0) or usual
    except (ValueError, OSError, AttributeError):
        return usual


def product(rows: Tensor, columns: Tensor, out: Tensor | None = None) -> Tensor:
    """rows (n, E) times columns (m, E): (n, m), into `out` where that costs nothing; the result says where it is.

    torch.mm of float32 is MKL's, which holds back on processors that are not Intel's: 172 instead of oneDNN's 215
    GFLOP/s on a Zen 4, half of it on older ones. The choice depends on the processor and the sizes, never on a clock,
    so that runs agree.
    """
    on_cpu = rows.device.type == "cpu" and rows.dtype == torch.float32
    if on_cpu and len(rows) * columns.numel() >= LARGE_PRODUCT and onednn_is_faster():
        return torch.ops.mkldnn._linear_pointwise(rows, columns, None, "none", [], "")
    return torch.mm(rows, columns.T, out=out)


@functools.cache
def onednn_is_faster() -> bool:
    """Whether oneDNN multiplies large float32 matrices: where torch.mm is MKL's and the processor is not Intel's."""
    if not (torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()):
        return False
    try:
        torch.ops.mkldnn._linear_pointwise(torch.ones(1, 1), torch.ones(1, 1), None, "none", [], "")
        return "GenuineIntel" not in Path("/proc/cpuinfo").read_text()
    except (AttributeError, NotImplementedError, RuntimeError, OSError):  # a torch without it, another system
        return False


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
