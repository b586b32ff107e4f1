"""Saved matrices: our format, everything others saved, and files that are broken."""

from __future__ import annotations

import hashlib
import os
import pickle
import tracemalloc

import numpy as np
import pytest

from lib.core.errors import InputError
from lib.evaluation.matrices.stored import checkpoint_hash, load_scores, save_results
from lib.evaluation.metrics import retrieval_metrics
from tests.files.test_pickled import save_pickle


@pytest.fixture
def scores():
    return np.random.default_rng(0).standard_normal((6, 30)).astype(np.float32)


def test_saved_matrices_load_memory_mapped_with_their_info(tmp_path, scores):
    result = retrieval_metrics(scores)
    save_results(tmp_path / "a.npy", scores, {"dataset": "coco", "metrics": result, "epoch": np.int64(3)})
    loaded, info = load_scores(tmp_path / "a.npy")
    np.testing.assert_array_equal(loaded, scores)
    assert isinstance(loaded, np.memmap) and loaded.dtype == np.float32
    assert info == {"dataset": "coco", "metrics": result.as_dict(), "epoch": 3}
    assert sorted(os.listdir(tmp_path)) == ["a.json", "a.npy"]  # no temporary file is left
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), scores)


@pytest.mark.parametrize("kind", ["float64", "fortran", "strided"])
def test_every_memory_layout_is_saved_as_plain_float32(tmp_path, scores, kind):
    given = {
        "float64": scores.astype(np.float64),
        "fortran": np.asfortranarray(scores),
        "strided": np.repeat(scores, 2, 1)[:, ::2],
    }
    save_results(tmp_path / "a.npy", given[kind], {})
    loaded = np.load(tmp_path / "a.npy")
    assert loaded.dtype == np.float32 and loaded.flags.c_contiguous
    np.testing.assert_array_equal(loaded, scores)


def test_a_memory_mapped_matrix_is_saved_without_copying_it_whole(tmp_path):
    mapped = np.lib.format.open_memmap(tmp_path / "big.npy", mode="w+", dtype=np.float32, shape=(4096, 2048))  # 32 MB
    mapped[:] = 1
    tracemalloc.start()
    save_results(tmp_path / "copy.npy", mapped, {})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8e6
    assert (tmp_path / "copy.npy").stat().st_size == (tmp_path / "big.npy").stat().st_size


@pytest.mark.parametrize("change", [
    lambda path: path.write_bytes(path.read_bytes()[:-1] + b"\x01"),
    lambda path: np.save(path, np.load(path) + 1),
    lambda path: np.save(path, np.load(path)[:4]),
    lambda path: np.save(path, np.load(path).T),
    lambda path: np.save(path, np.asfortranarray(np.load(path)[::-1])),
    lambda path: path.with_suffix(".json").write_text('{"matrix_crc32": "abc"}'),
])  # fmt: skip
def test_a_matrix_that_is_not_the_one_that_was_saved_is_refused(tmp_path, scores, change):
    path = tmp_path / "a.npy"
    save_results(path, scores, {"dataset": "f30k"})
    change(path)
    with pytest.raises(InputError, match="a.npy: not the matrix that a.json was written with"):
        load_scores(path)


def test_the_same_values_in_another_layout_are_the_matrix_that_was_saved(tmp_path, scores):
    save_results(tmp_path / "a.npy", scores, {"dataset": "f30k"})
    np.save(tmp_path / "a.npy", np.asfortranarray(scores))
    loaded, info = load_scores(tmp_path / "a.npy")
    np.testing.assert_array_equal(loaded, scores)
    assert info == {"dataset": "f30k"}


def test_a_failed_save_leaves_the_old_file(tmp_path, scores, monkeypatch):
    save_results(tmp_path / "a.npy", scores, {})

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np.lib.format, "write_array_header_1_0", full_disk)
    with pytest.raises(InputError, match="a.npy: cannot be written .No space left"):
        save_results(tmp_path / "a.npy", scores + 1, {})
    np.testing.assert_array_equal(load_scores(tmp_path / "a.npy")[0], scores)
    assert sorted(os.listdir(tmp_path)) == ["a.json", "a.npy"]


def test_results_need_the_ending_npy(tmp_path, scores):
    with pytest.raises(InputError, match="a.txt"):
        save_results(tmp_path / "a.txt", scores, {})


def test_text_files_of_savetxt_load(tmp_path, scores):
    np.savetxt(tmp_path / "a.txt", scores)
    np.testing.assert_array_equal(load_scores(tmp_path / "a.txt")[0], scores)


@pytest.mark.parametrize("suffix", [".txt", ".npy"])
def test_a_folder_of_five_folds_loads_as_a_list(tmp_path, scores, suffix):
    for fold in range(5):
        name = tmp_path / f"{fold}sim_best{suffix}"
        if suffix == ".txt":
            np.savetxt(name, scores + fold)
        else:
            save_pickle(name, {"npts": 6, "sims": scores + fold})
    loaded, info = load_scores(tmp_path)
    assert info is None and len(loaded) == 5
    for fold, matrix in enumerate(loaded):
        np.testing.assert_allclose(matrix, scores + fold, rtol=1e-6)
    (tmp_path / f"3sim_best{suffix}").unlink()
    with pytest.raises(InputError, match="no 3sim_best.npy or 3sim_best.txt"):
        load_scores(tmp_path)


def test_truncated_files_are_refused_at_every_length(tmp_path, scores):
    for name, save in (("plain.npy", np.save), ("pickled.npy", lambda path, s: save_pickle(path, {"sims": s}))):
        save(tmp_path / name, scores)
        whole = (tmp_path / name).read_bytes()
        for length in (0, 4, 50, 130, len(whole) // 2, len(whole) - 1):
            (tmp_path / name).write_bytes(whole[:length])
            with pytest.raises(InputError, match=name):
                load_scores(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rank.npy", np.zeros((2, 3, 4)), "shape .2, 3, 4., expected .images, captions."),
        ("flat.npy", np.zeros(7), "shape"),
        ("empty.npy", np.zeros((0, 5)), "shape"),
        ("text.npy", np.array([["a"]]), "no readable .npy array of numbers, found <U1"),
        ("nan.npy", np.where(np.arange(600).reshape(300, 2) == 599, np.nan, 0.0), "NaN at row 299, column 1"),
    ],
)
def test_matrices_that_cannot_be_ranked_are_refused(tmp_path, name, content, message):
    np.save(tmp_path / name, content)
    with pytest.raises(InputError, match=f"{name}: {message}"):
        load_scores(tmp_path / name)


@pytest.mark.parametrize("text", ["", "1 2\n3\n", "1 2\nx 4\n", "1 nan\n"])
def test_broken_text_files_are_refused(tmp_path, text):
    (tmp_path / "a.txt").write_text(text)
    with pytest.raises(InputError, match="a.txt"):
        load_scores(tmp_path / "a.txt")


def test_files_of_another_kind_are_refused(tmp_path, scores):
    np.savez(tmp_path / "a.npz", scores=scores)
    os.replace(tmp_path / "a.npz", tmp_path / "zip.npy")
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"sims": scores}))
    (tmp_path / "raw.npy").write_bytes(pickle.dumps({"sims": scores}))
    for name in ("zip.npy", "a.pkl", "raw.npy", "missing.npy"):
        with pytest.raises(InputError, match=name):
            load_scores(tmp_path / name)
    save_results(tmp_path / "b.npy", scores, {})
    (tmp_path / "b.json").write_text("[1]")
    with pytest.raises(InputError, match="b.json: expected a JSON object"):
        load_scores(tmp_path / "b.npy")


def test_the_hash_of_a_checkpoint_is_its_sha256(tmp_path):
    (tmp_path / "model.pth").write_bytes(b"weights")
    assert checkpoint_hash(tmp_path / "model.pth") == hashlib.sha256(b"weights").hexdigest()[:16]
    with pytest.raises(InputError, match="other.pth"):
        checkpoint_hash(tmp_path / "other.pth")
