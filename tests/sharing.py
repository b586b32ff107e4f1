"""Steps of training and a validation as one of several processes sees them, for the comparison with one process.

python -m tests.sharing OUT compares 2 and 3 processes with one, in every kind of model that COMPARED lists.
"""

from __future__ import annotations

import argparse
import os
import socket
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

from lib.core.fragments import Fragments, Tokens
from lib.datasets.loaders import TrainBatch
from lib.distributed import messages as distributed
from lib.distributed.launch import joined, my_slice, rank, world_size
from lib.distributed.runner import build_runner
from lib.inference.scoring import score_split
from lib.model import build_model
from lib.training.engine import Trainer
from lib.training.losses import HingeTriplet
from lib.training.optim import build_optimizer
from lib.training.schedule import Phase, Schedule
from tests.helpers import small_batch, small_config

PHASES = [Phase(1.0, hardest, 1.0, 0) for hardest in (False, True, True, False, True)]
TRAP = "gradients of others dropped"  # esl_a, but a caption's gradient is what its own process found
COMPARED = {  # similarity, grid, accumulate, optimizer
    "esl_a": ("esl_a", False, 1, "adam"),
    "esl_h in chunks": ("esl_h", False, 3, "sgd"),
    "vse_infty": ("vse_infty", False, 1, "sgd"),
    "grid": ("vse_infty", True, 1, "adam"),
    "grid in chunks": ("esl_a", True, 2, "sgd"),
}


def results(kind: str, pairs: int) -> dict[str, torch.Tensor]:
    """Scores, loss, clipped norm and gradients of a step, statistics and weights after five, in float64; then recalls'
    matrix. Of several processes each takes its share of the batches."""
    similarity, grid, accumulate, optim = COMPARED["esl_a" if kind == TRAP else kind]
    torch.manual_seed(7)
    model = build_model(small_config(similarity, grid, dropout=0.0)).double().train()
    batches = [small_batch(grid, pairs) for _ in PHASES]
    if grid:  # no cell is dropped at random
        model.image_encoder.kept_cells = lambda images, cells: np.ones((images, cells), dtype=bool)
    loss = HingeTriplet()
    optimizer = build_optimizer(model, loss, optim, 1e-3)
    runner = build_runner(model, [torch.device("cpu")], "float32", None)
    trainer = Trainer(runner, loss, optimizer, Schedule(), accumulate=accumulate)
    found, score = {}, runner.score

    def scored(*parts):
        scores = score(*parts)
        found.setdefault("scores", scores.detach().clone())
        return scores

    runner.score = scored
    for phase, (images, captions) in zip(PHASES, batches, strict=True):
        images, captions = part_of(images, captions, my_slice(pairs))
        images = images.to(torch.float64)
        value, norm = trainer.step(TrainBatch(images, captions, torch.arange(captions.count)), phase)
        if "loss" not in found:
            found |= {"loss": value, "norm": norm}
            found |= {f"gradient {n}": p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    found |= {f"after 5 steps {name}": value.clone() for name, value in model.state_dict().items()}
    if not grid:
        split = validation(*batches[0])
        scores = score_split(runner, split, batch_size=5, vectors=True)
        found |= {name: torch.from_numpy(getattr(scores, name)) for name in vars(scores)}
    return found


def part_of(images, captions: Tokens, part: slice):
    """Some of the pairs of a batch, padded no more than they need."""
    lengths = captions.lengths[part]
    images = images.select(part) if isinstance(images, Fragments) else images[part]
    return images, Tokens(captions.ids[part][:, : lengths.max()], lengths)


def validation(images: Fragments, captions: Tokens) -> SimpleNamespace:
    """The pairs of a batch as a split."""

    class Images:
        def __len__(self):
            return images.count

        def __call__(self, index, rng=None):
            return Fragments(images.features[index].double(), images.real[index])

    class Captions:
        lengths = captions.lengths

        def __len__(self):
            return captions.count

        def ids(self, index):
            return captions.ids[index][: captions.lengths[index]].numpy()

    return SimpleNamespace(images=Images(), captions=Captions())


def largest_difference(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> tuple[float, str]:
    """The largest relative difference of a tensor, and which it is; entries far below the largest of their kind count
    as that far below it."""
    assert found.keys() == expected.keys()
    kinds: dict[str, float] = {}
    for name, value in expected.items():
        kind = name.partition(" ")[0]
        kinds[kind] = max(kinds.get(kind, 0.0), float(value.double().abs().max()))
    return max(
        (float((found[name] - value).double().abs().max())
         / max(float(value.double().abs().max()), 1e-3 * kinds[name.partition(" ")[0]]), name)
        for name, value in expected.items()
    )  # fmt: skip


def start(count: int, folder: Path, *arguments) -> None:
    """Run this module in `count` processes, as torchrun does, each of which writes what it found to a file."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
                   "WORLD_SIZE": str(count)}  # fmt: skip
    children = []
    for number in range(count):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                os.environ.update(environment | {"RANK": str(number), "LOCAL_RANK": str(number)})
                torch.set_num_threads(1)
                with joined("cpu"):
                    write(folder, *arguments)
                code = 0
            finally:
                sys.stderr.flush()
                os._exit(code)
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    if any(codes):
        raise SystemExit(f"exit status {codes}")


def write(folder: Path, kinds: list[str], pairs: int) -> None:
    for kind in kinds:
        if kind == TRAP:
            distributed._AllRows.backward = staticmethod(lambda ctx, g: (g.split(ctx.counts)[rank()], None, None))
        torch.save(results(kind, pairs), folder / f"{kind} {rank()} of {world_size()}.pth")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--processes", type=int, nargs="+", default=[2, 3])
    parser.add_argument("--kinds", nargs="+", default=list(COMPARED))
    parser.add_argument("--pairs", type=int, default=13)
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    for count in (1, *args.processes):
        start(count, args.out, [*args.kinds, TRAP], args.pairs)
    worst = 0.0
    for kind in args.kinds:
        expected = torch.load(args.out / f"{kind} 0 of 1.pth")
        for count in args.processes:
            for number in range(count):
                found = torch.load(args.out / f"{kind} {number} of {count}.pth")
                difference, name = largest_difference(found, expected)
                worst = max(worst, difference)
                print(f"{kind}, process {number} of {count}: {difference:.1e} ({name})")
    if not worst < 1e-6:
        raise SystemExit(f"differs by {worst:.1e}")
    expected, found = (torch.load(args.out / f"{TRAP} 0 of {count}.pth") for count in (1, args.processes[0]))
    only = [name for name in expected if name.startswith("gradient text_encoder")]
    difference, name = largest_difference(*({name: each[name] for name in only} for each in (found, expected)))
    print(f"{TRAP}: {difference:.1e} ({name})")
    if not difference > 1e-3:
        raise SystemExit("dropped gradients were not noticed")


if __name__ == "__main__":
    main()
