"""Shared pieces of the tests: the optional folder of golden values, deterministic seeds."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

_shared = Path(os.environ.get("ESL_SHARED", Path(__file__).resolve().parents[2] / "shared"))
SHARED: Path | None = _shared if (_shared / "golden").is_dir() else None
needs_shared = pytest.mark.skipif(SHARED is None, reason="the folder with golden values is not here")


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
    np.random.seed(0)
