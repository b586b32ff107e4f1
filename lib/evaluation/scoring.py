"""Encode a split once and score all its pairs: each image and each caption passes through the network one time.

Letters: N images, C captions, R regions, W word pieces, E size of a prepared fragment.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from lib.alignment import cpu_kernel, tiles
from lib.errors import InputError
from lib.fragments import Fragments
from lib.parallel import Runner

PRECISIONS = ("float32", "tf32", "bf16")


@dataclasses.dataclass
class Encoded:
    """Prepared items in chunks; `where` says which rows or columns of the matrix a chunk's items are."""

    chunks: list[Fragments]
    where: list[Tensor]
    vectors: np.ndarray | None  # (N, E) one per item, where asked for

    @property
    def count(self) -> int:
        return sum(len(items) for items in self.where)


@torch.inference_mode()
def encode_images(runner: Runner, batches: Iterable, count: int, vectors=False, precision="float32") -> Encoded:
    """Encode and prepare images in order; `batches` yields Fragments or image tensors. A tqdm bar counts them."""
    head = runner.model.similarity
    pooled = []

    def prepared():
        for batch in batches:
            with _autocast(runner.device, precision):
                encoded = _float(runner.encode_images(batch.to(runner.device, non_blocking=True)))
            if vectors:
                pooled.append(head.embed_images(encoded).float().cpu())
            bar.update(len(encoded.mask))
            yield _product_dtype(head.prepare_images(encoded), precision)

    with _Progress(count, "encode images", "images") as bar:
        chunks = list(_image_tiles(prepared(), count, len(runner.devices)))
    stops = np.cumsum([0, *(len(chunk.mask) for chunk in chunks)])
    if stops[-1] != count:
        raise InputError(f"{stops[-1]} images were read where {count} were expected; check the features and ids files")
    where = [torch.arange(start, stop) for start, stop in zip(stops, stops[1:], strict=False)]
    return Encoded(chunks, where, torch.cat(pooled).numpy() if vectors else None)


@torch.inference_mode()
def encode_captions(runner: Runner, batches: Iterable, count: int, vectors=False, precision="float32") -> Encoded:
    """Encode and prepare captions; `batches` yields (caption indices, token ids (C, W)) sorted by length."""
    head = runner.model.similarity
    chunks, columns, pooled = [], [], []
    with _Progress(count, "encode captions", "captions") as bar:
        for indices, token_ids in batches:
            with _autocast(runner.device, precision):
                encoded = _float(runner.encode_captions(token_ids.to(runner.device, non_blocking=True)))
            chunks.append(_product_dtype(head.prepare_captions(encoded), precision))
            if vectors:
                pooled.append(head.embed_captions(encoded).float().cpu())
            columns.append(torch.as_tensor(indices))
            bar.update(len(indices))
    ordered = None
    if vectors:
        ordered = torch.empty(count, pooled[0].shape[1])
        ordered[torch.cat(columns)] = torch.cat(pooled)
        ordered = ordered.numpy()
    return Encoded(chunks, columns, ordered)


@torch.inference_mode()
def similarity_matrix(runner: Runner, images: Encoded, captions: Encoded, memory_mb: int | None = None) -> np.ndarray:
    """Scores float32 (N, C) of all pairs, tile by tile; several GPUs share the images."""
    matrix = torch.empty(images.count, captions.count)
    heads = [runner.model.similarity]
    heads += [copy.deepcopy(heads[0]).to(device) for device in runner.devices[1:]]
    for head in heads:
        head.score_memory = memory_mb * (1 << 20) if memory_mb else None
    shares = np.array_split(np.arange(len(images.chunks)), len(heads))  # of the image tiles, one for each device

    @torch.inference_mode()
    def score_share(head, device: torch.device, share: np.ndarray) -> None:
        if not len(share):
            return
        rows = slice(int(images.where[share[0]][0]), int(images.where[share[-1]][-1]) + 1)
        part = matrix[rows]
        if device.type != "cpu":  # on a GPU the scores are gathered there and copied once
            part = torch.empty(part.shape, device=device)
        own = [images.chunks[index].to(device) for index in share]
        for columns, chunk in zip(captions.where, captions.chunks, strict=True):
            chunk, columns, start = chunk.to(device), columns.to(device), 0
            for tile in own:
                scores = head.score(tile, chunk)  # (B, C)
                part[start : start + len(scores), columns] = scores.float()
                start += len(scores)
                bar.update(scores.numel())
        if device.type != "cpu":
            matrix[rows] = part.cpu()

    with _Progress(images.count * captions.count, "score", "pairs") as bar:
        if len(heads) == 1:
            score_share(heads[0], runner.device, shares[0])
        else:
            with ThreadPoolExecutor(len(heads)) as pool:
                list(pool.map(score_share, heads, runner.devices, shares))
    return matrix.numpy()


def _image_tiles(chunks: Iterable[Fragments], count: int, devices: int) -> Iterator[Fragments]:
    """Regroup images into the tiles that scoring works in, at least one for each device, without a second copy of all.

    A tile is region-major in memory, so that no product needs to copy it again.
    """
    features = mask = None
    filled = 0
    for chunk in chunks:
        start = 0
        while start < len(chunk.mask):
            if features is None:
                regions, device = chunk.features.shape[1], chunk.features.device
                packed = regions > 1 and cpu_kernel.available(device)  # one vector per image is no work for the kernel
                size = tiles.budget(device, packed=packed)
                size = min(tiles.image_tile(regions, count, size), -(-count // devices))
                features = chunk.features.new_empty(regions, size, chunk.features.shape[2])  # (R, B, E)
                mask = chunk.mask.new_empty(size, regions)
            part = slice(start, start + len(mask) - filled)
            taken = len(chunk.mask[part])
            features[:, filled : filled + taken] = chunk.features[part].transpose(0, 1)
            mask[filled : filled + taken] = chunk.mask[part]
            start, filled = start + taken, filled + taken
            if filled == len(mask):
                yield Fragments(features.transpose(0, 1), mask)  # (B, R, E)
                features, filled = None, 0
    if features is not None:
        yield Fragments(features[:, :filled].transpose(0, 1), mask[:filled])


def _float(fragments: Fragments) -> Fragments:
    return Fragments(fragments.features.float(), fragments.mask)


def _product_dtype(fragments: Fragments, precision: str) -> Fragments:
    return fragments.to(torch.bfloat16) if precision == "bf16" else fragments


def _autocast(device: torch.device, precision: str):
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()


def set_precision(precision: str) -> None:
    """Let float32 products of a GPU run in tf32, or not (`float32`). bf16 also encodes and multiplies in bfloat16."""
    if precision not in PRECISIONS:
        raise InputError(f"--precision is '{precision}', expected one of {', '.join(PRECISIONS)}")
    torch.backends.cuda.matmul.allow_tf32 = precision != "float32"
    torch.backends.cudnn.allow_tf32 = precision != "float32"


class _Progress(tqdm):
    """A bar that stays silent where stderr is no terminal, and for short work."""

    def __init__(self, total: int, desc: str, unit: str):
        super().__init__(total=total, desc=desc, unit=unit, unit_scale=True, leave=False, disable=None, delay=1)
