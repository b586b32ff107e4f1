"""Saved matrices: our format, everything others saved, and files that are broken or hostile."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import tracemalloc

import numpy as np
import pytest

from lib.errors import InputError
from lib.evaluation.metrics import retrieval_metrics
from lib.evaluation.results import checkpoint_hash, load_scores, save_results


@pytest.fixture
def scores():
    return np.random.default_rng(0).standard_normal((6, 30)).astype(np.float32)


def save_pickle(path, content, protocol=4, pickler=pickle.Pickler):
    """What numpy.save(path, content, allow_pickle=True) writes for a dict, at any pickle protocol."""
    with open(path, "wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|O", "fortran_order": False, "shape": ()})
        pickler(file, protocol).dump(np.array(content, object))


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


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("order", ["C", "F"])
def test_pickled_dicts_of_every_protocol_load(tmp_path, scores, protocol, order):
    content = {"npts": np.int64(6), "sims": np.asarray(scores.astype(np.float64), order=order), "note": [1, "a", {2}]}
    save_pickle(tmp_path / "a.npy", content, protocol)
    loaded, info = load_scores(tmp_path / "a.npy")
    np.testing.assert_array_equal(loaded, scores.astype(np.float64))
    assert info is None


def test_what_numpy_saves_loads(tmp_path, scores):
    np.save(tmp_path / "a.npy", {"npts": 6, "sims": scores}, allow_pickle=True)
    np.testing.assert_array_equal(load_scores(tmp_path / "a.npy")[0], scores)


@pytest.mark.parametrize("spelling", [b"numpy.core.multiarray", b"numpy._core.multiarray"])
def test_pickles_of_numpy_1_and_numpy_2_load(tmp_path, scores, spelling):
    save_pickle(tmp_path / "a.npy", {"npts": 6, "sims": scores}, protocol=2)  # names stand in plain lines
    path = tmp_path / "a.npy"
    original = path.read_bytes()
    assert b"multiarray\n_reconstruct" in original
    for known in (b"numpy.core.multiarray\n", b"numpy._core.multiarray\n"):
        original = original.replace(known, spelling + b"\n")
    path.write_bytes(original)
    np.testing.assert_array_equal(load_scores(path)[0], scores)


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


class Hostile:
    def __init__(self, call, *arguments):
        self.reduced = call, arguments

    def __reduce__(self):
        return self.reduced


def test_hostile_pickles_are_refused_and_nothing_is_executed(tmp_path):
    target = tmp_path / "written"
    command = f"touch {target}"
    attacks = [
        Hostile(os.system, command),
        Hostile(eval, f"open({str(target)!r}, 'w')"),
        Hostile(open, str(target), "w"),
        Hostile(getattr, "a", "upper"),
        Hostile(np.load, str(target)),
        Hostile(np.frombuffer, b"1234"),
        Hostile(np.fromfile, str(target)),
        Hostile(io.FileIO, str(target), "w"),
    ]
    path = tmp_path / "a.npy"
    for attack in attacks:
        for content in (attack, {"npts": 1, "sims": attack}, {"sims": np.array([[attack]], object)}):
            for protocol in (0, 2, 4):
                save_pickle(path, content, protocol)
                with pytest.raises(InputError, match="a.npy: not a readable similarity matrix .it asks for"):
                    load_scores(path)
    assert not target.exists()
    np.load(path, allow_pickle=True)  # numpy itself would have run the last one
    assert target.exists()


@pytest.mark.parametrize(
    "code",
    [
        b"cnumpy\ndtype\n(VO8\nI00\nI01\ntR(I3\nV|\nNNNI-1\nI-1\nI0\ntb.",  # forged flags: objects read from raw bytes
        b"cnumpy\ndtype\n(V[('a','O')]\ntR.",
        b"cnumpy.core.multiarray\nscalar\n(cnumpy\ndtype\n(VO8\nI00\nI01\ntRVabcdefgh\ntR.",
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntVb\ntR(I1\n(I999999999999\ntcnumpy\ndtype\n(Vf4\nI0\nI1\ntRI00\nVabcd\ntb.",
        b"cnumpy\nndarray\n(I9999999999999\ntR.",
        b"cos\nsystem\n(Vtrue\ntR.",
        b"Pexternal\n.",
        b"(dVsims\nI1\ns.",
        b"N.",
        b"",
    ],
)  # fmt: skip
def test_forged_pickles_are_refused(tmp_path, code):
    path = tmp_path / "a.npy"
    with open(path, "wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|O", "fortran_order": False, "shape": ()})
        file.write(code)
    with pytest.raises(InputError, match="a.npy") as error:
        load_scores(path)
    assert "\n" not in str(error.value)


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
        ("text.npy", np.array([["a"]]), "dtype"),
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
