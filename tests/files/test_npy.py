"""Arrays in .npy form: what a header says is believed where the file holds it, and nothing is unpickled."""

from __future__ import annotations

import io
import os
import struct

import numpy as np
import pytest

from lib.files.npy import array_of, map_array
from tests.attack.refusals import refuses
from tests.attack.test_archives import little_memory


def npy(header: str, values: bytes = bytes(96), version: int = 1) -> bytes:
    """An .npy file with this text as its header."""
    text = header.encode("latin-1") + b"\n"
    return b"\x93NUMPY" + bytes([version, 0]) + struct.pack("<H" if version == 1 else "<I", len(text)) + text + values


def described(shape: str = "(4, 6)", descr: str = "'<f4'", order: str = "False") -> str:
    return f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}}}"


HEADERS = {
    "a negative size": described("(-4, 6)"),
    "two negative sizes": described("(-4, -6)"),
    "a size beyond 64 bits": described("(99999999999999999999999, 6)"),
    "a size times none": described("(99999999999999999999999, 0)"),
    "more than the file holds": described("(4, 7)"),
    "terabytes": described("(1000000, 1000000)"),
    "a size of True": described("(True, 6)"),
    "a size that is no integer": described("(4.0, 6)"),
    "no tuple": described("24"),
    "no shape": "{'descr': '<f4', 'fortran_order': False}",
    "objects": described(descr="'|O'"),
    "records": described(descr="[('a', '<f4'), ('b', '<f4')]"),
    "records of arrays": described(descr="[('a', '<f4', (1000000, 1000000))]"),
    "text": described(descr="'<U6'"),
    "bytes": described(descr="'|S4'"),
    "dates": described(descr="'<M8[D]'"),
    "complex numbers": described(descr="'<c8'"),
    "values of no size": described(descr="'|V0'"),
    "an unknown type": described(descr="'<f5'"),
    "a nested type": described(descr="[" * 200 + "]" * 200),
    "deep brackets": "(" * 9000,
    "a long number": described("(" + "9" * 5000 + ",)"),
    "a call": described("(__import__('os').mkdir('ran'),)"),
    "half a text": "{'descr': '<f4', 'shape'",
    "an order that is none": described(order="'C'"),
    "nothing": "",
    "zeros": "\0" * 64,
    "a header beyond reason": described() + " " * 60_000,
}


@pytest.mark.parametrize("version", [1, 2, 3, 9])
@pytest.mark.parametrize("what", HEADERS)
def test_a_header_that_can_not_be_true_is_refused(what, version, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data, path = npy(HEADERS[what], version=version), tmp_path / "a.npy"
    path.write_bytes(data)
    with little_memory():
        refuses(lambda: map_array(path), f"{path}: ")
        refuses(lambda: array_of(data, path), f"{path}: ")
    assert os.listdir(tmp_path) == ["a.npy"]


@pytest.mark.parametrize("array", [
    np.arange(24.0).reshape(4, 6), np.asfortranarray(np.arange(24, dtype=np.int16).reshape(4, 6)), np.zeros((0, 3)),
    np.array(3), np.array([True, False]), np.arange(3, dtype=">f4"), np.ones((2, 3), np.float16),
])  # fmt: skip
def test_arrays_of_numbers_are_read_as_numpy_reads_them(array, tmp_path):
    np.save(tmp_path / "a.npy", array)
    for found in (map_array(tmp_path / "a.npy"), array_of((tmp_path / "a.npy").read_bytes(), "a")):
        expected = np.load(tmp_path / "a.npy")
        assert (found.dtype, found.shape, found.tobytes()) == (expected.dtype, expected.shape, expected.tobytes())


def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.npy")
    refuses(lambda: map_array(tmp_path / "a.npy"), "no regular file")


def test_an_archive_is_no_array(tmp_path):
    file = io.BytesIO()
    np.savez(file, a=np.zeros(3))
    (tmp_path / "a.npy").write_bytes(file.getvalue())
    refuses(lambda: map_array(tmp_path / "a.npy"), "no readable .npy array")
