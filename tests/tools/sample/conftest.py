"""The smallest sample data set with every part, written once."""

from __future__ import annotations

from pathlib import Path

import pytest

from lib.tools.sample.writing import SampleConfig, write_sample

SMALL = SampleConfig(images=6, dev_images=2, test_images=3, img_dim=16, seed=5)


@pytest.fixture(scope="session")
def small(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("small")
    write_sample(folder, SMALL)
    return folder


def lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()
