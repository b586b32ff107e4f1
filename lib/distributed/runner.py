"""Several GPUs in one process, giving the numbers of one.

Encoders split their batch by items, except one that needs it whole (BatchNorm), which runs on the first GPU. Scoring
splits the images and hands every GPU all captions, so the (B, B) matrix, and with it every negative, is the same as on
one GPU.
"""

from __future__ import annotations

import copy

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import parallel_apply, replicate

from lib.core.fragments import Fragments, Prepared, Tokens
from lib.core.host_random import own_draws
from lib.core.precision import at_least_float32, encoding, for_product
from lib.distributed.batchnorm import share_statistics
from lib.distributed.launch import world_size
from lib.distributed.messages import _AllRows, concatenated, gather_items
from lib.model import MatchingModel
from lib.similarity.alignment import Backend


def seed_devices(seed: int, devices: list[torch.device]) -> None:
    """Seed torch's draws, those of every device with a seed of its own, so that replicas draw different dropout."""
    torch.manual_seed(seed)
    for number, device in enumerate(devices[1:], start=1):
        torch.cuda.default_generators[device.index].manual_seed(seed + number)


class Runner:
    """Runs a MatchingModel on one device or several, in one precision; the model's parameters live on the first.

    `precision` is one of lib.core.precision's, `backend` says how the head computes scores.
    """

    def __init__(
        self,
        model: MatchingModel,
        devices: list[torch.device],
        precision: str = "float32",
        backend: Backend | None = None,
    ):
        self.model = model.to(devices[0])
        self.devices, self.device, self.precision = devices, devices[0], precision
        if backend is not None:
            model.similarity.backend = backend

    def encode_images(self, images: Fragments | Tensor) -> Fragments:
        """Encoded images as Fragments (B, R, D) on the first device, in float32 at least."""
        return self._encode(self.model.image_encoder, images)

    def encode_captions(self, captions: Tokens) -> Fragments:
        """Encoded captions as Fragments (C, W, D) on the first device, in float32 at least."""
        return self._encode(self.model.text_encoder, captions)

    def score(self, images: Fragments, captions: Fragments) -> Tensor:
        """Scores (B, C) of encoded images and captions on the first device."""
        shares = [(share, captions) for share in images.chunk(len(self.devices))]
        return torch.cat(self._on_devices(self.model.similarity, shares))  # (B, C)

    def reduce_gradients(self) -> None:
        """Bring the gradients of a batch together, where several processes had a share of it."""

    def prepare_images(self, images: Fragments) -> Prepared:
        """Encoded images as evaluation scores them."""
        return for_product(self.model.similarity.prepare_images(images), self.precision)

    def prepare_captions(self, captions: Fragments) -> Prepared:
        """Encoded captions as evaluation scores them."""
        return for_product(self.model.similarity.prepare_captions(captions), self.precision)

    def heads(self) -> list[nn.Module]:
        """The head on each device, to score with and not to train."""
        head = self.model.similarity
        return [head, *(copy.deepcopy(head).to(device) for device in self.devices[1:])]

    def _encode(self, encoder: nn.Module, items: Fragments | Tokens | Tensor) -> Fragments:
        whole = len(self.devices) == 1 or getattr(encoder, "whole_batch", False)
        shares = [(items,)] if whole else [(share,) for share in items.chunk(len(self.devices))]
        encoder = _Replica(encoder, self.precision, self.device.type)
        return at_least_float32(Fragments.cat(self._on_devices(encoder, shares)))

    def _on_devices(self, module: nn.Module, shares: list[tuple]) -> list:
        """What a module gives for each share of a batch, one on each device, brought to the first device."""
        if len(shares) == 1:
            return [module(*shares[0])]
        used = self.devices[: len(shares)]  # fewer than all when items are few
        inputs = [tuple(x.to(device) for x in share) for share, device in zip(shares, used, strict=True)]
        if isinstance(module, _Replica):
            seeds = torch.randint(1 << 62, (len(shares),)).tolist()
            inputs = [(*share, seed) for share, seed in zip(inputs, seeds, strict=True)]
        return [output.to(self.device) for output in run_replicas(module, inputs, used)]


def run_replicas(module: nn.Module, inputs: list[tuple], devices: list[torch.device]) -> list:
    """Replicas of a module, one a device, each called with its input at the same time."""
    if devices[0].type == "cpu":
        return [module(*each) for each in inputs]
    return parallel_apply(replicate(module, devices), inputs, devices=devices)


class _Replica(nn.Module):
    """An encoder with what each thread has to enter anew: the context of its precision, a generator for its draws."""

    def __init__(self, encoder: nn.Module, precision: str, device_type: str):
        super().__init__()
        self.encoder, self.precision, self.device_type = encoder, precision, device_type

    def forward(self, items: Fragments | Tokens | Tensor, seed: int | None = None) -> Fragments:
        with encoding(self.precision, torch.device(self.device_type)), own_draws(seed):
            return self.encoder(items)


BUCKET = 1 << 24  # numbers that are summed in one message


def build_runner(model: MatchingModel, devices: list[torch.device], precision: str, backend: Backend | None) -> Runner:
    """The runner of this process, alone or one of several."""
    return (Runner if world_size() == 1 else DistributedRunner)(model, devices, precision, backend)


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
