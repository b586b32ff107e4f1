"""A released checkpoint gives its released scores through the functions that eval.py calls."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from lib.checkpoint import load_model, read_checkpoint
from lib.core.config import KERNELS
from lib.core.fragments import Fragments
from lib.datasets.inputs import Inputs
from lib.distributed.runner import Runner
from lib.inference.scoring import score_split
from lib.model import MatchingModel
from lib.similarity.alignment import Backend
from tests.conftest import SHARED, needs_shared

pytestmark = [needs_shared, pytest.mark.usefixtures("single_thread")]
BERT = {
    "model_type": "bert",
    "vocab_size": 200,
    "hidden_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 32,
}


class Images(list):
    """Features of images as the images of a split."""

    def __call__(self, index: int, rng=None) -> Fragments:
        features = self[index]  # (R, D)
        return Fragments(features, torch.ones(len(features), dtype=torch.bool))


class Captions(list):
    """Token ids of captions as the tokenised captions of a split."""

    @property
    def lengths(self) -> np.ndarray:
        return np.array(list(map(len, self)))

    def ids(self, index: int) -> np.ndarray:
        return self[index]


@pytest.fixture(scope="module")
def golden() -> np.lib.npyio.NpzFile:
    return np.load(SHARED / "golden/checkpoint_tiny64_esl_a_io.npz")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> MatchingModel:
    bert = tmp_path_factory.mktemp("bert")
    (bert / "config.json").write_text(json.dumps(BERT))
    return load_model(read_checkpoint(SHARED / "golden/checkpoint_tiny64_esl_a.pth", {"bert_path": bert}))


@pytest.mark.parametrize("batch_size", [2, 5])
@pytest.mark.parametrize("kernels", KERNELS)
def test_a_released_checkpoint_reproduces_its_similarities(golden, model, batch_size, kernels):
    captions = Captions(ids[:length] for ids, length in zip(golden["captions"], golden["cap_lens"], strict=True))
    inputs = Inputs(None, Images(torch.tensor(golden["images"])), captions)
    found = score_split(Runner(model, [torch.device("cpu")], backend=Backend(kernels)), inputs, batch_size).matrix
    assert np.abs(found - golden["sims_f64"]).max() <= 1e-5 * np.abs(golden["sims_f64"]).max()
