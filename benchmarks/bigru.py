"""Time of the BiGRU encoder beside its GRU alone, which gets packed word vectors: `python -m benchmarks.bigru`.

Both see the same captions, in turns, so that a busy machine slows both; forward in evaluation, forward and backward in
training.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable

import torch
from torch.nn.utils.rnn import pack_padded_sequence

from benchmarks.common import machine, median_time, print_table
from lib.core.fragments import Tokens
from lib.encoders.bigru import BiGRUEncoder

COLUMNS = ("what", "seconds", "GRU alone", "ratio")


def in_turns(first: Callable, second: Callable, rounds: int) -> tuple[float, float]:
    """Medians of the two, each run once a round."""
    times = [(median_time(first, 1, 0), median_time(second, 1, 0)) for _ in range(rounds + 1)]
    return tuple(statistics.median(each) for each in zip(*times[1:], strict=True))


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bigru", description=__doc__)
    parser.add_argument("--captions", type=int, default=128)
    parser.add_argument("--embed_size", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args(argv)
    print(machine())
    torch.manual_seed(0)
    encoder = BiGRUEncoder(11354, 300, args.embed_size).to(args.device)
    lengths = (
        (torch.randn(args.captions) * 3.5 + 13.5).round().clamp(6, 40).long()
    )  # as COCO's captions with their frame
    captions = Tokens(torch.randint(4, 11354, (args.captions, int(lengths.max()))), lengths).to(args.device)
    words = encoder.embed(captions.ids).detach()  # (C, W, word_dim)
    packed = pack_padded_sequence(words, lengths, batch_first=True, enforce_sorted=False)

    def encode(train: bool) -> None:
        with torch.set_grad_enabled(train):
            features = encoder(captions).features
            if train:
                features.sum().backward()

    def alone(train: bool) -> None:
        with torch.set_grad_enabled(train):
            hidden = encoder.gru(packed)[0].data
            if train:
                hidden.sum().backward()

    rows = []
    for what, train in (("evaluation", False), ("training", True)):
        ours, floor = in_turns(lambda train=train: encode(train), lambda train=train: alone(train), args.rounds)
        rows.append((f"{args.captions} captions, {what}", ours, floor, ours / floor))
    print_table(rows, COLUMNS)


if __name__ == "__main__":
    main()
