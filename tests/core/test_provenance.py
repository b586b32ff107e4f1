"""Where results come from: versions, commit, date, devices, files."""

from __future__ import annotations

import datetime
import hashlib
import importlib.metadata
import json
import re

import numpy as np
import pytest
import torch

from lib.core import provenance
from lib.core.errors import InputError


def test_a_record_is_plain_json_that_names_versions_commit_date_host_devices_and_files(tmp_path):
    (tmp_path / "a.txt").write_text("a ball\n")
    files = [tmp_path / "a.txt", None]  # a file that a split may lack
    record = provenance.provenance([torch.device("cpu")], files)
    assert json.loads(json.dumps(record)) == record
    assert record["versions"]["numpy"] == np.__version__
    assert record["versions"]["torch"] == importlib.metadata.version("torch")
    assert record["commit"] is None or re.fullmatch(r"[0-9a-f]{40}(-dirty)?", record["commit"])
    age = datetime.datetime.now(datetime.UTC) - datetime.datetime.fromisoformat(record["date"])
    assert 0 <= age.total_seconds() < 60
    assert len(record["devices"]) == 1 and record["devices"][0]
    digest = hashlib.sha256(b"a ball\n").hexdigest()
    assert record["files"] == [{"path": str(tmp_path / "a.txt"), "bytes": 7, "sha256": digest}]


def test_a_large_file_is_known_by_its_size_and_blocks_from_its_first_to_its_last_byte(tmp_path, monkeypatch):
    monkeypatch.setattr(provenance, "WHOLE", 100)
    monkeypatch.setattr(provenance, "BLOCK", 10)
    monkeypatch.setattr(provenance, "BLOCKS", 3)
    content = bytes(range(101))
    (tmp_path / "a").write_bytes(content)
    blocks = content[:10] + content[45:55] + content[91:]
    expected = hashlib.sha256(blocks).hexdigest()
    assert provenance.file_record(tmp_path / "a") == {
        "path": str(tmp_path / "a"), "bytes": 101, "sha256_of_3_blocks": expected,
    }  # fmt: skip


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match="none: cannot be read"):
        provenance.file_record(tmp_path / "none")


def test_outside_a_clone_there_is_no_commit(tmp_path, monkeypatch):
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "provenance.py"))
    assert provenance.commit() is None
