"""Published figures: consistent in themselves, and found under the names that models and rows really have."""

from __future__ import annotations

import numpy as np
import pytest

from lib.core.config import ModelConfig
from lib.datasets import DATA_SETS
from lib.encoders.backbones import SOURCES
from lib.evaluation.published import PUBLISHED, PUBLISHED_CXC, published
from lib.evaluation.report import CXC_TASKS, evaluate_matrix
from lib.model import complete, describe
from lib.similarity import HEADS


def test_published_recalls_add_up_to_their_rsum():
    assert len({(figures.model, figures.protocol) for figures in PUBLISHED}) == len(PUBLISHED) == 19
    for figures in PUBLISHED:
        assert figures.recalls is None or len(figures.recalls) == 6
        assert figures.rsum is not None or figures.recalls.count(None) == 2  # R@10 and RSUM of BiGRU are not stated
        if figures.recalls and figures.rsum:
            assert sum(figures.recalls) == pytest.approx(figures.rsum, abs=0.25)  # each rounded by itself


def test_published_figures_are_those_of_the_same_model_and_protocol():
    assert published("VSE∞, grid features (wsl), BERT", "COCO 5K").rsum == 468.9
    assert published("VSE∞, grid features (detector), BERT", "COCO 5K").rsum == 440.0
    assert published("ESL-H, region features, BERT", "Flickr30K 1K").rsum == 523.7
    assert published("ESL-H, grid features (detector), BERT", "COCO 5K") is None
    assert published("ESL-H, region features, BERT", "COCO 1K fold 1") is None
    assert published(None, "COCO 5K") is None


def test_every_published_model_is_named_as_checkpoints_describe_theirs():
    images = [("regions", {})] + [("grid", {"backbone_source": source}) for source in SOURCES]
    texts = {"bert": {}, "bigru": {"vocab_size": 10}}
    configs = [
        ModelConfig(head, encoder, text, image_options=options, text_options=texts[text])
        for head in HEADS
        for encoder, options in images
        for text in texts
    ]
    assert {figures.model for figures in PUBLISHED} <= {describe(complete(config)) for config in configs}


def test_every_published_protocol_is_labelled_as_rows_are():
    rows = evaluate_matrix(DATA_SETS["coco"], np.broadcast_to(np.float32(0), (5000, 5000)))
    rows += evaluate_matrix(DATA_SETS["f30k"], np.broadcast_to(np.float32(0), (1000, 1000)))
    assert {figures.protocol for figures in PUBLISHED} == {"COCO 1K mean", "COCO 5K", "Flickr30K 1K"}
    assert {figures.protocol for figures in PUBLISHED} <= {row.label for row in rows}


def test_published_cxc_recalls_are_those_of_the_four_tasks():
    assert all(tasks.keys() == CXC_TASKS.keys() for tasks in PUBLISHED_CXC.values())
