"""A released checkpoint gives its released scores through the functions that eval.py calls."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lib.checkpoint import load_model, read_checkpoint
from lib.evaluation import scoring
from lib.fragments import Fragments
from lib.parallel import Runner
from tests.conftest import SHARED, needs_shared


@needs_shared
@pytest.mark.parametrize("batch_size", [2, 5])
def test_a_released_checkpoint_reproduces_its_similarities(batch_size):
    golden = np.load(SHARED / "golden/checkpoint_tiny64_esl_a_io.npz")
    checkpoint = read_checkpoint(
        SHARED / "golden/checkpoint_tiny64_esl_a.pth",
        {
            "vocab_size": 200,
            "hidden_size": 64,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "intermediate_size": 64,
            "hidden_act": "gelu",
            "hidden_dropout_prob": 0.1,
            "attention_probs_dropout_prob": 0.1,
            "max_position_embeddings": 32,
            "type_vocab_size": 2,
            "layer_norm_eps": 1e-12,
        },
    )
    runner = Runner(load_model(checkpoint).eval(), [torch.device("cpu")])
    features, tokens = torch.tensor(golden["images"]), torch.tensor(golden["captions"])
    order = torch.tensor(golden["cap_lens"]).argsort(descending=True, stable=True)
    regions = (Fragments.full(part) for part in features.split(batch_size))
    words = ((part, tokens[part][:, : int(golden["cap_lens"][part].max())]) for part in order.split(batch_size))
    images = scoring.encode_images(runner, regions, len(features))
    captions = scoring.encode_captions(runner, words, len(tokens))
    found = scoring.similarity_matrix(runner, images, captions)
    assert np.abs(found - golden["sims_f64"]).max() <= 1e-5 * np.abs(golden["sims_f64"]).max()
