"""Every damage to the kernel's library in the cache: it is built again, and nothing damaged is ever handed on."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from lib.similarity.alignment import cpu_kernel
from tests.attack.damages import DAMAGES

LIBRARY = np.random.default_rng(1).bytes(5000)


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """The cache folder, with a compiler that writes LIBRARY."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(cpu_kernel, "_compiler", lambda: ["gcc"])
    monkeypatch.setattr(cpu_kernel, "_run", lambda *command: Path(command[-1]).write_bytes(LIBRARY))
    return tmp_path / "esl"


@pytest.fixture
def built_once(cache, monkeypatch) -> Path:
    """The library in the cache; building it again fails."""
    library = cpu_kernel._built()
    monkeypatch.setattr(cpu_kernel, "_run", lambda *command: pytest.fail("it was built again"))
    return library


@pytest.mark.parametrize("damage", [name for name in DAMAGES if name != "a folder"])
def test_a_damaged_library_is_replaced(damage, cache):
    library = cpu_kernel._built()
    DAMAGES[damage].do(library)
    taken = cpu_kernel._built()
    assert taken.parent == cache and taken.read_bytes() == LIBRARY and not taken.is_symlink()


def test_a_folder_in_its_place_is_a_line_and_torch_scores(cache):
    DAMAGES["a folder"].do(cpu_kernel._built())
    cpu_kernel._library.cache_clear()
    with pytest.warns(UserWarning, match="without its compiled kernel: .*directory"):
        assert cpu_kernel._library() is None
    cpu_kernel._library.cache_clear()


@pytest.mark.parametrize(
    "kind", ["a pipe", "a link to it", "writable by all", "writable by the group", "readable by all"]
)
def test_a_library_that_another_could_have_written_is_replaced(kind, cache):
    library = cpu_kernel._built()
    if kind == "a pipe":
        library.unlink()
        os.mkfifo(library)
    elif kind == "a link to it":
        library.symlink_to(library.rename(cache / "other.so"))
    else:
        library.chmod({"writable by all": 0o602, "writable by the group": 0o620, "readable by all": 0o604}[kind])
    taken = cpu_kernel._built()
    assert taken.read_bytes() == LIBRARY and cpu_kernel._sound(taken)


def test_a_library_of_another_user_is_not_taken(built_once, monkeypatch):
    assert cpu_kernel._built() == built_once
    uid = os.getuid()
    monkeypatch.setattr(cpu_kernel.os, "getuid", lambda: uid + 1)
    assert not cpu_kernel._sound(built_once) and cpu_kernel._cache_folder() is None


@pytest.mark.parametrize("digest", ["0" * 64, "", "x" * 64, "a-b-c"])
def test_a_library_under_another_name_is_not_taken(digest, built_once):
    named = built_once.rename(built_once.with_name(f"{built_once.stem.rpartition('-')[0]}-{digest}.so"))
    assert not cpu_kernel._sound(named)


def test_a_whole_library_is_found_beside_damaged_ones(built_once):
    for number in range(3):
        built_once.with_name(f"{built_once.stem.rpartition('-')[0]}-{number}.so").write_bytes(LIBRARY)
    assert cpu_kernel._built() == built_once
