"""A step of training as several processes share it, started by torchrun's own launcher."""

from __future__ import annotations

from pathlib import Path

import torch
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from benchmarks.gpu.bench import ALL_NEGATIVES, Bench, Sizes, gradients
from lib.core.fragments import Tokens
from lib.datasets.loaders import TrainBatch
from lib.distributed.launch import is_main, joined, my_slice, own_devices
from lib.distributed.runner import build_runner


def shared_gradients(bench: Bench, count: int = 2) -> dict[str, torch.Tensor]:
    """The gradients of a step of which each of `count` processes takes its share, on a GPU each or all on the CPU."""
    forked = bench.device.type == "cpu"  # a process that has used a GPU can't be forked
    config = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=count, run_id="gradients", max_restarts=0, monitor_interval=0.1,
        rdzv_backend="c10d", rdzv_endpoint="localhost:0", start_method="fork" if forked else "spawn",
    )  # fmt: skip
    elastic_launch(config, _step)(bench.device.type, bench.sizes, bench.folder)
    return torch.load(_file(bench.folder), weights_only=True)


def _step(device: str, sizes: Sizes, folder: Path) -> None:
    """What each process does; the first writes the gradients."""
    torch.set_num_threads(1)
    with joined(device):
        bench = Bench(own_devices(device)[0], sizes, folder)
        trainer = bench.trainer(bench.model(), grad_clip=0.0)
        trainer.runner = build_runner(trainer.runner.model, [bench.device], "float32", None)
        trainer.step(part_of(bench.batch(), my_slice(sizes.batch)), ALL_NEGATIVES)
        if is_main():
            torch.save(gradients(trainer.runner.model), _file(folder))


def part_of(batch: TrainBatch, part: slice) -> TrainBatch:
    """Some of the pairs of a batch, captions padded no more than they need."""
    lengths = batch.captions.lengths[part]
    captions = Tokens(batch.captions.ids[part][:, : lengths.max()], lengths)
    return TrainBatch(batch.images.select(part), captions, batch.indices[part])


def _file(folder: Path) -> Path:
    return folder / "shared_gradients.pth"
