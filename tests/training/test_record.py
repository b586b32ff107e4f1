"""What a run was started with: config.json, its summary, and fingerprints of data files."""

from __future__ import annotations

import hashlib
import json
import socket

import numpy as np
import pytest
import torch

from lib.training import record
from lib.training.record import describe_start, fingerprint, size_of, summary, write_start

CPU = [torch.device("cpu")]


@pytest.fixture
def start(tmp_path) -> dict:
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "bert" / "notes.txt").write_text("not read by a run")
    (tmp_path / "ims.npy").write_bytes(b"features")
    files = [tmp_path / "ims.npy", None, str(tmp_path / "bert"), tmp_path / "none.txt"]
    return describe_start("python train.py --seed 3", {"seed": 3}, files, CPU)


def test_the_record_holds_command_settings_machine_versions_and_every_file_that_is_read(start, tmp_path):
    assert start["command"] == "python train.py --seed 3" and start["settings"] == {"seed": 3}
    assert start["host"] == socket.gethostname() and start["gpus"] == []
    assert start["versions"]["torch"].startswith(torch.__version__.partition("+")[0])
    assert start["versions"]["numpy"] == np.__version__
    assert start["data"] == {
        str(tmp_path / "ims.npy"): {"bytes": 8, "fingerprint": hashlib.sha256(b"8features").hexdigest()},
        str(tmp_path / "bert/model.safetensors"): {"bytes": 7, "fingerprint": hashlib.sha256(b"7weights").hexdigest()},
    }


def test_gpus_are_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"GPU {device.index}")
    devices = [torch.device("cuda", index) for index in range(2)]
    assert describe_start("", {}, [], devices)["gpus"] == ["GPU 0", "GPU 1"]


def test_the_summary_says_the_same_in_short(start):
    start |= {"commit": "0123456789abcdef-dirty", "gpus": ["GPU 0"]}
    text = "\n".join(summary(start))
    for part in ("python train.py --seed 3", "GPU 0", "commit 0123456789ab with changes", "ims.npy 8 B "):
        assert part in text
    assert start["data"][next(iter(start["data"]))]["fingerprint"][:8] in text


def test_a_run_that_goes_on_keeps_its_starts_and_a_new_one_does_not(start, tmp_path):
    write_start(tmp_path, start, 0)
    write_start(tmp_path, start | {"host": "another"}, 40)
    written = json.loads((tmp_path / "config.json").read_text())
    assert [(each["step"], each["host"]) for each in written["starts"]] == [(0, start["host"]), (40, "another")]
    assert {name: written[name] for name in start} == start | {"host": "another"}
    write_start(tmp_path, start, 0)
    assert len(json.loads((tmp_path / "config.json").read_text())["starts"]) == 1
    (tmp_path / "config.json").write_text("{ damaged")
    write_start(tmp_path, start, 40)
    assert len(json.loads((tmp_path / "config.json").read_text())["starts"]) == 1


def test_the_commit_is_none_outside_of_git(monkeypatch, tmp_path):
    monkeypatch.setattr(record, "__file__", str(tmp_path / "lib" / "training" / "record.py"))
    assert record.commit() is None
    monkeypatch.setenv("PATH", "")
    assert record.commit() is None


def test_a_fingerprint_changes_with_the_size_and_with_what_a_block_holds(tmp_path):
    size, path = record.BLOCKS * record.BLOCK * 3, tmp_path / "large"
    found = set()
    for place, value in ((None, None), (0, 1), (size - 1, 1), (size // (record.BLOCKS - 1), 1)):
        with open(path, "wb") as file:
            file.truncate(size)
            if place is not None:
                file.seek(place)
                file.write(bytes([value]))
        found.add(fingerprint(path)["fingerprint"])
    with open(path, "wb") as file:
        file.truncate(size + 1)
    assert len(found | {fingerprint(path)["fingerprint"]}) == 5
    assert fingerprint(path) == fingerprint(path)


@pytest.mark.parametrize(
    ("count", "text"), [(35_600_000_000, "35.6 GB"), (2_500_000, "2.5 MB"), (7234, "7.2 kB"), (9, "9 B")]
)
def test_sizes_are_for_people(count, text):
    assert size_of(count) == text
