"""Time and memory of training: `python -m benchmarks.training_step [--device cuda] [--bert_base] [--json FILE]`.

The head's step (scores, loss, backward) at batch 128 beside the released loop and the dense product's floor (one
product forward, two backward); and the shares of a whole step: encoders, head with loss, backward, optimizer.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import time
from functools import partial

import torch
from transformers import BertConfig

from benchmarks.common import machine, print_table, write_json
from benchmarks.released_loop import score_by_caption
from benchmarks.scoring import items, timed
from lib.core.config import KERNELS, ModelConfig
from lib.core.fragments import Fragments, Tokens
from lib.core.precision import PRECISIONS, at_least_float32, set_precision
from lib.encoders.backbones import SOURCES
from lib.encoders.bert import bert_values
from lib.model import build_model, complete
from lib.similarity import HEADS
from lib.similarity.alignment import Backend
from lib.similarity.alignment.tiles import product
from lib.training.losses import HingeTriplet
from lib.training.optim import build_optimizer

COLUMNS = ("what", "ms", "share or ratio")


def head_step(similarity: str, args, device) -> list[tuple]:
    """The head alone: ours and the loop."""
    head = HEADS[similarity].make(args.embed_size).to(device)
    head.backend, loss = Backend(args.kernels), HingeTriplet()
    images, captions = items(args.batch_size, args.batch_size, args.regions, tuple(args.words), args.embed_size, device)
    leaves = [Fragments(side.features.requires_grad_(), side.real) for side in (images, captions)]

    def step(score):
        loss(score(*leaves)).backward()

    def ours(x, y):
        return head.score(head.prepare_images(x), head.prepare_captions(y))

    with torch.no_grad():
        units, words = head.prepare_images(images).units.flatten(0, 1), head.prepare_captions(captions)
    words = words.packed()  # (n, E)
    S = words @ units.T  # (n, B * R)

    def floor(multiply):
        multiply(words, units)
        multiply(S, units.T)
        multiply(S.T, words.T)

    ways = product, lambda x, y: torch.mm(x, y.T)
    step(ours)
    for multiply in ways:
        floor(multiply)
    times = {"floor": [], "ours": [], "loop": []}
    for round_ in range(args.rounds):
        times["floor"].append(min(timed(partial(floor, multiply), device) for multiply in ways))
        times["ours"].append(timed(lambda: step(ours), device))
        if round_ < args.loop_rounds:
            times["loop"].append(timed(lambda: step(lambda x, y: score_by_caption(head, x, y)), device))
    middle = {name: statistics.median(values) if values else None for name, values in times.items()}
    rows = [(f"{similarity} head step: dense products alone", middle["floor"] * 1e3, None)]
    rows.append((f"{similarity} head step: ours (x floor)", middle["ours"] * 1e3, middle["ours"] / middle["floor"]))
    if middle["loop"]:
        rows.append((f"{similarity} head step: loop (x ours)", middle["loop"] * 1e3, middle["loop"] / middle["ours"]))
    return rows


def whole_step(args, device, released: bool = False) -> list[tuple]:
    """Shares of a training step with a BERT of the given size.

    `released`: as the released procedure does it, with all captions padded to the longest and the loop as the head.
    """
    sizes = {} if args.bert_base else {"num_hidden_layers": 6, "hidden_size": 384, "num_attention_heads": 12,
                                       "intermediate_size": 1536}  # fmt: skip
    images = {"backbone_source": args.backbone} if args.backbone else {}
    model = build_model(complete(ModelConfig(
        image_encoder="grid" if args.backbone else "regions", embed_size=args.embed_size, image_options=images,
        text_options=bert_values(BertConfig(**sizes)),
    ))).to(device).train()  # fmt: skip
    model.similarity.backend, criterion = Backend(args.kernels), HingeTriplet()

    def encode_captions(tokens):
        if released:
            return Fragments(model.text_encoder._encode(tokens), tokens.real)
        return model.text_encoder(tokens)

    def score(x, y):
        return score_by_caption(model.similarity, x, y) if released else model.similarity(x, y)

    optimizer = build_optimizer(model, criterion, "adam", 5e-4)
    if args.backbone:
        x = torch.rand(args.batch_size, 3, args.image_size, args.image_size, device=device)
    else:
        x = Fragments.full(torch.rand(args.batch_size, args.regions, 2048, device=device))
    lengths = torch.randint(args.words[0], args.words[1] + 1, (args.batch_size,))
    tokens = Tokens(torch.randint(1000, 30000, (args.batch_size, args.words[1])), lengths)
    tokens = Tokens(tokens.ids * tokens.mask, lengths).to(device)

    def now():
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    names = ("image encoder", "text encoder", "head and loss", "backward", "optimizer")
    rounds = []
    for _ in range(args.rounds + 1):
        marks = [now()]
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.type, torch.bfloat16, enabled=args.precision == "bf16"):
            regions = model.image_encoder(x)
            marks.append(now())
            words = encode_captions(tokens)
        regions, words = at_least_float32(regions), at_least_float32(words)
        marks.append(now())
        loss = criterion(score(regions, words))
        marks.append(now())
        loss.backward()
        marks.append(now())
        torch.nn.utils.clip_grad_norm_(model.parameters(), 2.0)
        optimizer.step()
        marks.append(now())
        rounds.append([stop - start for start, stop in zip(marks, marks[1:], strict=False)])
    middle = [statistics.median(column) for column in zip(*rounds[1:], strict=True)]
    total = sum(middle)
    label = "BERT-base" if args.bert_base else "a 6-layer BERT of size 384"
    images = f"{args.backbone} at {args.image_size} x {args.image_size}" if args.backbone else "regions"
    kind = "released step" if released else "whole step"
    rows = [(f"{kind} of {args.batch_size}, {images}, {label} (images / s)", total * 1e3, args.batch_size / total)]
    return rows + [(f"  {name}", part * 1e3, part / total) for name, part in zip(names, middle, strict=True)]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.training_step",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--regions", type=int, default=36)
    parser.add_argument("--words", type=int, nargs=2, default=(8, 20), metavar=("LEAST", "MOST"))
    parser.add_argument("--embed_size", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--loop_rounds", type=int, default=1, help="rounds that include the slow loop")
    parser.add_argument("--bert_base", action="store_true", help="a whole step with BERT-base and not a smaller one")
    parser.add_argument("--backbone", choices=SOURCES, help="a whole step on raw images, all stages training")
    parser.add_argument("--image_size", type=int, default=512, help="side of the raw images in pixels")
    parser.add_argument("--no_head", action="store_true", help="only the whole step")
    parser.add_argument("--released", action="store_true", help="a whole step by the released procedure as well")
    parser.add_argument("--precision", choices=PRECISIONS, default="float32")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--kernels", choices=KERNELS, default="auto")
    parser.add_argument("--json", metavar="FILE")
    args = parser.parse_args(argv)
    device = torch.device(args.device)
    torch.manual_seed(0)
    set_precision(args.precision)
    rows = []
    heads = () if args.no_head else ("esl_a", "esl_h")
    for similarity in heads:
        loops, args.loop_rounds = args.loop_rounds, 0
        rows += head_step(similarity, args, device)
        args.loop_rounds = loops
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20)
    if heads:
        rows.append(("peak memory of the process so far, GiB", memory, None))
    if args.loop_rounds:
        for similarity in heads:
            rows += head_step(similarity, args, device)[-1:]
    if args.released:
        rows += whole_step(args, device, released=True)
    rows += whole_step(args, device)
    print(machine())
    print_table(rows, COLUMNS)
    if args.json:
        write_json(args.json, rows, COLUMNS, batch_size=args.batch_size, regions=args.regions, words=list(args.words))


if __name__ == "__main__":
    main()
