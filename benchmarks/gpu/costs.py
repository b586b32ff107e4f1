"""What a training step costs on paper: `python -m benchmarks.gpu.costs`, on any machine, since nothing is computed.

A step of BERT-base runs on fake tensors, which have shapes and no values. Floating-point operations are counted by
torch's FlopCounterMode; bytes are what every operation reads and writes, one by one, so a fused kernel moves fewer.
The time is what an H100 SXM needs at the rates that NVIDIA publishes, whichever of the two is longer.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.common import print_table
from benchmarks.gpu.bench import FULL, Bench
from benchmarks.gpu.tables import Table
from lib.core.precision import at_least_float32, encoding
from lib.datasets.loaders import TrainBatch
from lib.similarity.alignment import tiled
from lib.training.losses import HingeTriplet

CPU = torch.device("cpu")
RATES = {"tf32": 494.7e12, "bf16": 989.4e12}  # FLOP/s of dense products; published
BANDWIDTH = 3.35e12  # bytes/s; published
COLUMNS = ("part", "GFLOP", "GB in float32", "ms in tf32", "GB in bf16", "ms in bf16")
ADAM_BYTES, CLIP_BYTES = 28, 12  # a parameter: weight, gradient, both moments read, three written; gradient read twice


def step_costs(bench: Bench) -> Table:
    """Operations, bytes and time of each part of a step at the bench's batch."""
    costs = {precision: _parts(bench, precision) for precision in RATES}
    rows = []
    for part in costs["tf32"]:
        row = [part, costs["tf32"][part][0] / 1e9]
        for precision, rate in RATES.items():
            flops, moved = costs[precision][part]
            row += [moved / 1e9, 1e3 * max(flops / rate, moved / BANDWIDTH)]
        rows.append(row)
    rows.append(["whole step", *(sum(row[column] for row in rows) for column in range(1, len(COLUMNS)))])
    return Table(f"a step of {bench.sizes.batch} on paper", COLUMNS, rows)


def _parts(bench: Bench, precision: str) -> dict[str, tuple[float, float]]:
    """(FLOPs, bytes) of each part."""
    found: dict[str, tuple[float, float]] = {}
    with FakeTensorMode(), sdpa_kernel(SDPBackend.MATH):
        model, batch = bench.model().train(), bench.batch()
        with _counted("image encoder", found), encoding(precision, CPU):
            images = at_least_float32(model.image_encoder(batch.images))
        with _counted("text encoder", found), encoding(precision, CPU):
            captions = at_least_float32(model.text_encoder(batch.captions))
        with _counted("head and loss", found):
            loss = HingeTriplet()(model.similarity(images, captions))
        with _counted("backward of the head", found):
            inward = torch.autograd.grad(loss, (images.features, captions.features), retain_graph=True)
        with _counted("backward of the encoders", found):
            torch.autograd.backward((images.features, captions.features), inward)
        flops, moved = found["backward of the head"]
        found["backward of the head"] = flops, moved + _bytes_of_tiles(batch, model.similarity.sizes)
        weights = sum(parameter.numel() for parameter in model.parameters())
    found["clipping and optimizer"] = 0.0, float(weights * (ADAM_BYTES + CLIP_BYTES))
    return found


def _bytes_of_tiles(batch: TrainBatch, levels: list[int]) -> float:
    """What torch's operations on S move on a GPU inside the backward operator of the scores; forward is one kernel."""
    lengths, images, size = sorted(batch.captions.lengths.tolist()), batch.images.count, sum(levels)
    with torch.device("cuda", 0):
        given = {"words": torch.empty(sum(lengths), size), "regions": torch.empty(images, 36, size),
                 "scale": torch.empty(()), "region_mask": torch.empty(36, images, dtype=torch.bool),
                 "lengths": lengths, "memory": None, "kernels": False}  # fmt: skip
        product, grad = torch.empty(sum(lengths), 36 * images), torch.empty(len(lengths), images)
        with _Bytes() as moved:
            tiled.backward(product=product, grad=grad, **given)
    return float(moved.total)


@contextlib.contextmanager
def _counted(part: str, found: dict) -> Iterator[None]:
    products = FlopCounterMode(display=False, custom_mapping={
        torch.ops.esl.alignment: _alignment_flops, torch.ops.esl.alignment_backward: _backward_flops,
    })  # fmt: skip
    with products, _Bytes() as moved:
        yield
    found[part] = float(products.get_total_flops()), float(moved.total)


def _alignment_flops(words, places, regions, *_, out_shape=None, **__) -> int:
    rows = words[0] if places is None else places[0]
    return 2 * rows * words[1] * regions[0] * regions[1]


def _backward_flops(words, regions, *_, out_shape=None, **__) -> int:
    return 4 * words[0] * words[1] * regions[0] * regions[1]


class _Bytes(TorchDispatchMode):
    """Counts the bytes of every tensor that goes into an operation or comes out, views aside."""

    total = 0

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        result = operator(*args, **(kwargs or {}))
        if not operator.is_view and "empty" not in operator.name() and "detach" not in operator.name():
            tensors = [x for x in tree_leaves((args, kwargs, result)) if isinstance(x, torch.Tensor)]
            self.total += sum(math.prod(x.shape) * x.element_size() for x in tensors)
        return result


if __name__ == "__main__":
    table = step_costs(Bench(CPU, FULL, Path()))
    print(table.title)
    print_table(table.rows, table.columns)
