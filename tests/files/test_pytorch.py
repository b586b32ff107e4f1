"""Files of unknown origin run nothing and are refused in one line."""

from __future__ import annotations

import argparse
import os
import pickle
import struct
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import nn

from lib.core.errors import InputError
from lib.files.pytorch import read_file


class WritesToDisk:
    """Unpickling this creates a folder: the proof that a file ran code."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 3)
        self.norm = nn.BatchNorm1d(3)


def refusal(path, read=read_file) -> str:
    """The one-line message with which a file is refused; it names the file."""
    with pytest.raises(InputError) as caught:
        read(path)
    text = str(caught.value)
    assert text.startswith(f"{path}: ") and "\n" not in text and len(text) < 400 + len(str(path))
    return text


def varied_content() -> dict:
    """One of every kind of value that a checkpoint holds, 40 kB long."""
    return {
        "model": [OrderedDict(weight=torch.arange(10_000.0), half=torch.ones(3).half(), count=torch.tensor(5))],
        "opt": argparse.Namespace(margin=0.2, names=["a", "b"], resume=None, flag=True),
        "best_rsum": np.float64(412.5),
        "Eiters": 77,
    }


@pytest.mark.parametrize("legacy", [False, True])
def test_tensors_plain_values_namespaces_and_numbers_are_read_as_they_were_written(legacy, tmp_path):
    torch.save(varied_content(), tmp_path / "a", _use_new_zipfile_serialization=not legacy)
    read, expected = read_file(tmp_path / "a"), varied_content()
    for key, tensor in expected["model"][0].items():
        assert read["model"][0][key].dtype == tensor.dtype and torch.equal(read["model"][0][key], tensor)
    assert read["opt"] == expected["opt"] and read["Eiters"] == 77
    assert read["best_rsum"] == 412.5 and type(read["best_rsum"]) is float


def test_numbers_of_every_numpy_type_become_plain_ones(tmp_path):
    numbers = [np.bool_(True), np.float16(1.5), np.float32(0.1), np.float64(0.1)]
    numbers += [np.dtype(f"{kind}{size}").type(100) for kind in "iu" for size in (1, 2, 4, 8)]
    torch.save(numbers, tmp_path / "a")
    read = read_file(tmp_path / "a")
    assert read == [number.item() for number in numbers]
    assert {type(number) for number in read} == {bool, float, int}


def test_a_number_in_the_byte_order_of_another_machine_keeps_its_value(tmp_path):
    class Foreign:
        def __reduce__(self):
            scalar, _ = np.float64(0).__reduce__()
            return scalar, (np.dtype(">i4"), (-5).to_bytes(4, "big", signed=True))

    torch.save([Foreign()], tmp_path / "a")
    assert read_file(tmp_path / "a") == [-5]


def hostile_pickles(target) -> dict[str, bytes]:
    """Pickles that would make the folder `target` in an ordinary unpickler, in several spellings."""
    name = str(target).encode()
    return {
        "reduce": pickle.dumps({"model": [WritesToDisk(target)]}, protocol=2),
        "namespace": pickle.dumps({"opt": {"lr": WritesToDisk(target)}}, protocol=2),
        "text": b"cposix\nmkdir\n(V" + name + b"\ntR.",
        "getattr": b"\x80\x02cbuiltins\ngetattr\ncbuiltins\n__import__\nX\x02\x00\x00\x00os\x85R"
        b"X\x05\x00\x00\x00mkdir\x86RX" + struct.pack("<I", len(name)) + name + b"\x85R.",
        "instance": b"(V" + name + b"\niposix\nmkdir\n.",
    }


@pytest.mark.parametrize("spelling", ["reduce", "namespace", "text", "getattr", "instance"])
@pytest.mark.parametrize("form", ["zip", "bare", "legacy"])
def test_a_file_that_would_write_to_disk_is_refused_and_nothing_runs(spelling, form, tmp_path):
    path, target = tmp_path / "hostile.pth", tmp_path / "ran"
    data = hostile_pickles(target)[spelling]
    if form == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", data)
            archive.writestr("archive/version", "3\n")
            archive.writestr("archive/byteorder", "little")
    else:
        magic = (
            pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2) + pickle.dumps({"little_endian": True}, 2)
        )
        path.write_bytes(data if form == "bare" else magic + data)
    refusal(path)
    assert not target.exists()
    if spelling == "reduce":  # the same bytes do run in an ordinary unpickler
        pickle.loads(data)
        assert target.exists()


def test_a_whole_pickled_network_is_refused_by_its_class(tmp_path):
    torch.save(Network(), tmp_path / "a.pth")
    text = refusal(tmp_path / "a.pth")
    assert f"{__name__}.Network" in text and "could run code" in text


def test_numpy_arrays_and_objects_are_refused(tmp_path):
    for index, value in enumerate(
        (np.zeros(3), np.array([{}], dtype=object), np.datetime64("2020-01-01"), np.str_("a"))
    ):
        torch.save({"model": [], "best_rsum": value}, tmp_path / f"{index}.pth")
        refusal(tmp_path / f"{index}.pth")


@pytest.mark.parametrize("legacy", [False, True])
def test_damaged_files_are_refused_at_every_length(legacy, tmp_path):
    torch.save(varied_content(), tmp_path / "a.pth", _use_new_zipfile_serialization=not legacy)
    data = (tmp_path / "a.pth").read_bytes()
    for keep in (1, 2, 5, 30, 200, 5000, len(data) // 2, len(data) - 1):
        (tmp_path / "cut.pth").write_bytes(data[:keep])
        text = refusal(tmp_path / "cut.pth")
        if keep > 5000:
            assert "truncated or damaged" in text


def test_random_bytes_are_refused(tmp_path):
    generator = np.random.default_rng(0)
    beginnings = (b"", b"\x80\x02", b"\x80\x02}q\x00", b"PK\x03\x04", b"(")
    for index in range(100):
        data = beginnings[index % len(beginnings)] + generator.bytes(int(generator.integers(1, 3000)))
        (tmp_path / "noise.pth").write_bytes(data)
        refusal(tmp_path / "noise.pth")


def test_other_kinds_of_files_are_named_for_what_they_are(tmp_path):
    def text(name, data):
        (tmp_path / name).write_bytes(data)
        return refusal(tmp_path / name)

    assert "empty" in text("empty.pth", b"")
    assert "web page" in text("page.pth", b"<!DOCTYPE html><html>404</html>")
    assert "Git LFS" in text("pointer.pth", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    assert "gzip" in text("a.tar", b"\x1f\x8b\x08\x00rest")
    np.save(tmp_path / "a.npy", np.zeros(3))
    assert "NumPy" in refusal(tmp_path / "a.npy")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("readme.txt", "hello")
    assert "zip archive of something else" in refusal(tmp_path / "a.zip")
    assert "no such file" in refusal(tmp_path / "absent.pth")
    assert "is a folder" in refusal(tmp_path)
    with zipfile.ZipFile(tmp_path / "script.pth", "w") as archive:
        for name in ("data.pkl", "constants.pkl", "version"):
            archive.writestr(f"archive/{name}", b"3")
    assert "TorchScript" in refusal(tmp_path / "script.pth")


def test_a_compressed_archive_is_refused_since_a_few_bytes_could_fill_the_memory(tmp_path):
    torch.save(varied_content(), tmp_path / "a.pth")
    with zipfile.ZipFile(tmp_path / "a.pth") as stored, zipfile.ZipFile(tmp_path / "b.pth", "w", 8) as packed:
        for name in stored.namelist():
            packed.writestr(name, stored.read(name))
    assert "data.pkl is compressed" in refusal(tmp_path / "b.pth")


def test_reading_leaves_the_allowed_globals_of_the_process_as_they_were(tmp_path):
    torch.save(varied_content(), tmp_path / "a.pth")
    before = set(torch.serialization.get_safe_globals())
    read_file(tmp_path / "a.pth")
    assert set(torch.serialization.get_safe_globals()) == before
