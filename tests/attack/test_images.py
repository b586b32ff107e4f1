"""Image files that must not be read, and names that lead elsewhere: one line each, nothing started, no memory taken."""

from __future__ import annotations

import io
import os
import socket
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from lib.core.errors import InputError
from lib.datasets.images import ImageFolder, check_image_list, find_images
from lib.encoders.transforms import ClipTransform
from lib.files.images import FORMATS, ImageLimits, open_image, read_image
from tests.attack.refusals import one_line, refuses

HEIGHT, WIDTH = 30, 40
PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8))
MODES = {"JPEG": ("RGB", "L", "CMYK"), "PNG": ("RGB", "L", "P", "1", "RGBA", "I;16"), "BMP": ("RGB", "L", "1"),
         "TIFF": ("RGB", "CMYK", "P"), "WEBP": ("RGB", "RGBA")}  # fmt: skip
OTHERS = ("EPS", "PDF", "GIF", "PPM", "ICO", "TGA", "SGI", "PCX", "IM", "DDS", "SPIDER", "XBM", "MSP")


def saved(kind: str, mode: str = "RGB", picture: Image.Image = PICTURE) -> bytes:
    file = io.BytesIO()
    (picture.convert("L") if mode == "I;16" else picture).convert(mode).save(file, kind)
    return file.getvalue()


def png(width: int, height: int) -> bytes:
    """A PNG that claims this size, whatever its data."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")


def bmp(width: int, height: int) -> bytes:
    data = bytearray(saved("BMP"))
    data[18:26] = struct.pack("<ii", width, height)
    return bytes(data)


def jpeg(width: int, height: int) -> bytes:
    data = saved("JPEG")
    size = struct.pack(">HH", HEIGHT, WIDTH)
    assert data.count(size) == 1
    return data.replace(size, struct.pack(">HH", height, width))


def tiff(width: int, height: int) -> bytes:
    data = saved("TIFF")
    for tag, old, new in ((256, WIDTH, width), (257, HEIGHT, height)):
        entry = struct.pack("<HHII", tag, 4, 1, old)
        assert data.count(entry) == 1
        data = data.replace(entry, struct.pack("<HHII", tag, 4, 1, new))
    return data


def webp(width: int, height: int) -> bytes:
    file = io.BytesIO()
    PICTURE.save(file, "WEBP", lossless=True)
    data = bytearray(file.getvalue())
    assert data[12:16] == b"VP8L" and data[20] == 0x2F
    data[21:25] = struct.pack("<I", (width - 1) | (height - 1) << 14)
    return bytes(data)


CLAIMS = {"PNG": png, "BMP": bmp, "JPEG": jpeg, "TIFF": tiff, "WEBP": webp}


def write(folder: Path, data: bytes) -> Path:
    path = folder / "a.jpg"
    path.write_bytes(data)
    return path


@pytest.fixture
def undecoded(monkeypatch):
    """An image that is decoded is another error than the one that is awaited."""
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("it was decoded"))


# --- What is in a file ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", OTHERS)
@pytest.mark.filterwarnings("ignore:IM image format")
def test_a_file_of_another_format_is_never_opened_whatever_its_name(kind, tmp_path):
    path = write(tmp_path, saved(kind, "1" if kind in ("XBM", "MSP") else "RGB"))
    refuses(lambda: read_image(path, 7), f"{path} (image id 7)", ", ".join(FORMATS))


@pytest.mark.parametrize("part", [0, 0.002, 0.02, 0.1, 0.5, 0.97])
@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.filterwarnings("ignore")
def test_a_cut_file_is_refused(kind, part, tmp_path):
    data = saved(kind)
    path = write(tmp_path, data[: int(part * len(data))])
    refuses(lambda: read_image(path, 7), f"{path} (image id 7)", "corrupt or truncated")


@pytest.mark.parametrize("place", range(0, 100, 9))
@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.filterwarnings("ignore")
def test_a_flipped_bit_raises_nothing_else_and_leaves_the_type(kind, place, tmp_path):
    data = bytearray(saved(kind))
    data[place * len(data) // 100] ^= 1 << place % 8
    path = write(tmp_path, bytes(data))
    try:
        image = read_image(path, limits=ImageLimits(max_pixels=100_000))
    except InputError as error:
        one_line(error, str(path))
    else:
        assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3


@pytest.mark.parametrize(("kind", "mode"), [(kind, mode) for kind, modes in MODES.items() for mode in modes])
def test_an_image_at_the_limit_is_read_and_one_above_it_is_not_decoded(kind, mode, tmp_path, undecoded):
    path = write(tmp_path, saved(kind, mode))
    with open_image(path, limits=ImageLimits(max_pixels=HEIGHT * WIDTH)) as image:
        assert image.size == (WIDTH, HEIGHT)
    refuses(
        lambda: read_image(path, limits=ImageLimits(max_pixels=HEIGHT * WIDTH - 1)), str(path), "1,199", "--max_pixels"
    )


@pytest.mark.parametrize("size", [(7072, 7072), (12_000, 12_000), (16_000, 16_000), (16_383, 3053), (3053, 16_383)])
@pytest.mark.parametrize("kind", CLAIMS)
def test_a_small_file_that_claims_more_than_50_million_pixels_is_not_decoded(kind, size, tmp_path, undecoded):
    path = write(tmp_path, CLAIMS[kind](*size))
    refuses(lambda: read_image(path), str(path), "more than 50,000,000 pixels", "--max_pixels")


@pytest.mark.parametrize(("kind", "size"), [("PNG", (0, 5)), ("PNG", (5, 0)), ("BMP", (0, 5)), ("TIFF", (0, 5)),
                                            ("JPEG", (0, 5)), ("JPEG", (5, 0))])  # fmt: skip
def test_an_image_without_pixels_is_refused(kind, size, tmp_path):
    path = write(tmp_path, CLAIMS[kind](*size))
    refuses(lambda: read_image(path), str(path), "corrupt or truncated")


@pytest.mark.parametrize("size", [(100_000, 1), (1, 30_000)])
def test_a_line_that_would_become_huge_for_clip_is_not_resized(size, tmp_path):
    path = write(tmp_path, saved("PNG", picture=Image.new("L", size)))
    refuses(lambda: read_image(path, decode=ClipTransform(224).decode), str(path), "--max_pixels")
    assert read_image(path).shape == (*size[::-1], 3)


@pytest.mark.parametrize(
    "kind", ["a folder", "a pipe", "a socket", "a device", "a link to a device", "a link to itself"]
)
def test_what_is_no_regular_file_is_refused_without_waiting(kind, tmp_path, monkeypatch):
    path = tmp_path / "a.jpg"
    monkeypatch.chdir(tmp_path)  # a socket's name is short
    make: dict[str, Callable] = {
        "a folder": path.mkdir,
        "a pipe": lambda: os.mkfifo(path),
        "a socket": lambda: socket.socket(socket.AF_UNIX).bind(path.name),
        "a link to a device": lambda: path.symlink_to("/dev/zero"),
        "a link to itself": lambda: path.symlink_to(path),
    }
    if kind == "a device":
        path = Path("/dev/zero")
    else:
        make[kind]()
    refuses(lambda: read_image(path), str(path), "symbolic links" if kind == "a link to itself" else "no regular file")


# --- Where a name leads -----------------------------------------------------------------------------------------------


@pytest.fixture
def images(tmp_path) -> Path:
    """A folder with an image, and what lies beside it."""
    for folder in ("images/sub", "elsewhere"):
        (tmp_path / folder).mkdir(parents=True)
    for name in ("images/a.png", "images/sub/b.png", "elsewhere/c.png"):
        PICTURE.save(tmp_path / name)
    root = tmp_path / "images"
    (root / "link.png").symlink_to(tmp_path / "elsewhere/c.png")
    (root / "second.png").symlink_to("link.png")
    (root / "linked").symlink_to("../elsewhere")
    (root / "within.png").symlink_to("sub/b.png")
    (root / "loop").symlink_to(".")
    (tmp_path / "images2").mkdir()
    PICTURE.save(tmp_path / "images2/d.png")
    return root


INSIDE = ("a.png", "./a.png", "sub/b.png", "within.png", "loop/loop/a.png", "link.png", "second.png", "linked/c.png")
OUTSIDE = ("../elsewhere/c.png", "sub/../../elsewhere/c.png", "sub/../a.png", "../images2/d.png", "/elsewhere/c.png",
           "linked/../images2/d.png")  # fmt: skip
NO_NAMES = ("a\0.png", "\ud800.png", "sub\0/a.png", "\0")
NO_FILES = ("", ".", "..", "sub", "a" * 300 + ".png", "a.png/b.png", "\n.png", "\x1b[31m.png", "missing/x.png")


@pytest.mark.parametrize("name", INSIDE)
def test_a_name_that_stays_in_the_folder_is_read_through_links_too(name, images):
    folder = ImageFolder(images, {"7": name})
    assert folder.check() == 1 and folder.read(0).shape == (HEIGHT, WIDTH, 3)


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_name_that_may_leave_the_folder_is_read_only_if_allowed(name, images):
    name = str(images.parent) + name if name.startswith("/") else name
    folder = ImageFolder(images, {"7": name})
    refuses(folder.check, str(images), name[:20], "--allow_outside_images")
    refuses(lambda: folder.read(0), "image id 7", "--allow_outside_images")
    (images / "list.txt").write_text(f"a.png\n{name}\n")
    refuses(lambda: check_image_list(images, images / "list.txt"), "--allow_outside_images")
    allowed = ImageFolder(images, {"7": name}, limits=ImageLimits(outside=True))
    assert allowed.check() == 1 and allowed.read(0).shape == (HEIGHT, WIDTH, 3)


@pytest.mark.parametrize("outside", [False, True])
@pytest.mark.parametrize("name", [*NO_NAMES, *NO_FILES])
def test_a_name_of_no_image_is_one_line(name, outside, images):
    folder = ImageFolder(images, {"7": name}, limits=ImageLimits(outside=outside))
    refuses(lambda: folder.read(0), "image id 7")
    if name != "sub":  # it is there: that it is no file is seen when it is read
        refuses(folder.check, str(images))


def test_folders_that_are_linked_in_a_circle_are_walked_once(images):
    for number in range(20):
        (images / "sub" / f"back{number}").symlink_to("..")
    found = find_images(images)
    assert len(found) == len(set(found)) == 6
