"""Scores of a released-layout ESL file computed without our code (`python -m tests.released_scores FILE MATRIX.npy …`).

The weights are taken by their released names, images and captions pass through tests/reference.py and transformers'
BERT in float64, and the result is compared with a matrix that eval.py saved for the model before it was converted.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from transformers import BertConfig, BertModel, BertTokenizer

from tests import reference

IMAGES = 8


def main(released: str, matrix: str, precomp: str, split: str, bert_path: str) -> float:
    """The largest difference of the first images' scores, relative to the largest score."""
    torch.set_num_threads(1)  # products as small as these gain nothing from more
    with torch.serialization.safe_globals([argparse.Namespace]):
        parts = torch.load(released, weights_only=True)["model"]
    images, texts, head = ({k.removeprefix("module."): v.double() for k, v in part.items()} for part in parts)

    features = np.load(Path(precomp, f"{split}_ims.npy"))[:: 5 if split != "train" else 1][:IMAGES]
    regions, _ = reference.region_encoder(torch.from_numpy(features).double(), images, training=False)

    bert = BertModel(BertConfig.from_pretrained(bert_path)).double().eval()
    bert.load_state_dict({k.removeprefix("bert."): v for k, v in texts.items() if k.startswith("bert.")})
    tokenizer = BertTokenizer.from_pretrained(bert_path)
    words = []
    with torch.no_grad():
        for caption in Path(precomp, f"{split}_caps.txt").read_text().splitlines():
            hidden = bert(**tokenizer(caption, return_tensors="pt")).last_hidden_state[0]  # (W, hidden)
            words.append(hidden @ texts["linear.weight"].T + texts["linear.bias"])  # (W, D)
        kind = "h" if any("kernel_img" in key for key in head) else "a"
        expected = reference.esl_scores(list(regions), words, head, kind).numpy()
    return float(np.abs(np.load(matrix)[:IMAGES] - expected).max() / np.abs(expected).max())


if __name__ == "__main__":
    error = main(*sys.argv[1:])
    print(f"released layout, scored without this code: largest difference {error:.1e}")
    sys.exit(error > 1e-5)
