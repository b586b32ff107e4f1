"""The bidirectional GRU text encoder (released VSE∞ BiGRU code).

Letters: C captions, W tokens (`<start>` and `<end>` included), N real tokens of a batch, D embedding size.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from lib.core.config import Paths
from lib.core.errors import InputError
from lib.core.fragments import Fragments, Tokens, on_device
from lib.encoders.encoder import TextEncoder
from lib.files.vocabulary import HOW, read_vocabulary
from lib.files.word_vectors import read_word_vectors


class BiGRUEncoder(TextEncoder):
    """The mean of both directions of a GRU over learned word vectors: Tokens (C, W) -> Fragments (C, W, D).

    Padding never enters the GRU: the backward direction starts at each caption's own last token, so a caption's
    fragments depend on nothing else in its batch. The rows of padding are 0.
    """

    def __init__(self, vocab_size: int, word_dim: int, embed_size: int, num_layers: int = 1):
        super().__init__()
        self.embed = nn.Embedding(vocab_size, word_dim)
        nn.init.uniform_(self.embed.weight, -0.1, 0.1)
        self.gru = nn.GRU(word_dim, embed_size, num_layers, batch_first=True, bidirectional=True)

    def forward(self, captions: Tokens) -> Fragments:
        order = np.argsort(-captions.lengths, kind="stable")  # (C,)
        ids = captions.ids.index_select(0, on_device(order, captions.ids.device))  # (C, W)
        ids, *steps = pack_padded_sequence(ids, torch.from_numpy(captions.lengths[order]), batch_first=True)
        hidden, *_ = self.gru(PackedSequence(self.embed(ids), *steps))[0]  # (N, 2 * D)
        mean = PackedSequence(_mean_of_directions(hidden), *steps)  # (N, D)
        features, _ = pad_packed_sequence(mean, batch_first=True, total_length=captions.ids.shape[1])
        back = on_device(np.argsort(order), features.device)  # (C,)
        return Fragments(features.index_select(0, back), captions.real)  # (C, W, D)


def _mean_of_directions(hidden: Tensor) -> Tensor:
    forward, backward = hidden.chunk(2, dim=1)
    return (forward + backward) / 2


def bigru_encoder(embed_size: int, options: dict[str, Any], paths: Paths | None) -> BiGRUEncoder:
    """An encoder with random weights, and with the word vectors of paths["word_vectors"] for the words that it has."""
    encoder = BiGRUEncoder(options["vocab_size"], options["word_dim"], embed_size, options["num_layers"])
    if paths and paths.get("word_vectors"):
        vocabulary = read_vocabulary(paths.get("vocab_path"))
        rows, vectors = read_word_vectors(paths["word_vectors"], vocabulary.ids, options["word_dim"])
        with torch.no_grad():
            encoder.embed.weight[rows] = vectors
    return encoder


def read_bigru_options(options: dict[str, Any], paths: Paths) -> dict[str, Any]:
    """The number of entries of the vocabulary in --vocab_path; InputError where there is none."""
    return options | {"vocab_size": len(read_vocabulary(paths.get("vocab_path")))}


def check_bigru(embed_size: int, options: dict[str, Any]) -> None:
    """InputError where the size of the vocabulary is not known."""
    if "vocab_size" not in options:
        raise InputError(f"a BiGRU needs the size of its vocabulary; {HOW}")
