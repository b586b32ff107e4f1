"""Every damage to every file that is read: one line, or what was written; nothing runs, nothing else is raised."""

from __future__ import annotations

import argparse
import shutil
from typing import Any

import numpy as np
import pytest
import torch

from lib.core.config import ModelConfig
from lib.core.errors import InputError
from tests.attack.damages import DAMAGES, RAN
from tests.attack.readers import CHECKED, READERS
from tests.attack.refusals import one_line, refuses


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """A folder with a valid file of each reader."""
    root = tmp_path_factory.mktemp("originals")
    for name, reader in READERS.items():
        (root / name).mkdir()
        reader.make(root / name / reader.file)
    return root


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", READERS)
def test_damage_is_refused_in_one_line_or_changes_nothing(name, damage, originals, tmp_path):
    reader, folder = READERS[name], shutil.copytree(originals / name, tmp_path / "a")
    path = folder / reader.file
    DAMAGES[damage].do(path)
    if reader.promise in DAMAGES[damage].refused:
        refuses(lambda: reader.read(path), str(folder))
    else:
        try:
            found = reader.read(path)
        except InputError as error:
            one_line(error, str(folder))
        else:
            if reader.promise == CHECKED:
                assert content(found) == content(reader.read(originals / name / reader.file))
    assert not (folder / RAN).exists()


@pytest.mark.parametrize("name", READERS)
def test_a_whole_file_is_read(name, originals):
    first, second = (content(READERS[name].read(originals / name / READERS[name].file)) for _ in range(2))
    assert first == second and first


def content(value: Any) -> Any:
    """What is read in a form that `==` compares bit for bit."""
    if isinstance(value, torch.Tensor):
        value = value.numpy()
    if isinstance(value, np.ndarray | np.generic):
        return str(value.dtype), value.shape, value.tobytes()
    if isinstance(value, argparse.Namespace | ModelConfig):
        value = vars(value)
    if isinstance(value, dict):
        return {key: content(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [content(item) for item in value]
    return type(value).__name__, repr(value)
