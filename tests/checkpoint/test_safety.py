from __future__ import annotations

import os
import pickle
import struct
import zipfile

import numpy as np
import pytest
import torch

from lib.checkpoint import load_model, read_checkpoint
from lib.errors import InputError
from tests.checkpoint.layouts import assert_same_tensors, released_content


class WritesToDisk:
    """Unpickling this creates a folder: the proof that a file ran code."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


class Network(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 2)


def refusal(path) -> str:
    """The one-line message with which a file is refused; it names the file."""
    with pytest.raises(InputError) as caught:
        read_checkpoint(path)
    text = str(caught.value)
    assert str(path) in text and "\n" not in text and len(text) < 400 + len(str(path))
    return text


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


@pytest.mark.parametrize("legacy", [False, True])
def test_code_hidden_in_a_real_checkpoint_does_not_run_and_the_culprit_is_named(legacy, tmp_path):
    content = released_content("vse_infty")
    content["opt"].resume = WritesToDisk(tmp_path / "ran")
    torch.save(content, tmp_path / "a.pth", _use_new_zipfile_serialization=not legacy)
    text = refusal(tmp_path / "a.pth")
    assert "posix.mkdir" in text and "could run code" in text
    assert not (tmp_path / "ran").exists()


def test_a_whole_pickled_network_is_refused(tmp_path):
    torch.save(Network(), tmp_path / "a.pth")
    assert "Network" in refusal(tmp_path / "a.pth")
    torch.save({"format": "esl-checkpoint", "version": 1, "model": Network()}, tmp_path / "b.pth")
    assert "Network" in refusal(tmp_path / "b.pth")


def test_numpy_arrays_and_objects_are_refused(tmp_path):
    for index, value in enumerate(
        (np.zeros(3), np.array([{}], dtype=object), np.datetime64("2020-01-01"), np.str_("a"))
    ):
        torch.save({"model": [], "best_rsum": value}, tmp_path / f"{index}.pth")
        refusal(tmp_path / f"{index}.pth")


def test_damaged_files_are_refused_at_every_length(tmp_path):
    for legacy in (False, True):
        torch.save(released_content("vse_infty"), tmp_path / "a.pth", _use_new_zipfile_serialization=not legacy)
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


def test_files_of_other_projects_are_named_by_what_they_hold(tmp_path):
    path = tmp_path / "a.pth"
    for content, expected in (
        (Network().state_dict(), "layer.weight, layer.bias"),
        ({"state_dict": Network().state_dict(), "epoch": 3}, "state_dict, epoch"),
        ({}, "nothing"),
        ([1, 2], "a list"),
        (torch.zeros(3), "a Tensor"),
        ({"model": [{"a": torch.zeros(1)}, {"b": torch.zeros(1)}]}, "neither ESL-H, ESL-A nor VSE∞"),
        ({"model": [1, 2]}, "expected a dict of tensors"),
        ({"model": {"a": torch.zeros(1)}}, "expected a checkpoint of this code"),
    ):
        torch.save(content, path)
        assert expected in refusal(path)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("name", ["model_best.pth.tar", "model_best.tar", "weights"])
def test_any_name_and_both_serialisations_load(legacy, name, tmp_path):
    content = released_content("esl_h")
    torch.save(content, tmp_path / name, _use_new_zipfile_serialization=not legacy)
    torch.save(content, tmp_path / "plain.pth")
    expected = read_checkpoint(tmp_path / "plain.pth")
    assert_same_tensors(load_model(read_checkpoint(tmp_path / name)).state_dict(), expected.model)


def test_a_compressed_archive_gives_the_same_weights(tmp_path):
    torch.save(released_content("vse_infty"), tmp_path / "a.pth")
    with zipfile.ZipFile(tmp_path / "a.pth") as stored, zipfile.ZipFile(tmp_path / "b.pth", "w", 8) as packed:
        for name in stored.namelist():
            packed.writestr(name, stored.read(name))
    assert_same_tensors(read_checkpoint(tmp_path / "b.pth").model, read_checkpoint(tmp_path / "a.pth").model)


def test_reading_leaves_the_allowed_globals_of_the_process_as_they_were(tmp_path):
    torch.save(released_content("esl_a"), tmp_path / "a.pth")
    before = set(torch.serialization.get_safe_globals())
    read_checkpoint(tmp_path / "a.pth")
    assert set(torch.serialization.get_safe_globals()) == before
