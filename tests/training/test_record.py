"""What a run was started with: config.json and its summary."""

from __future__ import annotations

import hashlib
import json
import socket

import numpy as np
import pytest
import torch

from lib.training.record import describe_start, size_of, summary, write_start

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
    assert start["host"] == socket.gethostname() and len(start["devices"]) == start["processes"] == 1
    assert start["versions"]["torch"].startswith(torch.__version__.partition("+")[0])
    assert start["versions"]["numpy"] == np.__version__
    assert start["files"] == [
        {"path": str(tmp_path / "ims.npy"), "bytes": 8, "sha256": hashlib.sha256(b"features").hexdigest()},
        {
            "path": str(tmp_path / "bert/model.safetensors"),
            "bytes": 7,
            "sha256": hashlib.sha256(b"weights").hexdigest(),
        },
    ]


def test_the_summary_says_the_same_in_short(start):
    start |= {"commit": "0123456789abcdef-dirty", "devices": ["GPU 0"]}
    text = "\n".join(summary(start))
    for part in ("python train.py --seed 3", "GPU 0", "commit 0123456789ab with changes", "ims.npy 8 B "):
        assert part in text
    assert start["files"][0]["sha256"][:8] in text


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


@pytest.mark.parametrize(
    ("count", "text"), [(35_600_000_000, "35.6 GB"), (2_500_000, "2.5 MB"), (7234, "7.2 kB"), (9, "9 B")]
)
def test_sizes_are_for_people(count, text):
    assert size_of(count) == text
