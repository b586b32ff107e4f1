"""Encode a split once and score all its pairs: each image and each caption passes through the network one time.

Letters: N images, C captions, R fragments of a prepared image, K size of a prepared fragment, E of a vector.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from lib.core.errors import InputError
from lib.core.fragments import Items, Prepared, on_device
from lib.core.machine import free_memory
from lib.datasets.inputs import Inputs
from lib.datasets.loaders import caption_batches, image_batches
from lib.distributed.launch import is_main, my_slice, rank, world_size
from lib.distributed.messages import fill_rows, gather_items, gather_rows
from lib.distributed.runner import Runner

TOKENS_PER_CAPTION = 16  # a caption batch holds about as many tokens as batch_size captions of this length


@dataclasses.dataclass
class SplitScores:
    """Scores (N, C) of a split, and one vector per item where they were asked for: (N, E), (C, E)."""

    matrix: np.ndarray
    image_vectors: np.ndarray | None = None
    caption_vectors: np.ndarray | None = None


@torch.inference_mode()
def score_split(
    runner: Runner, inputs: Inputs, batch_size: int = 128, workers: int = 0, vectors: bool = False
) -> SplitScores:
    """Score all images of a split with all its captions; the model is left in the mode it was in.

    Several processes share the images, and the encoding of the captions; each gets the scores of all.
    """
    training, count = runner.model.training, len(inputs.images)
    if count < world_size():
        raise InputError(f"{count} images can't be shared by {world_size()} processes; start fewer")
    runner.model.eval()
    try:
        own = range(count)[my_slice(count)]
        images = image_batches(inputs.images, batch_size, workers, runner.device.type == "cuda", my_slice(count))
        matrix = _room_for_scores(count, len(inputs.captions))  # (N, C); after an hour of encoding would be late
        tiles, image_vectors = encode_images(runner, images, len(own), vectors)
        captions = caption_batches(inputs.captions, batch_size * TOKENS_PER_CAPTION)
        prepared, caption_vectors = encode_captions(runner, captions, len(inputs.captions), vectors)
        _score(runner, tiles, prepared, matrix[my_slice(count)])
        return SplitScores(
            fill_rows(matrix.numpy()), gather_rows(image_vectors, count) if vectors else None, caption_vectors
        )
    finally:
        runner.model.train(training)


@torch.inference_mode()
def encode_images(runner: Runner, batches: Iterable, count: int, vectors: bool):
    """The prepared images in order, in tiles, and their vectors (N, E)."""
    found = []

    def prepared() -> Iterator[Prepared]:
        for batch in batches:
            encoded = runner.encode_images(batch.to(runner.device, non_blocking=True))
            if vectors:
                found.append(runner.model.similarity.embed_images(encoded).float())
            bar.update(encoded.count)
            yield runner.prepare_images(encoded)

    with _Progress(count, "encode images", "images") as bar:
        tiles = list(_tiles(prepared(), count, runner))
    read = sum(tile.count for tile in tiles)
    if read != count:
        raise InputError(f"{read} images were read where {count} were expected; check the features and ids files")
    return tiles, torch.cat(found).cpu().numpy() if vectors else None


@torch.inference_mode()
def encode_captions(runner: Runner, batches: Iterable, count: int, vectors: bool):
    """The prepared captions of each batch with their columns of the matrix, and their vectors (C, E) in order.

    Of each row of batches every process encodes one, or, at the end, none.
    """
    prepared, found, batches = [], [], list(batches)
    with _Progress(count, "encode captions", "captions") as bar:
        for start in range(0, len(batches), world_size()):
            together, own, embedded = batches[start : start + world_size()], None, None
            if rank() < len(together):
                encoded = runner.encode_captions(together[rank()][1].to(runner.device, non_blocking=True))
                own = runner.prepare_captions(encoded)
                if vectors:
                    embedded = Items.full(runner.model.similarity.embed_captions(encoded).float()[:, None])
            columns = [each for each, _ in together]
            prepared += zip(columns, gather_items(own), strict=True)
            if vectors:
                found += [each.rows[:, 0] for each in gather_items(embedded)]
            bar.update(sum(map(len, columns)))
    if not vectors:
        return prepared, None
    ordered = np.empty((count, found[0].shape[1]), dtype=np.float32)
    ordered[np.concatenate([columns for columns, _ in prepared])] = torch.cat(found).cpu().numpy()
    return prepared, ordered


def _room_for_scores(images: int, captions: int) -> Tensor:
    """The matrix, float32 (N, C), not filled yet; InputError where this machine lacks the memory for it."""
    needed, free = 4 * images * captions, free_memory()
    with contextlib.suppress(RuntimeError):  # torch's for memory that it does not get
        if free is None or needed <= free:
            return torch.empty(images, captions, dtype=torch.float32, device="cpu")
    raise InputError(
        f"the scores of {images:,} images and {captions:,} captions take {needed / 1e9:,.1f} GB, more than the "
        f"{'memory' if free is None else f'{free / 1e9:,.1f} GB'} that is free; use a smaller split or --limit"
    )


def _score(runner: Runner, tiles: list[Prepared], captions: list[tuple[np.ndarray, Prepared]], matrix: Tensor) -> None:
    """Fill `matrix` (N, C) with the scores of all pairs, tile by tile; several GPUs share the tiles."""
    starts = np.cumsum([0, *(tile.count for tile in tiles)]).tolist()
    heads = runner.heads()
    shares = np.array_split(np.arange(len(tiles)), len(heads))

    @torch.inference_mode()
    def score_share(head, device: torch.device, share: np.ndarray) -> None:
        if not len(share):
            return
        part = whole = matrix[starts[share[0]] : starts[share[-1] + 1]]
        if device.type != "cpu":  # on a GPU the scores are gathered there and copied once
            part = torch.empty(whole.shape, device=device)
        own = [tiles[index].to(device) for index in share]
        for columns, prepared in captions:
            places, prepared, start = on_device(columns, device), prepared.to(device, non_blocking=True), 0
            for tile in own:
                scores = head.score(tile, prepared)  # (B, C)
                part[start : start + len(scores)].index_copy_(1, places, scores.float())
                start += len(scores)
                bar.update(scores.numel())
        if part is not whole:
            whole.copy_(part)

    with _Progress(matrix.numel(), "score", "pairs") as bar:
        if len(heads) == 1:
            score_share(heads[0], runner.device, shares[0])
        else:
            with ThreadPoolExecutor(len(heads)) as pool:
                list(pool.map(score_share, heads, runner.devices, shares))


def _tiles(batches: Iterable[Prepared], count: int, runner: Runner) -> Iterator[Prepared]:
    """Regroup prepared images into the tiles that scoring works in, one or more a device, without a second copy of all.

    A tile is region-major in memory, so that no product needs to copy it again.
    """
    units = real = None
    filled = 0
    for batch in batches:
        start = 0
        while start < batch.count:
            if units is None:
                regions, size, device = *batch.units.shape[1:], batch.units.device
                tile = runner.model.similarity.images_per_tile(regions, count, device)
                tile = min(tile, -(-count // len(runner.devices)))
                units, real = batch.units.new_empty(regions, tile, size), np.empty((tile, regions), dtype=bool)
            part = slice(start, start + len(real) - filled)
            taken = len(batch.real[part])
            units[:, filled : filled + taken] = batch.units[part].transpose(0, 1)  # (R, B, K)
            real[filled : filled + taken] = batch.real[part]
            start, filled = start + taken, filled + taken
            if filled == len(real):
                yield Prepared(units.transpose(0, 1), real)  # (B, R, K)
                units, filled = None, 0
    if units is not None:
        yield Prepared(units[:, :filled].transpose(0, 1), real[:filled])


class _Progress(tqdm):
    """A bar that stays silent where stderr is no terminal, and for short work."""

    def __init__(self, total: int, desc: str, unit: str):
        super().__init__(
            total=total,
            desc=desc,
            unit=unit,
            unit_scale=True,
            leave=False,
            disable=None if is_main() else True,
            delay=1,
        )
