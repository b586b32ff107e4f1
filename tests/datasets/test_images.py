"""lib.datasets.images: every kind of file becomes RGB, broken files are named, missing files are found by name
alone."""

from __future__ import annotations

import os
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from lib.core.errors import InputError
from lib.datasets.images import ImageFolder, RawImages, check_image_list, find_images
from lib.files.images import ImageLimits, open_image, read_image

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (8, 9), dtype=np.uint8)
RGB = RNG.integers(0, 256, (8, 9, 3), dtype=np.uint8)
GREY_AS_RGB = np.repeat(GREY[:, :, None], 3, axis=2)


def _write_png16(path, samples: np.ndarray, colour_type: int) -> None:
    """A 16-bit PNG, (H, W, channels) of uint16; Pillow reads but does not write those with colour."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width = samples.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    header = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    )


def _photo(path, size=(160, 120)) -> None:
    Image.fromarray(RNG.integers(0, 256, (*size[::-1], 3), dtype=np.uint8)).save(path, quality=90)


def _same(path, expected: np.ndarray) -> None:
    image = read_image(path)
    assert image.dtype == np.uint8 and image.flags.writeable
    np.testing.assert_array_equal(image, expected)


# --- Decoding ---------------------------------------------------------------------------------------------------------


def test_rgb_files_are_read_as_they_are(tmp_path):
    Image.fromarray(RGB).save(tmp_path / "a.png")
    _same(tmp_path / "a.png", RGB)


def test_grey_files_repeat_their_level(tmp_path):
    Image.fromarray(GREY).save(tmp_path / "a.png")
    _same(tmp_path / "a.png", GREY_AS_RGB)
    Image.fromarray(GREY).save(tmp_path / "a.jpg", quality=100)
    assert np.ptp(read_image(tmp_path / "a.jpg"), axis=2).max() == 0


def test_black_and_white_files_become_0_and_255(tmp_path):
    Image.fromarray(GREY > 127).save(tmp_path / "a.png")
    _same(tmp_path / "a.png", np.where(GREY_AS_RGB > 127, 255, 0))


@pytest.mark.filterwarnings("error")
def test_palette_files_are_looked_up_and_their_transparency_ignored(tmp_path):
    image = Image.new("P", (9, 8))
    image.putdata((GREY % 4).ravel().tolist())
    colours = np.array([[10, 20, 30], [200, 0, 5], [7, 7, 7], [255, 128, 0]], dtype=np.uint8)
    image.putpalette(colours.tobytes())
    image.save(tmp_path / "a.png", transparency=b"\x00\x80\xff\x10")
    _same(tmp_path / "a.png", colours[GREY % 4])


def test_alpha_is_dropped_without_blending(tmp_path):
    rgba = np.dstack([RGB, GREY])
    rgba[0, 0, 3] = 0
    Image.fromarray(rgba).save(tmp_path / "a.png")
    _same(tmp_path / "a.png", RGB)
    Image.fromarray(np.dstack([GREY, RGB[:, :, 0]])).save(tmp_path / "b.png")
    _same(tmp_path / "b.png", GREY_AS_RGB)


def test_cmyk_files_are_converted(tmp_path):
    ink = np.zeros((8, 9, 4), dtype=np.uint8)
    ink[:, 3:, 0], ink[:, 6:, 3] = 255, 255  # white, cyan, black
    expected = np.full((8, 9, 3), 255)
    expected[:, 3:, 0], expected[:, 6:] = 0, 0
    Image.frombytes("CMYK", (9, 8), ink.tobytes()).save(tmp_path / "a.tif")
    _same(tmp_path / "a.tif", expected)
    for level in (0, 255):  # JPEGs store CMYK inverted
        Image.new("CMYK", (9, 8), (0, 0, 0, level)).save(tmp_path / "a.jpg", quality=100)
        assert np.abs(read_image(tmp_path / "a.jpg").astype(int) - (255 - level)).max() <= 2


def test_sixteen_bit_files_keep_their_high_byte(tmp_path):
    samples = RNG.integers(0, 65536, (8, 9, 4), dtype=np.uint16)
    high = (samples >> 8).astype(np.uint8)
    _write_png16(tmp_path / "grey.png", samples[:, :, :1], 0)
    _same(tmp_path / "grey.png", np.repeat(high[:, :, :1], 3, axis=2))
    _write_png16(tmp_path / "rgb.png", samples[:, :, :3], 2)
    _same(tmp_path / "rgb.png", high[:, :, :3])
    _write_png16(tmp_path / "rgba.png", samples, 6)
    _same(tmp_path / "rgba.png", high[:, :, :3])
    Image.fromarray(samples[:, :, 0]).save(tmp_path / "grey.tif")
    _same(tmp_path / "grey.tif", np.repeat(high[:, :, :1], 3, axis=2))


@pytest.mark.parametrize("pixels", [np.full((8, 9), 0.5, np.float32), np.full((8, 9), 1 << 20, np.int32)])
def test_floating_point_and_32_bit_files_are_refused(tmp_path, pixels):
    Image.fromarray(pixels).save(tmp_path / "a.tif")
    with pytest.raises(InputError, match="a.tif.*expected 8 or 16 bits"):
        read_image(tmp_path / "a.tif")


def test_exif_orientation_is_ignored(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # "rotate by 90 degrees to display"
    Image.fromarray(RGB).save(tmp_path / "turned.jpg", exif=exif)
    Image.fromarray(RGB).save(tmp_path / "plain.jpg")
    _same(tmp_path / "turned.jpg", read_image(tmp_path / "plain.jpg"))


@pytest.mark.parametrize("kept", [0, 3, 100, 0.5, -200, -2])
def test_truncated_jpeg_is_an_error_that_names_file_and_id(tmp_path, kept):
    path = tmp_path / "a.jpg"
    _photo(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept) if isinstance(kept, float) else kept])
    with pytest.raises(InputError, match=r"a\.jpg \(image id 42\): corrupt or truncated") as error:
        read_image(path, 42)
    assert "\n" not in str(error.value)


def test_corrupt_files_are_errors_that_name_file_and_id(tmp_path):
    path = tmp_path / "a.jpg"
    _photo(path)
    content = path.read_bytes()
    for broken in (b"\0" * 30 + content[30:], content[:3000] + b"\xff\xd8" * 50 + content[3100:], b"404 not found"):
        path.write_bytes(broken)
        with pytest.raises(InputError, match=r"a\.jpg \(image id 7\): corrupt or truncated"):
            read_image(path, 7)
    Image.fromarray(RGB).save(tmp_path / "b.png")
    content = bytearray((tmp_path / "b.png").read_bytes())
    content[50] ^= 0xFF
    (tmp_path / "b.png").write_bytes(content)
    with pytest.raises(InputError, match="b.png: corrupt or truncated"):
        read_image(tmp_path / "b.png")


def test_absent_file_is_an_error_that_names_file_and_id(tmp_path):
    with pytest.raises(InputError, match=r"absent\.jpg \(image id 3\): no such image file"):
        read_image(tmp_path / "absent.jpg", 3)


# --- Folders ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "val").mkdir()
    for name in ("a.png", "b.png", "val/c.png"):
        Image.fromarray(RGB).save(tmp_path / name)
    return ImageFolder(tmp_path, {"10": "a.png", "20": "b.png", "30": "val/c.png", "99": "elsewhere.png"}, [30, 10, 20])


def test_rows_are_found_through_their_ids(folder, tmp_path):
    assert [folder.path(row) for row in range(3)] == [tmp_path / "val/c.png", tmp_path / "a.png", tmp_path / "b.png"]
    assert len(folder) == 3
    np.testing.assert_array_equal(folder.read(1), RGB)


def test_check_passes_when_the_split_is_there_whatever_else_the_mapping_names(folder):
    assert folder.check() == 3
    assert folder.check([10, 30, 10]) == 2


def test_check_counts_missing_files_and_names_the_first(tmp_path):
    names = {i: f"{'ab'[i % 2]}/{i}.jpg" for i in range(10)}
    for sub in "ab":
        (tmp_path / sub).mkdir()
    (tmp_path / "a/0.jpg").touch()
    with pytest.raises(InputError) as error:
        ImageFolder(tmp_path, names, range(10)).check()
    assert f"{tmp_path}: 9 image files (a/2.jpg, a/4.jpg, a/6.jpg, …) of 10 missing" in str(error.value)


def test_check_counts_ids_without_a_mapping(tmp_path):
    with pytest.raises(InputError, match=r"2 image ids \(5, 6\) of 3 not in the id mapping"):
        ImageFolder(tmp_path, {"4": "a.jpg"}, [4, 5, 6]).check()
    with pytest.raises(InputError, match="image id 5: not in the id mapping"):
        ImageFolder(tmp_path, {"4": "a.jpg"}, [4, 5, 6]).path(1)


def test_check_reads_names_only_and_each_folder_once(folder, monkeypatch):
    listed, listdir = [], os.listdir
    with monkeypatch.context() as patch:
        patch.setattr(os, "listdir", lambda path: listed.append(str(path)) or listdir(path))
        patch.setattr(os, "stat", None)
        patch.setattr(Image, "open", None)
        folder.check()
    assert len(listed) == len(set(listed)) == 2


def test_image_list_is_checked_by_name(folder, tmp_path):
    (tmp_path / "list.txt").write_text("a.png\nval/c.png\n\n")
    assert check_image_list(tmp_path, tmp_path / "list.txt") == 2
    (tmp_path / "list.txt").write_text("a.png\nval/d.png\nnowhere/e.png\n")
    with pytest.raises(InputError, match=r"2 image files \(val/d.png, nowhere/e.png\) of 3 missing"):
        check_image_list(tmp_path, tmp_path / "list.txt")


def test_empty_or_absent_image_list_is_an_error(tmp_path):
    (tmp_path / "list.txt").write_text("\n")
    with pytest.raises(InputError, match="list.txt: the file is empty"):
        check_image_list(tmp_path, tmp_path / "list.txt")
    with pytest.raises(InputError, match="absent.txt: no such file"):
        check_image_list(tmp_path, tmp_path / "absent.txt")


def test_images_of_a_folder_are_found_in_subfolders_and_sorted(folder, tmp_path):
    (tmp_path / "notes.txt").touch()
    (tmp_path / "A.JPG").touch()
    assert find_images(tmp_path) == ["A.JPG", "a.png", "b.png", "val/c.png"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="empty: no image files"):
        find_images(tmp_path / "empty")
    with pytest.raises(InputError, match="absent: no such folder"):
        find_images(tmp_path / "absent")


def test_mapping_keys_that_are_no_integers_are_an_error(tmp_path):
    with pytest.raises(InputError, match="ids must be integers.*COCO_1"):
        ImageFolder(tmp_path, {"COCO_1": "a.jpg"})


# --- Input of an encoder ----------------------------------------------------------------------------------------------


def test_raw_images_are_decoded_and_handed_to_the_transform_with_the_generator(folder):
    seen = []
    images = RawImages(folder, lambda image, rng: seen.append((image, rng)) or torch.full((3, 2, 2), len(seen)))
    rng = np.random.default_rng(0)
    assert len(images) == 3
    assert images(2, rng)[0, 0, 0] == 1 and images(0)[0, 0, 0] == 2
    assert [generator for _, generator in seen] == [rng, None]
    for image, _ in seen:
        np.testing.assert_array_equal(image, RGB)


def test_a_broken_raw_image_is_an_error_that_names_file_and_id(folder, tmp_path):
    (tmp_path / "b.png").write_bytes(b"<html>404</html>")
    with pytest.raises(InputError, match=r"b\.png \(image id 20\): .* web page"):
        RawImages(folder, lambda image, rng: torch.zeros(3, 2, 2))(2)


def test_the_limit_of_one_image_does_not_outlast_it(tmp_path):
    _photo(tmp_path / "a.jpg")
    before = Image.MAX_IMAGE_PIXELS
    with open_image(tmp_path / "a.jpg", limits=ImageLimits(max_pixels=160 * 120)):
        assert Image.MAX_IMAGE_PIXELS == 160 * 120
    with pytest.raises(InputError, match="more than 9 pixels"):
        read_image(tmp_path / "a.jpg", limits=ImageLimits(max_pixels=9))
    assert Image.MAX_IMAGE_PIXELS == before
