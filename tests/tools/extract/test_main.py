"""lib.tools.extract: the features equal the backbone's, runs resume, nothing is overwritten, captions match."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lib.core.errors import InputError
from lib.datasets.images import ImageFolder
from lib.datasets.splits import open_split
from lib.encoders.backbones import build_backbone
from lib.encoders.grid import grid_transform
from lib.tools.extract import extraction as module
from lib.tools.extract.__main__ import main
from lib.tools.extract.extraction import Plan, extract
from tests.helpers import error_line


class Counting:
    """A cheap backbone, images (B, 3, S, S) → (B, 3, S/16, S/16), that counts images and can break off."""

    def __init__(self, fail_after: int | None = None, error: type[BaseException] = KeyboardInterrupt):
        self.seen, self.fail_after, self.error = 0, fail_after, error

    def __call__(self, images):
        if self.fail_after is not None and self.seen + len(images) > self.fail_after:
            raise self.error
        self.seen += len(images)
        return torch.nn.functional.avg_pool2d(images, 16)


@pytest.fixture
def images(tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    names = {100 - i: f"{i}.png" for i in range(7)}
    for name in names.values():
        Image.fromarray(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(tmp_path / "images" / name)
    return ImageFolder(tmp_path / "images", names)


def _extract(images, out, backbone=None, **options):
    options = {"backbone_source": "wsl", "input_scale_factor": 0.125, "batch_size": 2, "dtype": "float32", **options}
    return extract(backbone or Counting(), images, out, "train", Plan(**options))


def eval_transform(image, source, factor):
    return grid_transform({"backbone_source": source, "input_scale_factor": factor})(image)


def _main(*argv):
    return main([str(arg) for arg in argv])


# --- Features ---------------------------------------------------------------------------------------------------------


def test_row_i_holds_the_cells_of_image_i_row_by_row(images, tmp_path):
    path = _extract(images, tmp_path / "out")
    features = np.load(path, allow_pickle=False)
    assert path.name == "train_ims.npy" and features.shape == (7, 4, 3) and features.dtype == np.float32
    for row in range(7):
        feature_map = Counting()(eval_transform(images.read(row), "wsl", 0.125)[None])[0]  # (3, 2, 2)
        expected = [feature_map[:, y, x].tolist() for y in range(2) for x in range(2)]
        np.testing.assert_allclose(features[row], expected, rtol=1e-6)


def test_float16_rows_are_the_rounded_float32_rows(images, tmp_path):
    exact = np.load(_extract(images, tmp_path / "a"))
    half = np.load(_extract(images, tmp_path / "b", dtype="float16"))
    assert half.dtype == np.float16
    np.testing.assert_array_equal(half, exact.astype(np.float16))


def test_batch_size_and_workers_change_nothing(images, tmp_path):
    first = _extract(images, tmp_path / "a", batch_size=3)
    second = _extract(images, tmp_path / "b", batch_size=7, workers=2)
    np.testing.assert_array_equal(np.load(first), np.load(second))


def test_pool_averages_the_cells(images, tmp_path):
    cells = np.load(_extract(images, tmp_path / "a"))
    pooled = np.load(_extract(images, tmp_path / "b", pool=1))
    np.testing.assert_allclose(pooled[:, 0], cells.mean(1), rtol=1e-5, atol=1e-6)
    with pytest.raises(InputError, match="only 2 × 2 cells"):
        _extract(images, tmp_path / "c", pool=3)


def test_features_that_overflow_are_an_error_that_names_the_images(images, tmp_path):
    with pytest.raises(InputError, match="image ids 100 … 99: features beyond float16"):
        _extract(images, tmp_path / "out", backbone=lambda x: Counting()(x) * 1e6, dtype="float16")


# --- Resuming ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_run_goes_on_without_repeating_a_row(images, tmp_path, error):
    whole = np.load(_extract(images, tmp_path / "whole"))
    with pytest.raises(error):
        _extract(images, tmp_path / "out", Counting(fail_after=4, error=error))
    assert not (tmp_path / "out" / "train_ims.npy").exists()  # no half of a file under the final name
    rest = Counting()
    path = _extract(images, tmp_path / "out", rest, batch_size=3)
    assert rest.seen == 3
    np.testing.assert_array_equal(np.load(path), whole)
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["train_ims.json", "train_ims.npy"]


def test_rows_that_were_not_recorded_are_done_again(images, tmp_path):
    """What a killed run leaves: rows in the file beyond the number in the record."""
    with pytest.raises(KeyboardInterrupt):
        _extract(images, tmp_path / "out", Counting(fail_after=4))
    record = tmp_path / "out" / "train_ims.json.part"
    content = json.loads(record.read_text())
    assert content["regions"] == "4 4 4 4 0 0 0"
    record.write_text(json.dumps({**content, "regions": "4 4 0 0 0 0 0"}))
    rest = Counting()
    path = _extract(images, tmp_path / "out", rest)
    assert rest.seen == 5
    np.testing.assert_array_equal(np.load(path), np.load(_extract(images, tmp_path / "whole")))


def test_a_corrupt_image_keeps_the_rows_before_it_and_the_run_goes_on_once_it_is_mended(images, tmp_path):
    path = images.path(5)
    content = path.read_bytes()
    path.write_bytes(content[:50])
    for workers in (0, 1):
        with pytest.raises(InputError) as error:
            _extract(images, tmp_path / "out", workers=workers)
        assert str(error.value).startswith(f"{path} (image id 95): corrupt or truncated") and "\n" not in str(
            error.value
        )
    path.write_bytes(content)
    rest = Counting()
    _extract(images, tmp_path / "out", rest)
    assert rest.seen == 3


def test_a_complete_file_is_left_as_it_is(images, tmp_path):
    path = _extract(images, tmp_path / "out")
    before = path.stat().st_mtime_ns
    again = Counting()
    assert _extract(images, tmp_path / "out", again) == path
    assert again.seen == 0 and path.stat().st_mtime_ns == before


@pytest.mark.parametrize("complete", [True, False])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input_scale_factor": 0.25}, "input_size 32 there, 64 now"),
        ({"dtype": "float16"}, "dtype float32 there, float16 now"),
        ({"backbone_source": "detector"}, "backbone_source wsl there, detector now"),
        ({"depends": {"weights": "abc"}}, "weights None there, abc now"),
        ({"pool": 1}, "pool None there, 1 now"),
    ],
)
def test_other_settings_are_refused(images, tmp_path, complete, change, message):
    if complete:
        _extract(images, tmp_path / "out")
    else:
        with pytest.raises(KeyboardInterrupt):
            _extract(images, tmp_path / "out", Counting(fail_after=2))
    before = {file: file.read_bytes() for file in (tmp_path / "out").iterdir()}
    with pytest.raises(InputError, match=message):
        _extract(images, tmp_path / "out", **change)
    assert before == {file: file.read_bytes() for file in (tmp_path / "out").iterdir()}


def test_other_images_are_refused(images, tmp_path):
    _extract(images, tmp_path / "out")
    with pytest.raises(InputError, match="names .* there"):
        _extract(ImageFolder(images.folder, images.names, images.ids[::-1]), tmp_path / "out")


def test_a_features_file_of_other_origin_is_never_overwritten(images, tmp_path):
    (tmp_path / "train_ims.npy").write_bytes(b"regions")
    with pytest.raises(InputError, match="not from this command"):
        _extract(images, tmp_path)
    assert (tmp_path / "train_ims.npy").read_bytes() == b"regions"


def test_a_truncated_part_is_an_error_and_not_filled_up_with_zeros(images, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        _extract(images, tmp_path / "out", Counting(fail_after=4))
    part = tmp_path / "out" / "train_ims.npy.part"
    part.write_bytes(part.read_bytes()[:-40])
    with pytest.raises(InputError, match="train_ims.npy.part: broken"):
        _extract(images, tmp_path / "out")


def test_a_disk_that_is_too_small_is_told_before_a_row_is_written(images, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 100}))
    with pytest.raises(InputError, match="needs .* GB, the disk has .*--dtype float16"):
        _extract(images, tmp_path / "out")
    assert not (tmp_path / "out" / "train_ims.npy.part").exists()


def test_missing_images_are_told_before_the_backbone_runs(images, tmp_path):
    images.path(3).unlink()
    backbone = Counting()
    with pytest.raises(InputError, match=r"1 image files \(3.png\) of 7 missing"):
        _extract(images, tmp_path / "out", backbone)
    assert backbone.seen == 0


# --- Command line -----------------------------------------------------------------------------------------------------

TINY = ("--backbone_source", "tiny", "--input_scale_factor", 0.25, "--workers", 0, "--device", "cpu")


def _data_set(root, images, captions_per_image=2):
    """A data set of the first four images whose features are elsewhere, ids repeated for each caption."""
    ids = images.ids[:4]
    (root / "precomp").mkdir(parents=True)
    (root / "precomp" / "dev_ids.txt").write_text("".join(f"{i}\n" * captions_per_image for i in ids))
    lines = [f"caption {j} of {i}\n" for i in ids for j in range(captions_per_image)]
    (root / "precomp" / "dev_caps.txt").write_text("".join(lines))
    (root / "id_mapping.json").write_text(json.dumps({str(i): name for i, name in images.names.items()}))
    images.folder.rename(root / "flickr30k-images")
    return ("--data_path", root, "--data_name", "f30k", "--split", "dev")


def test_a_folder_of_images_becomes_a_features_file_with_ids_and_a_mapping(images, tmp_path, capsys):
    path = _main(*TINY, "--images", images.folder, "--out", tmp_path / "out")
    features = np.load(path, allow_pickle=False)
    assert features.shape == (7, 4, 2048) and features.dtype == np.float16
    assert "7 images, 4 cells each" in capsys.readouterr().out
    assert (tmp_path / "out" / "all_ids.txt").read_text().split() == [str(i) for i in range(7)]
    assert json.loads((tmp_path / "out" / "all_id_mapping.json").read_text()) == {str(i): f"{i}.png" for i in range(7)}
    torch.manual_seed(0)
    backbone = build_backbone("tiny")
    with torch.no_grad():
        expected = backbone(eval_transform(images.read(2), "tiny", 0.25)[None]).flatten(2).transpose(1, 2)[0]
    np.testing.assert_allclose(features[2], expected, rtol=2e-3, atol=1e-3)


def test_features_of_a_data_set_open_as_a_split_with_its_captions(images, tmp_path):
    data_set = _data_set(tmp_path / "f30k", images)
    _main(*TINY, *data_set, "--out", tmp_path / "grid" / "precomp")
    original = open_split(tmp_path / "f30k", "f30k", "dev", need_features=False)
    opened = open_split(tmp_path / "grid", "f30k", "dev", img_dim=2048)
    assert opened.captions == original.captions and opened.image_ids.tolist() == [100, 99, 98, 97]
    assert opened.image_of_caption.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert len(opened.features) == 4 and opened.features.row(0)[0].shape == (4, 2048)
    assert opened.features.row(0)[0].std() > 0


def test_ids_and_mapping_name_the_images_and_their_order(images, tmp_path, capsys):
    (tmp_path / "ids.txt").write_text("96\n96\n100\n")
    (tmp_path / "mapping.json").write_text(json.dumps({str(i): name for i, name in images.names.items()}))
    named = ("--images", images.folder, "--ids", tmp_path / "ids.txt", "--id_mapping", tmp_path / "mapping.json")
    (tmp_path / "file").touch()
    lost = ("--split", "few", "--out", tmp_path / "file" / "out")
    assert "cannot be written" in error_line(main, [*TINY, *named, *lost], capsys)
    few = ("--split", "few", "--out", tmp_path / "few", "--max_pixels", 10)
    assert "more than 10 pixels" in error_line(main, [*TINY, *named, *few], capsys)
    some = np.load(_main(*TINY, *named, "--split", "some", "--out", tmp_path / "out"))
    every = np.load(_main(*TINY, "--images", images.folder, "--out", tmp_path / "out"))
    assert (tmp_path / "out" / "some_ids.txt").read_text() == "96\n100\n"
    np.testing.assert_array_equal(some, every[[4, 0]])


def test_the_command_goes_on_after_an_interruption(images, tmp_path, monkeypatch):
    argv = (*TINY, "--images", images.folder, "--out", tmp_path / "out", "--batch_size", 2)
    read = ImageFolder.read

    def interrupted(self, row, *decode):
        if row == 4:
            raise KeyboardInterrupt
        return read(self, row, *decode)

    monkeypatch.setattr(ImageFolder, "read", interrupted)
    with pytest.raises(SystemExit) as stopped:
        _main(*argv)
    assert stopped.value.code == 130
    rows = []
    monkeypatch.setattr(ImageFolder, "read", lambda self, row, *decode: rows.append(row) or read(self, row))
    _main(*argv)
    assert rows == [4, 5, 6]


def test_texts_and_masks_of_other_features_are_never_mixed_with_these(images, tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    (out / "all_ids.txt").write_text("5\n")
    with pytest.raises(SystemExit):
        _main(*TINY, "--images", images.folder, "--out", out)
    assert "all_ids.txt: already there with other content" in capsys.readouterr().err
    (out / "all_ids.txt").unlink()
    (out / "all_mask.npy").touch()
    with pytest.raises(SystemExit):
        _main(*TINY, "--images", images.folder, "--out", out)
    assert "all_mask.npy of other features" in capsys.readouterr().err
    assert [file.name for file in out.iterdir()] == ["all_mask.npy"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("--data_path", "x"), "--data_path and --data_name belong together"),
        (("--data_path", "x", "--data_name", "f30k"), "--split names the images"),
        ((), "no images"),
        (("--images", "x", "--ids", "y"), "--ids needs --id_mapping"),
        (("--images", "x"), "x: no such folder"),
        (("--images", "x", "--split", "../a"), "expected a plain name"),
        (("--images", "x", "--batch_size", "0"), "--batch_size: '0' is not a whole number of at least 1"),
        (("--images", ".", "--input_scale_factor", "0"), "is not a finite number from 0.00390625 to 64"),
    ],
)
def test_wrong_options_are_one_line_and_exit_code_2(images, monkeypatch, capsys, argv, message):
    monkeypatch.chdir(images.folder)
    with pytest.raises(SystemExit) as stopped:
        _main("--backbone_source", "tiny", "--out", "out", *argv)
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and message in error and error.count("\n") == 1
    assert not Path("out").exists()


def test_the_detector_asks_for_its_weights_before_anything_is_written(images, tmp_path, capsys):
    with pytest.raises(SystemExit):
        _main("--backbone_source", "detector", "--images", images.folder, "--out", tmp_path / "out")
    assert "--backbone_path" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_digest_tells_other_weights_apart_and_not_where_they_lie():
    backbone = build_backbone("tiny")
    digest = module.weights_digest(backbone)
    assert digest == module.weights_digest(backbone.to(memory_format=torch.channels_last))
    with torch.no_grad():
        backbone.layer3[0].bn2.running_mean[0] += 1
    assert digest != module.weights_digest(backbone)
