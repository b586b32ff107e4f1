"""Shared pieces of the tests: the optional folder of golden values, deterministic seeds."""

from __future__ import annotations

import functools
import os
from pathlib import Path

import numpy as np
import pytest
import torch

_shared = Path(os.environ.get("ESL_SHARED", Path(__file__).resolve().parents[2] / "shared"))
SHARED: Path | None = _shared if (_shared / "golden").is_dir() else None
needs_shared = pytest.mark.skipif(SHARED is None, reason="the folder with golden values is not here")


def pytest_configure(config):
    config.addinivalue_line("filterwarnings", "ignore:Call to deprecated create function:DeprecationWarning")


@pytest.fixture(scope="session")
def sample(tmp_path_factory) -> Path:
    """The tiny sample data set, to be read only: coco, f30k and bert."""
    from lib.tools.sample.writing import SampleConfig, write_sample

    root = tmp_path_factory.mktemp("sample")
    write_sample(root, SampleConfig(images=24, dev_images=10, test_images=10, testall_images=25, img_dim=32))
    return root


@pytest.fixture(scope="session")
def runs(sample, tmp_path_factory):
    """`runs(similarity)` is the folder of a finished run of two epochs, trained once per session, to be read only."""
    from tests import helpers

    root = tmp_path_factory.mktemp("runs")

    @functools.cache
    def trained(similarity: str) -> Path:
        return helpers.train(sample, root / similarity, "--similarity", similarity)

    return trained


@pytest.fixture
def single_thread():
    """One thread of torch, for tests of small networks: more only cost, and much where cores are shared."""
    from tests import helpers

    with helpers.threads(1):
        yield


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
    np.random.seed(0)
