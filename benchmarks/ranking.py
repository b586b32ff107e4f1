"""Time of all ranking metrics of a similarity matrix: `python -m benchmarks.ranking [--images N] [--captions C]`.

floor: reading the matrix once (its maximum). released: the procedure of the released code, which sorts every row and
every column and looks up where the right items stand.
"""

from __future__ import annotations

import argparse

import numpy as np

from benchmarks.common import machine, median_time, print_table, write_json
from lib.console.script import script
from lib.core.errors import InputError
from lib.evaluation.comparison import compare
from lib.evaluation.metrics import caption_owners, fold_blocks, ranks, retrieval_metrics
from lib.evaluation.queries import answer
from lib.evaluation.report import Ranked

COLUMNS = ("what", "seconds", "GB/s", "x floor", "x ours")


def sorted_ranks(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ranks by a full argsort per query, one query at a time; ties fall as the sort leaves them."""
    n_images, n_captions = scores.shape
    per_image = n_captions // n_images
    i2t, t2i = np.empty(n_images, np.int64), np.empty(n_captions, np.int64)
    for image in range(n_images):
        order = np.argsort(scores[image])[::-1]
        i2t[image] = min(
            np.flatnonzero(order == caption)[0] for caption in range(per_image * image, per_image * (image + 1))
        )
    columns = np.ascontiguousarray(scores.T)
    for caption in range(n_captions):
        order = np.argsort(columns[caption])[::-1]
        t2i[caption] = np.flatnonzero(order == caption // per_image)[0]
    return i2t, t2i


@script
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ranking", description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--captions", type=int, default=25000)
    parser.add_argument("--runs", type=int, default=5, help="timed runs, of which the median counts (default 5)")
    parser.add_argument("--json", metavar="FILE", help="write the table as JSON")
    args = parser.parse_args(argv)
    if args.images < 1 or args.captions < 1 or args.captions % args.images or args.runs < 1:
        raise InputError("--captions must be a multiple of --images, and all numbers at least 1")

    scores = np.random.default_rng(0).standard_normal((args.images, args.captions), dtype=np.float32)
    for ours, released in zip(ranks(scores), sorted_ranks(scores), strict=True):
        if np.mean(ours != released) > 1e-3 or (ours < released).any():  # only ties, here very rare, may differ
            raise SystemExit("the two procedures disagree: one of them is wrong")
    seconds = {
        "floor: one pass over the matrix": median_time(scores.max, args.runs),
        "ours: all metrics, both directions": median_time(lambda: retrieval_metrics(scores), args.runs),
    }
    if args.images % 5 == 0:

        def five_folds():
            return [retrieval_metrics(block, owners) for block, owners in fold_blocks(scores, None, 5)]

        seconds["ours: five folds"] = median_time(five_folds, args.runs)
    seconds["ours: rank, margin and ten best of every query"] = median_time(lambda: answer(scores), min(args.runs, 3))
    gallery = Ranked(*ranks(scores), caption_owners(scores.shape))
    seconds["ours: 1,000 draws of two matrices"] = median_time(
        lambda: compare([[gallery], [gallery]]), min(args.runs, 3)
    )
    seconds["released: argsort per query"] = median_time(lambda: sorted_ranks(scores), min(args.runs, 3), warmup=0)

    floor, ours, *_ = seconds.values()
    rows = [
        (what, time, scores.nbytes / (5 if "folds" in what else 1) / time / 1e9, time / floor, time / ours)
        for what, time in seconds.items()
    ]
    print(machine())
    print(f"{args.images} images x {args.captions} captions, float32, {scores.nbytes / 1e6:.0f} MB")
    print_table(rows, COLUMNS)
    if args.json:
        write_json(args.json, rows, COLUMNS, images=args.images, captions=args.captions, runs=args.runs)


if __name__ == "__main__":
    main()
