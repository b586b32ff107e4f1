"""Similarity matrices that others pickled load at every protocol; hostile pickles are refused and nothing runs."""

from __future__ import annotations

import io
import os
import pickle

import numpy as np
import pytest

from lib.core.errors import InputError
from lib.evaluation.matrices.stored import load_scores


@pytest.fixture
def scores():
    return np.random.default_rng(0).standard_normal((6, 30)).astype(np.float32)


def save_pickle(path, content, protocol=4, pickler=pickle.Pickler):
    """What numpy.save(path, content, allow_pickle=True) writes for a dict, at any pickle protocol."""
    with open(path, "wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|O", "fortran_order": False, "shape": ()})
        pickler(file, protocol).dump(np.array(content, object))


def test_a_pickle_that_copies_one_list_again_and_again_is_refused(tmp_path):
    copies = b"(" + b"N" * 9000 + b"lq\x00" + b"cbuiltins\nset\nq\x01(" + b"h\x01h\x00\x85R" * 200 + b"l."
    save_pickle(tmp_path / "a.npy", {})
    header = (tmp_path / "a.npy").read_bytes()[:128]
    (tmp_path / "a.npy").write_bytes(header + copies)
    with pytest.raises(InputError, match="copies the same values"):
        load_scores(tmp_path / "a.npy")


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
