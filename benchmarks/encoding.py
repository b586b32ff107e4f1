"""Time of encoding captions and regions: `python -m benchmarks.encoding [--bert_base] [--precision bf16]`.

Captions sorted by length in batches of about equal token count (ours), beside batches in file order padded to their
longest caption; the floor counts the products of BERT's layers for the real tokens at the rate of a large product.
"""

from __future__ import annotations

import argparse
import statistics

import numpy as np
import torch
from transformers import BertConfig

from benchmarks.common import machine, print_table, write_json
from benchmarks.scoring import timed
from lib.core.config import ModelConfig
from lib.core.fragments import Fragments, Tokens
from lib.core.precision import PRECISIONS, set_precision
from lib.distributed.runner import Runner
from lib.encoders.bert import bert_values
from lib.inference import scoring
from lib.model import build_model, complete

COLUMNS = ("what", "seconds", "items / s", "x floor")


def batches(lengths: np.ndarray, tokens: int, by_length: bool, batch_size: int) -> list[tuple]:
    """Random captions of the given lengths, cut into batches either way."""
    order = np.argsort(-lengths, kind="stable") if by_length else np.arange(len(lengths))
    result, start = [], 0
    generator = torch.Generator().manual_seed(0)
    while start < len(order):
        count = max(1, tokens // int(lengths[order[start]])) if by_length else batch_size
        part = order[start : start + count]
        own = torch.from_numpy(lengths[part])
        mask = torch.arange(int(own.max())) < own[:, None]
        ids = torch.randint(1000, 30000, mask.shape, generator=generator) * mask
        result.append((part, Tokens(ids, own)))
        start += count
    return result


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.encoding",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--captions", type=int, default=2000)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--embed_size", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--bert_base", action="store_true", help="BERT-base and not a smaller one")
    parser.add_argument("--precision", choices=PRECISIONS, default="float32")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", metavar="FILE")
    args = parser.parse_args(argv)
    set_precision(args.precision)
    torch.manual_seed(0)
    sizes = {"num_hidden_layers": 6, "hidden_size": 384, "num_attention_heads": 12, "intermediate_size": 1536}
    text_options = bert_values(BertConfig(**({} if args.bert_base else sizes)))
    model = build_model(complete(ModelConfig(embed_size=args.embed_size, text_options=text_options))).eval()
    runner = Runner(model, [torch.device(args.device)], args.precision)
    # lengths like those of COCO captions in word pieces: 13 on average, few beyond 25
    lengths = np.clip(np.random.default_rng(0).gamma(18, 0.72, args.captions).round().astype(int), 7, 60)
    sorted_batches = batches(lengths, args.batch_size * 16, True, args.batch_size)
    plain_batches = batches(lengths, args.batch_size * 16, False, args.batch_size)
    regions = [Fragments.full(torch.rand(args.batch_size, 36, 2048)) for _ in range(args.images // args.batch_size)]
    images = len(regions) * args.batch_size

    side = torch.rand(2048, 2048, device=args.device)
    with torch.inference_mode():
        side @ side
        rate = 2 * 2048**3 / min(timed(lambda: side @ side, runner.device) for _ in range(5))
    layer = sum(p.numel() for p in model.text_encoder.bert.encoder.parameters())
    floor = 2 * layer * lengths.sum() / rate

    def encode(parts):
        scoring.encode_captions(runner, parts, args.captions, vectors=False)

    ways = {"captions, sorted by length (ours)": sorted_batches, "captions, in file order": plain_batches}
    rows = [("floor: products of BERT's layers", floor, args.captions / floor, 1.0)]
    for name, parts in ways.items():
        encode(parts[:1] if len(parts[0][0]) == args.captions else parts)
        seconds = statistics.median(timed(lambda p=parts: encode(p), runner.device) for _ in range(args.rounds))
        rows.append((name, seconds, args.captions / seconds, seconds / floor))
    seconds = statistics.median(
        timed(lambda: scoring.encode_images(runner, regions, images, vectors=False), runner.device)
        for _ in range(args.rounds)
    )
    rows.append(("images of 36 regions, with measure-units", seconds, images / seconds, None))
    print(machine(), args.precision)
    print_table(rows, COLUMNS)
    if args.json:
        write_json(args.json, rows, COLUMNS, captions=args.captions, images=images, vectors=False)


if __name__ == "__main__":
    main()
