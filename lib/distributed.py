"""Several processes, started by torchrun, that train or evaluate one model and give the numbers of one process.

Each encodes its share of a batch and scores its images with the captions of all; from there on every process computes
the same loss from the same (B, B) matrix. The gradient of a caption is the sum of what all processes found for it, and
so is that of a weight. Without torchrun each function does what one process needs.

Letters: B images of a batch, b of them of one process, C captions, W tokens, D embedding size, n rows.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import signal
import sys
import time
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lib.alignment import Way
from lib.errors import InputError
from lib.fragments import Fragments, Items
from lib.model import MatchingModel
from lib.parallel import Runner, visible_devices

TIMEOUT = datetime.timedelta(minutes=10)  # of a process that hangs; one that dies is noticed at once
PATIENCE = 5  # seconds in which the first process says what is wrong with all of them
BUCKET = 1 << 24  # numbers that are summed in one message


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def size() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def first() -> bool:
    """Whether this is the process that writes and speaks."""
    return rank() == 0


def share(count: int) -> slice:
    """The part of `count` items that is this process's, in order."""
    return slice(count * rank() // size(), count * (rank() + 1) // size())


@contextlib.contextmanager
def joined(device: str | None):
    """Join the processes of torchrun, if it started this one; only the first of them writes to stdout.

    An error that all find is said by the first alone. Raises InputError where another process ended.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1 or "RANK" not in os.environ:
        yield
        return
    try:
        _join(device)
        if not first():
            sys.stdout = open(os.devnull, "w")
        yield
        dist.destroy_process_group()
    except InputError as error:
        if first():
            raise
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # by which torchrun ends the others once the first has ended
        time.sleep(PATIENCE)
        raise InputError(f"process {rank()}: {error}") from None
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "gloo" not in str(error):
            raise
        if not first():
            raise SystemExit(2) from None
        reason = " ".join(str(error).split()).partition(". ")[0][:160]
        raise InputError(
            f"another process of this run ended, and so does this one ({reason}); checkpoints already written are kept"
        ) from None


def _join(device: str | None) -> None:
    if device not in (None, "cpu", "cuda"):
        raise InputError(f"--device {device}: torchrun gives each process a GPU of its own; leave it out, or name cpu")
    on_gpus, local = torch.cuda.is_available() and device != "cpu", int(os.environ.get("LOCAL_RANK", 0))
    if on_gpus:
        if local >= torch.cuda.device_count():
            raise InputError(f"--nproc_per_node: process {local} has no GPU, there are {torch.cuda.device_count()}")
        torch.cuda.set_device(local)
    dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpus else "gloo", timeout=TIMEOUT)


def own_devices(device: str | None) -> list[torch.device]:
    """The devices of this process: those of `visible_devices`, or the one GPU that is its own."""
    devices = visible_devices(device)
    if size() > 1 and devices[0].type == "cuda":
        return [torch.device("cuda", torch.cuda.current_device())]
    return devices


# ---- what processes tell each other ----


def gather_objects(value: Any) -> list[Any]:
    """A plain value of every process, in their order."""
    if not dist.is_initialized():
        return [value]
    found = [None] * size()
    dist.all_gather_object(found, value)
    return found


def largest(value: int) -> int:
    """The largest of the processes' values."""
    if not dist.is_initialized():
        return value
    found = torch.tensor([value])
    dist.all_reduce(found, dist.ReduceOp.MAX)
    return int(found)


def whole(part: np.ndarray, count: int) -> np.ndarray:
    """All `count` rows of an array of which each process has its `share`."""
    if not dist.is_initialized():
        return part
    rows = np.empty((count, *part.shape[1:]), part.dtype)
    rows[share(count)] = part
    return completed(rows)


def completed(rows: np.ndarray) -> np.ndarray:
    """An array of whose rows each process has filled its `share`, filled by all."""
    for source in range(size()) if dist.is_initialized() else ():
        start, stop = (len(rows) * number // size() for number in (source, source + 1))
        dist.broadcast(torch.from_numpy(rows[start:stop]), source)
    return rows


def collected(own: np.ndarray | None, counts: list[int]) -> list[np.ndarray]:
    """On the first process the arrays of all, of which process i has `counts[i]` rows of one shape; elsewhere none."""
    if not dist.is_initialized():
        return [own]
    if not first():
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
    told = gather_objects(None if items is None else (type(items), items.real, items.rows.shape[2], items.rows.dtype))
    kind, _, width, dtype = next(each for each in told if each is not None)
    counts = [0 if each is None else int(each[1].sum()) for each in told]
    if items is None:
        device = torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else "cpu"
        rows = torch.empty(0, width, dtype=dtype, device=device)
    else:
        rows = items.packed()  # (n, K)
    parts = _AllRows.apply(rows, counts, True).split(counts)
    return [kind.unpacked(part, each[1]) for part, each in zip(parts, told, strict=True) if each is not None]


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


def build_runner(model: MatchingModel, devices: list[torch.device], precision: str, way: Way | None) -> Runner:
    """The runner of this process, alone or one of several."""
    return (Runner if size() == 1 else DistributedRunner)(model, devices, precision, way)


class DistributedRunner(Runner):
    """A Runner whose batches are shares of a batch: it encodes its own, and its scores are those of the whole batch."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        for tensor in self.model.state_dict().values():
            dist.broadcast(tensor, 0)
        share_statistics(self.model)

    def score(self, images: Fragments, captions: Fragments) -> Tensor:
        """Scores (B, B) of the whole batch, of which this process has b images and their captions."""
        parts = gather_items(captions)
        block = super().score(images, concatenated(parts))  # (b, B)
        return _AllRows.apply(block, [part.count for part in parts], False)  # (B, B)

    def reduce_gradients(self) -> None:
        """Sum the gradients of the model's weights over all processes."""
        gradients = [parameter.grad for parameter in self.model.parameters() if parameter.grad is not None]
        for bucket in _buckets(gradients):
            flat = torch.cat([gradient.flatten() for gradient in bucket])
            dist.all_reduce(flat)
            for gradient, summed in zip(bucket, flat.split([g.numel() for g in bucket]), strict=True):
                gradient.copy_(summed.view_as(gradient))


def _buckets(tensors: list[Tensor]) -> list[list[Tensor]]:
    """Tensors in groups of one type and about BUCKET numbers, in their order."""
    buckets, filled = [], 0
    for tensor in tensors:
        if not buckets or buckets[-1][0].dtype != tensor.dtype or filled + tensor.numel() > BUCKET:
            buckets.append([])
            filled = 0
        buckets[-1].append(tensor)
        filled += tensor.numel()
    return buckets


class _Sum(torch.autograd.Function):
    """The sum of a tensor over all processes, each of which goes on with it in a computation of its own."""

    @staticmethod
    def forward(ctx, tensor: Tensor) -> Tensor:
        total = tensor.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        total = gradient.clone()
        dist.all_reduce(total)
        return total


class _SharedStatistics:
    """What turns a BatchNorm into one whose statistics are those of the rows of all processes."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        dims = [d for d in range(x.ndim) if d != 1]
        shape = [-1 if d == 1 else 1 for d in range(x.ndim)]
        exact = x.to(torch.promote_types(x.dtype, torch.float32))
        count = exact.new_tensor([x.numel() // x.shape[1]])
        *total, count = _Sum.apply(torch.cat([exact.sum(dims), count])).split([x.shape[1], 1])
        centred = exact - (mean := total[0] / count).view(shape)
        variance = _Sum.apply(centred.square().sum(dims)) / count
        if self.track_running_stats:
            self._note(mean.detach(), (variance * count / (count - 1)).detach())
        normed = centred * (variance + self.eps).rsqrt().view(shape)
        if self.affine:
            normed = normed * self.weight.view(shape) + self.bias.view(shape)
        return normed.to(x.dtype)

    def _note(self, mean: Tensor, variance: Tensor) -> None:
        self.num_batches_tracked += 1
        momentum = self.momentum if self.momentum is not None else 1 / self.num_batches_tracked
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), momentum)
        self.running_var.lerp_(variance.to(self.running_var.dtype), momentum)


def share_statistics(model: nn.Module) -> None:
    """Let every BatchNorm of a model take its statistics from all processes; torch's SyncBatchNorm needs GPUs."""
    for module in model.modules():
        if isinstance(module, _BatchNorm) and not isinstance(module, _SharedStatistics):
            kind = type(module)
            module.__class__ = type(f"Shared{kind.__name__}", (_SharedStatistics, kind), {})
