"""Digests of what a checkpoint of ours holds: every tensor and, together, every plain value."""

from __future__ import annotations

import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

PLAIN = "the values beside the tensors"


def sealed(content: dict[str, Any]) -> dict[str, Any]:
    """What a file holds: the content and its digests."""
    content = {name: value for name, value in content.items() if name != "digests"}
    return content | {"digests": digests(content)}


def digests(content: Any) -> dict[str, int]:
    """CRC-32 of the values of every tensor in a nest of dicts and lists, by its place ("model.fc.weight"), and of
    everything else in it, types and shapes included, under PLAIN."""
    tensors: dict[str, Tensor] = {}

    def described(value: Any, place: str) -> Any:
        if isinstance(value, Tensor):
            tensors[place] = value
            return str(value.dtype), tuple(value.shape)
        if isinstance(value, dict):
            items = sorted(value.items(), key=lambda pair: ascii(pair[0]))  # in whatever order they were written
            return [(key, described(item, f"{place}.{key}" if place else str(key))) for key, item in items]
        if isinstance(value, list | tuple):
            return type(value).__name__, [described(item, f"{place}.{i}") for i, item in enumerate(value)]
        return value

    plain = zlib.crc32(ascii(described(content, "")).encode())
    with ThreadPoolExecutor() as pool:  # zlib runs beside Python
        return {PLAIN: plain} | dict(zip(tensors, pool.map(_digest, tensors.values()), strict=True))


def _digest(tensor: Tensor) -> int:
    return zlib.crc32(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
