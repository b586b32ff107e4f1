"""How close ESL scoring comes to its dense product: `python -m benchmarks.scoring [--device cuda] [--json FILE]`.

Three times, interleaved in every round: the floor (the one product that is needed, at the rate of the fastest of
several ways to compute it in torch), our `score` on prepared items, and the released procedure's loop over captions.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

from benchmarks.common import machine, print_table, write_json
from benchmarks.released_loop import score_by_caption
from lib.core.config import KERNELS
from lib.core.fragments import Fragments
from lib.core.precision import PRECISIONS, set_precision
from lib.similarity import HEADS
from lib.similarity.alignment import Backend

COLUMNS = ("case", "floor ms", "GFLOP/s", "ours ms", "ours / floor", "loop ms", "loop / ours")


def items(images: int, captions: int, regions: int, words: tuple[int, int], size: int, device) -> tuple:
    """Random fragments: images full, captions of uniformly drawn lengths."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(words[0], words[1] + 1, (captions,), generator=generator)
    mask = torch.arange(words[1]) < lengths[:, None]
    x = torch.randn(images, regions, size, generator=generator)
    y = torch.randn(captions, words[1], size, generator=generator)
    return Fragments.full(x).to(device), Fragments(y, mask).to(device)


def timed(function, device) -> float:
    start = time.perf_counter()
    function()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def dense_products(words: torch.Tensor, columns: torch.Tensor, rows: int) -> dict:
    """Ways to multiply all words with all columns, some rows at a time so that the result stays in reused memory."""
    rows = min(rows, len(words))
    starts = range(0, len(words), rows)
    out = words.new_empty(rows, len(columns))
    flipped = words.new_empty(len(columns), rows)

    def plain():
        for start in starts:
            part = words[start : start + rows]
            torch.mm(part, columns.T, out=out[: len(part)])

    def transposed():
        for start in starts:
            part = words[start : start + rows]
            torch.mm(columns, part.T, out=flipped if len(part) == rows else None)

    ways = {"mm": plain, "mm transposed": transposed}
    if words.device.type == "cpu" and torch.backends.mkldnn.is_available():

        def mkldnn():
            for start in starts:
                torch.ops.mkldnn._linear_pointwise(words[start : start + rows], columns, None, "none", [], "")

        ways["oneDNN"] = mkldnn
    return ways


def measure(head, images: Fragments, captions: Fragments, rounds: int, loop_rounds: int, precision: str) -> tuple:
    """Medians over `rounds` of one case."""
    device = images.features.device
    with torch.inference_mode():
        prepared = head.prepare_images(images), head.prepare_captions(captions)
        if precision == "bf16":
            prepared = tuple(p.to(torch.bfloat16) for p in prepared)
        words = prepared[1].packed()  # (n, E)
        columns = prepared[0].units.flatten(0, 1)  # (B * R, E)
        products = [p for rows in (1024, 2048) for p in dense_products(words, columns, rows).values()]
        for product in products:  # warm up
            product()
        head.score(*prepared)
        floors, ours, loops = [], [], []
        for round_ in range(rounds):
            floors.append(min(timed(product, device) for product in products))
            ours.append(timed(lambda: head.score(*prepared), device))
            if round_ < loop_rounds:
                loops.append(timed(lambda: score_by_caption(head, images, captions), device))
        expected = score_by_caption(head, images, captions.select(slice(0, 8)))
        found = head.score(*prepared)[:, :8].float()
        if precision == "float32" and (found - expected).abs().max() > 1e-4 * expected.abs().max():
            raise SystemExit("the scores differ from the loop's: the times mean nothing")
    flops = 2.0 * len(words) * len(columns) * words.shape[1]
    floor, own = statistics.median(floors), statistics.median(ours)
    loop = statistics.median(loops) if loops else None
    ratio = statistics.median(o / f for o, f in zip(ours, floors, strict=True))
    return floor * 1e3, flops / floor / 1e9, own * 1e3, ratio, loop and loop * 1e3, loop and loop / own


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scoring",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--captions", type=int, default=1000)
    parser.add_argument("--regions", type=int, default=36)
    parser.add_argument("--words", type=int, nargs=2, default=(8, 20), metavar=("LEAST", "MOST"))
    parser.add_argument("--embed_size", type=int, default=512)
    parser.add_argument("--heads", nargs="+", choices=("esl_a", "esl_h"), default=("esl_a", "esl_h"))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--loop_rounds", type=int, default=1, help="rounds that include the slow loop")
    parser.add_argument(
        "--growth", action="store_true", help="also three sizes each of images, captions, regions, length"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", choices=PRECISIONS, default="float32")
    parser.add_argument("--kernels", choices=KERNELS, default="auto")
    parser.add_argument("--json", metavar="FILE")
    args = parser.parse_args(argv)
    set_precision(args.precision)
    device = torch.device(args.device)
    base = (args.images, args.captions, args.regions, tuple(args.words))
    cases = [(name, *base, args.loop_rounds) for name in args.heads]
    if args.growth:
        images, captions, regions, (least, most) = base
        for factor in (0.5, 1, 2):
            cases.append(("esl_a", round(images * factor), captions, regions, (least, most), 0))
            cases.append(("esl_a", images, round(captions * factor), regions, (least, most), 0))
            cases.append(("esl_a", images, captions, round(regions * factor), (least, most), 0))
            cases.append(("esl_a", images, captions, regions, (round(least * factor), round(most * factor)), 0))
    rows = []
    for name, images, captions, regions, words, loop_rounds in cases:
        torch.manual_seed(0)
        head = HEADS[name].make(args.embed_size).to(device).eval()
        head.backend = Backend(args.kernels)
        pair = items(images, captions, regions, words, args.embed_size, device)
        label = f"{name} {images} x {regions} regions, {captions} x {words[0]}-{words[1]} words"
        rows.append((label, *measure(head, *pair, args.rounds, loop_rounds, args.precision)))
    print(machine(), args.precision)
    print_table(rows, COLUMNS)
    if args.json:
        write_json(args.json, rows, COLUMNS, precision=args.precision, embed_size=args.embed_size)


if __name__ == "__main__":
    main()
