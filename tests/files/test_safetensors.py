"""Files in the safetensors format are read as they are, or refused in one line."""

from __future__ import annotations

import json
import struct

import pytest
import torch

from lib.files.pytorch import read_file
from lib.files.safetensors import METADATA, begins, read_safetensors, write_safetensors
from tests.attack.refusals import refuses
from tests.attack.test_archives import little_memory


def file(header: str, data: bytes = bytes(16)) -> bytes:
    return struct.pack("<Q", len(header)) + header.encode() + data


def entry(**changes) -> str:
    return json.dumps({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]} | changes})


def test_tensors_and_texts_come_back(tmp_path):
    shared = torch.arange(6.0)
    tensors = {"a": shared, "b": shared[2:4], "c": shared.reshape(2, 3).T, "d": torch.ones(2).bfloat16(),
               "e": torch.tensor(3), "f": torch.zeros(0)}  # fmt: skip
    write_safetensors(tmp_path / "a", tensors, {"said": "text"})
    for read in (read_safetensors, read_file):
        found = read(tmp_path / "a")
        assert found.pop(METADATA) == {"said": "text"} and found.keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor)


HEADERS = {
    "a tensor behind the end": entry(data_offsets=[0, 64]),
    "another size than the shape": entry(shape=[5]),
    "a shape of terabytes": entry(shape=[1 << 40, 1 << 20]),
    "a negative size": entry(shape=[-4]),
    "offsets in disorder": entry(data_offsets=[16, 0]),
    "two tensors in one place": json.dumps(dict.fromkeys("ab", json.loads(entry())["a"])),
    "an unknown type": entry(dtype="F7"),
    "no entries": "{",
    "deep brackets": "{" * 100_000,
    "a number": '{"a": 1}',
    "metadata that is no text": '{"__metadata__": {"a": [1]}}',
}


@pytest.mark.parametrize("what", HEADERS)
def test_a_header_that_can_not_be_true_is_refused(what, tmp_path):
    (tmp_path / "a").write_bytes(file(HEADERS[what]))
    with little_memory():
        refuses(lambda: read_file(tmp_path / "a"), "truncated or damaged")


def test_a_file_that_is_cut_off_is_refused(tmp_path):
    whole = file(entry())
    for length in range(1, len(whole)):
        (tmp_path / "a").write_bytes(whole[:length])
        refuses(lambda: read_file(tmp_path / "a"))


def test_other_formats_do_not_begin_so():
    assert begins(file(entry()))
    for data in (b"", b"PK\x03\x04", b"\x80\x02}", b"\xff" * 8 + b"{", b'{"a": [1], "b": {'):
        assert not begins(data)
