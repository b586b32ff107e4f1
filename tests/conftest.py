"""Shared pieces of the tests: the optional folder of golden values, deterministic seeds."""

from __future__ import annotations

import fcntl
import fnmatch
import functools
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

_shared = Path(os.environ.get("ESL_SHARED", Path(__file__).resolve().parents[2] / "shared"))
SHARED: Path | None = _shared if (_shared / "golden").is_dir() else None
needs_shared = pytest.mark.skipif(SHARED is None, reason="the folder with golden values is not here")


END_TO_END = ("test_resuming.py", "test_extending.py", "commands/*", "tools/*/test_main.py")  # whole scripts


def pytest_configure(config):
    config.addinivalue_line("filterwarnings", "ignore:Call to deprecated create function:DeprecationWarning")


def pytest_collection_modifyitems(items):
    root = Path(__file__).parent
    for item in items:
        path = item.path.relative_to(root).as_posix()
        if path.startswith("attack/"):
            item.add_marker("attack")
        if any(fnmatch.fnmatch(path, pattern) for pattern in END_TO_END):
            item.add_marker("end_to_end")


def made_once(tmp_path_factory, name: str, make: Callable[[Path], object]) -> Path:
    """The folder `name` of this run of the tests: made by the first process that needs it, read by all."""
    root = tmp_path_factory.getbasetemp()
    root = root.parent if "PYTEST_XDIST_WORKER" in os.environ else root
    folder, whole = root / name, root / f"{name}.whole"
    with open(root / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not whole.exists():
            make(folder)
            whole.touch()
    return folder


@pytest.fixture(scope="session")
def sample(tmp_path_factory) -> Path:
    """The tiny sample data set, to be read only: coco, f30k and bert."""
    from lib.tools.sample.writing import SampleConfig, write_sample

    sizes = SampleConfig(images=24, dev_images=10, test_images=10, testall_images=25, img_dim=32)
    return made_once(tmp_path_factory, "sample", lambda folder: write_sample(folder, sizes))


@pytest.fixture(scope="session")
def runs(sample, tmp_path_factory):
    """`runs(similarity)` is the folder of a finished run of two epochs, trained once per session, to be read only."""
    from tests import helpers

    @functools.cache
    def trained(similarity: str) -> Path:
        flags = ("--similarity", similarity)
        return made_once(tmp_path_factory, similarity, lambda folder: helpers.train(sample, folder, *flags))

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
