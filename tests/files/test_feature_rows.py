"""Features files written row by row: any order, other runs, kills at every moment, full disks."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lib.core.errors import InputError
from lib.files import feature_rows
from lib.files.feature_rows import FeatureRows

IDS, REGIONS, DIM = [12, 10, 11], 3, 8


def features(image_id: int, count: int = REGIONS) -> np.ndarray:
    return np.random.default_rng(image_id).random((count, DIM)).astype(np.float32)


def boxes(image_id: int, count: int = REGIONS) -> np.ndarray:
    return np.random.default_rng(-image_id % 1000).random((count, 4)).astype(np.float32)


def begin(folder: Path, ids: list[int] = IDS, **settings) -> FeatureRows:
    """Files with boxes, new ones or those of an earlier run."""
    rows = FeatureRows(folder, "train", ids, settings, "name another folder")
    rows.resume()
    if not rows.finished and not rows.kinds:
        rows.create(boxes=("float32", (REGIONS, 4)), ims=("float32", (REGIONS, DIM)))
    return rows


def write(rows: FeatureRows, image_id: int, count: int = REGIONS) -> None:
    rows.write(image_id, boxes=boxes(image_id, count), ims=features(image_id, count))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_rows_may_be_written_in_any_order_and_end_under_their_names(tmp_path):
    with begin(tmp_path) as rows:
        for image_id in (10, 11, 12):
            assert "train_ims.npy" not in names(tmp_path)
            write(rows, image_id)
    assert names(tmp_path) == ["train_boxes.npy", "train_ims.json", "train_ims.npy"]
    np.testing.assert_array_equal(np.load(tmp_path / "train_ims.npy"), np.stack([*map(features, IDS)]))
    np.testing.assert_array_equal(np.load(tmp_path / "train_boxes.npy"), np.stack([*map(boxes, IDS)]))
    assert begin(tmp_path).finished


def test_what_an_image_lacks_is_zero_and_masked(tmp_path):
    with begin(tmp_path) as rows:
        write(rows, 10, 1)
        write(rows, 11)
        write(rows, 12, 2)
    assert np.load(tmp_path / "train_mask.npy").tolist() == [[True, True, False], [True, False, False], [True] * 3]
    ims = np.load(tmp_path / "train_ims.npy")
    np.testing.assert_array_equal(ims[0, :2], features(12, 2))
    assert not ims[0, 2:].any() and not ims[1, 1:].any()


def test_rows_written_after_the_last_flush_of_a_killed_run_are_written_again(tmp_path):
    killed = begin(tmp_path)
    write(killed, 10)
    killed.flush()
    write(killed, 11)
    del killed
    resumed = begin(tmp_path)
    assert resumed.missing() == [12, 11] and resumed.lacks(11) and not resumed.lacks(10) and not resumed.lacks(99)


@pytest.mark.parametrize("renamed", [[], ["boxes.npy"], ["boxes.npy", "ims.npy"]])
def test_a_run_killed_while_renaming_is_finished_by_the_next(tmp_path, renamed):
    killed = begin(tmp_path)
    for image_id in IDS:
        write(killed, image_id)
    killed.flush()
    for name in renamed:
        (tmp_path / f"train_{name}.part").rename(tmp_path / f"train_{name}")
    with begin(tmp_path) as resumed:
        assert resumed.missing() == []
    assert names(tmp_path) == ["train_boxes.npy", "train_ims.json", "train_ims.npy"]
    np.testing.assert_array_equal(np.load(tmp_path / "train_ims.npy"), np.stack([*map(features, IDS)]))


def test_every_row_that_is_noted_survives_kill_9(tmp_path):
    """The note on disk never speaks of a row that isn't there."""
    code = """
import sys
from pathlib import Path
from lib.files import feature_rows
from tests.files.test_feature_rows import begin, write
feature_rows.FLUSH_BYTES = 500
rows = begin(Path(sys.argv[1]), list(range(100_000)))
for image_id in range(100_000):
    write(rows, image_id)
    if image_id == 20:
        print("started", flush=True)
"""
    with subprocess.Popen([sys.executable, "-c", code, tmp_path], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "started\n"
        os.kill(process.pid, signal.SIGKILL)
    resumed = begin(tmp_path, list(range(100_000)))
    assert 20 <= (done := np.count_nonzero(resumed.counts)) < 100_000
    ims = np.load(tmp_path / "train_ims.npy.part", mmap_mode="r")
    for image_id in range(done):
        np.testing.assert_array_equal(ims[image_id], features(image_id))


def test_memory_is_released_after_some_bytes_or_seconds(tmp_path, monkeypatch):
    flushed = []
    monkeypatch.setattr(FeatureRows, "flush", lambda self: flushed.append(self._unflushed))
    rows = begin(tmp_path)
    write(rows, 10)
    assert flushed == []
    monkeypatch.setattr(feature_rows, "FLUSH_BYTES", 200)
    write(rows, 11)
    assert flushed == [2 * 4 * REGIONS * (DIM + 4)]
    monkeypatch.setattr(feature_rows, "FLUSH_BYTES", 1 << 20)
    monkeypatch.setattr(feature_rows, "FLUSH_SECONDS", -1)
    write(rows, 12)
    assert len(flushed) == 2


def test_other_settings_and_other_origin_are_refused(tmp_path):
    begin(tmp_path, dtype="float32")
    with pytest.raises(InputError, match="train_ims.npy.part: made with other settings .dtype float32 there, None now"):
        begin(tmp_path)
    with begin(tmp_path, dtype="float32") as rows:
        for image_id in IDS:
            write(rows, image_id)
    with pytest.raises(InputError, match="train_ims.npy: made with other settings .*; name another folder"):
        begin(tmp_path, dtype="float16")
    (tmp_path / "train_ims.json").write_text("[1]")
    with pytest.raises(InputError, match="train_ims.json: not a record of this command"):
        begin(tmp_path, dtype="float32")
    (tmp_path / "train_ims.json").unlink()
    with pytest.raises(InputError, match="train_ims.npy: already there, and not from this command"):
        begin(tmp_path, dtype="float32")


@pytest.mark.parametrize("damage", [{"regions": "3 x 0"}, {"regions": "3"}, {"kinds": None}])
def test_a_broken_record_is_named(tmp_path, damage):
    begin(tmp_path)
    record = tmp_path / "train_ims.json.part"
    record.write_text(json.dumps(json.loads(record.read_text()) | damage))
    with pytest.raises(InputError, match="train_ims.npy.part: broken .*; delete train_ims.json.part to start again"):
        begin(tmp_path)


def test_overwriting_keeps_the_finished_files_until_the_new_ones_are_complete(tmp_path):
    with begin(tmp_path) as rows:
        for image_id in IDS:
            write(rows, image_id, 2)
    before = (tmp_path / "train_ims.npy").read_bytes()
    again = FeatureRows(tmp_path, "train", IDS, {}, "")
    again.resume(overwrite=True)
    again.create(boxes=("float32", (REGIONS, 4)), ims=("float32", (REGIONS, DIM)))
    write(again, 10)
    again.flush()
    assert (tmp_path / "train_ims.npy").read_bytes() == before
    with begin(tmp_path) as resumed:
        for image_id in resumed.missing():
            write(resumed, image_id)
    assert names(tmp_path) == ["train_boxes.npy", "train_ims.json", "train_ims.npy"]  # no mask: all have 3 regions


def test_a_disk_that_is_full_leaves_nothing_behind(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(InputError, match="train_ims.npy: cannot be written .No space left on device"):
        begin(tmp_path)
    assert names(tmp_path) == []
