"""Messages between the processes of a run; without torchrun each function does what one process needs.

Letters: C captions, D embedding size, n rows.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from lib.core.fragments import Fragments, Items
from lib.distributed.launch import is_main, my_slice, rank, world_size

# ---- messages ----


def gather_objects(value: Any) -> list[Any]:
    """A plain value of every process, in their order."""
    if not dist.is_initialized():
        return [value]
    values = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def max_over_processes(value: int) -> int:
    """The largest of the processes' values."""
    if not dist.is_initialized():
        return value
    largest = torch.tensor([value])
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    return int(largest)


def gather_rows(part: np.ndarray, count: int) -> np.ndarray:
    """All `count` rows of an array; each process gives `my_slice` of them."""
    if not dist.is_initialized():
        return part
    rows = np.empty((count, *part.shape[1:]), part.dtype)
    rows[my_slice(count)] = part
    return fill_rows(rows)


def fill_rows(rows: np.ndarray) -> np.ndarray:
    """An array with the rows of all processes; each has filled `my_slice` of it."""
    for source in range(world_size()) if dist.is_initialized() else ():
        start, stop = (len(rows) * number // world_size() for number in (source, source + 1))
        dist.broadcast(torch.from_numpy(rows[start:stop]), source)
    return rows


def gather_to_main(own: np.ndarray | None, counts: list[int]) -> list[np.ndarray]:
    """The arrays of all processes on the main process, elsewhere none; process i gives `counts[i]` rows."""
    if not dist.is_initialized():
        return [own]
    if not is_main():
        if own is not None:
            dist.send(torch.from_numpy(np.ascontiguousarray(own)), 0)
        return []
    parts = [own]
    for source, count in enumerate(counts[1:], start=1):
        parts.append(np.empty((count, *own.shape[1:]), own.dtype))
        dist.recv(torch.from_numpy(parts[-1]), source)
    return parts


class _AllRows(torch.autograd.Function):
    """Rows of all processes (n, D) -> (sum of n, D), `counts` of each.

    `summed`: each process goes on with the rows in a computation of its own, so a row's gradient is the sum of theirs.
    Otherwise all compute the same with them, and each has the whole gradient already.
    """

    @staticmethod
    def forward(ctx, rows: Tensor, counts: list[int], summed: bool) -> Tensor:
        ctx.counts, ctx.summed = counts, summed
        most = max(counts)
        padded = rows.new_zeros(most, *rows.shape[1:])
        padded[: len(rows)] = rows
        gathered = rows.new_empty(len(counts) * most, *rows.shape[1:])
        dist.all_gather_into_tensor(gathered, padded)
        return torch.cat([part[:count] for part, count in zip(gathered.split(most), counts, strict=True)])

    @staticmethod
    def backward(ctx, gradient: Tensor):
        if ctx.summed:
            gradient = gradient.contiguous()
            dist.all_reduce(gradient)
        return gradient.split(ctx.counts)[rank()], None, None


def gather_items(items: Items | None) -> list[Items]:
    """The items of every process that has some, with gradient; padding is not sent."""
    if not dist.is_initialized():
        return [items]
    layout = None if items is None else (type(items), items.real, items.rows.shape[2], items.rows.dtype)
    layouts = gather_objects(layout)
    items_type, _, width, dtype = next(each for each in layouts if each is not None)
    counts = [0 if each is None else int(each[1].sum()) for each in layouts]
    if items is None:
        device = torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else "cpu"
        rows = torch.empty(0, width, dtype=dtype, device=device)
    else:
        rows = items.packed()  # (n, K)
    parts = _AllRows.apply(rows, counts, True).split(counts)
    return [items_type.unpacked(part, each[1]) for part, each in zip(parts, layouts, strict=True) if each is not None]


def concatenated(parts: list[Fragments]) -> Fragments:
    """The items of parts that are padded to different lengths, one after another."""
    longest = max(part.real.shape[1] for part in parts)
    return Fragments.cat([
        Fragments(
            nn.functional.pad(part.features, (0, 0, 0, longest - part.real.shape[1])),  # (C, longest, D)
            np.pad(part.real, ((0, 0), (0, longest - part.real.shape[1]))),
        )
        for part in parts
    ])  # fmt: skip


# ---- training ----
