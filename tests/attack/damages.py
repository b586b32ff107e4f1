"""Every way in which a file is damaged, or another file in its place: a new one joins by a line in DAMAGES.

Nothing but an InputError may come of any of them, and nothing in a file may run.
"""

from __future__ import annotations

import gzip
import io
import os
import pickle
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tests.attack.readers import BINARY, CHECKED, OPTIONAL, TEXT
from tests.files.test_pytorch import WritesToDisk

RAN = "ran"  # the folder that a file makes which runs
STRUCTURED, PRESENT, ALL, NONE = (CHECKED, BINARY), (CHECKED, BINARY, TEXT), (CHECKED, BINARY, TEXT, OPTIONAL), ()


class Damage(NamedTuple):
    """What is done to a file, and which promises of a format mean that it must be refused; under the others what is
    read must be of the same kind, and under CHECKED the same."""

    do: Callable[[Path], object]
    refused: tuple[str, ...]


def _flip(path: Path, place: float, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[int(place * (len(data) - 1))] ^= 1 << bit
    path.write_bytes(data)


def _cut(path: Path, part: float) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: min(int(part * len(data)), len(data) - 1)])


def _zeros(path: Path, start: float, stop: float) -> None:
    data = bytearray(path.read_bytes())
    first, last = int(start * len(data)), int(stop * len(data))
    data[first:last] = bytes(last - first)
    path.write_bytes(data)


def _swapped_halves(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[len(data) // 2 :] + data[: len(data) // 2])


def _replaced(path: Path, content: Callable[[bytes], bytes]) -> None:
    path.write_bytes(content(path.read_bytes()))


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _link(path: Path, target: str) -> None:
    path.unlink()
    path.symlink_to(target)


def _pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _zip(data: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("readme.txt", data)
    return file.getvalue()


def _tar(data: bytes) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        entry = tarfile.TarInfo("readme.txt")
        entry.size = len(data)
        archive.addfile(entry, io.BytesIO(data))
    return file.getvalue()


def _png(data: bytes) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(b"\0\0"))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + pixels + chunk(b"IEND", b"")


def _npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    return file.getvalue()


def _hostile(path: Path, protocol: int, zipped: bool = False) -> None:
    """A pickle that makes a folder where it is read without restraint."""
    data = pickle.dumps({"model": [WritesToDisk(path.parent / RAN)]}, protocol)
    path.write_bytes(data)
    if zipped:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", data)
            archive.writestr("archive/version", "3\n")


def _hostile_array(path: Path) -> None:
    path.write_bytes(_npy(np.array([WritesToDisk(path.parent / RAN)], dtype=object)))


_PLACES = (0, 1e-3, 0.01, 0.03, 0.1, 0.3, 0.5, 0.7, 0.9, 0.97, 0.99, 1)
DAMAGES = {
    **{f"bit {7 * n % 8} flipped at {place}": Damage(partial(_flip, place=place, bit=7 * n % 8), NONE)
       for n, place in enumerate(_PLACES)},
    **{f"cut to {part}": Damage(partial(_cut, part=part), STRUCTURED) for part in (1e-4, 0.01, 0.2, 0.5, 0.99, 1)},
    "empty": Damage(lambda path: path.write_bytes(b""), ALL),
    "missing": Damage(Path.unlink, PRESENT),
    "a folder": Damage(_folder, ALL),
    "a link to itself": Damage(lambda path: _link(path, path.name), ALL),
    "a pipe": Damage(_pipe, ALL),
    "a device": Damage(partial(_link, target="/dev/zero"), ALL),
    "zeros at the beginning": Damage(partial(_zeros, start=0, stop=0.1), STRUCTURED),
    "zeros at the end": Damage(partial(_zeros, start=0.9, stop=1), NONE),
    "all zeros": Damage(partial(_zeros, start=0, stop=1), STRUCTURED),
    "halves swapped": Damage(_swapped_halves, STRUCTURED),
    "doubled": Damage(partial(_replaced, content=lambda data: data + data), NONE),
    "bytes appended": Damage(partial(_replaced, content=lambda data: data + b"\xff\0\xff"), NONE),
    "bytes in front": Damage(partial(_replaced, content=lambda data: b"\xff\0\xff" + data), STRUCTURED),
    "noise": Damage(partial(_replaced, content=lambda data: np.random.default_rng(0).bytes(3000)), ALL),
    "a web page": Damage(partial(_replaced, content=lambda data: b"<!DOCTYPE html><html>404</html>\n"), STRUCTURED),
    "a Git LFS pointer": Damage(
        partial(_replaced, content=lambda data: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
        STRUCTURED),
    "a picture": Damage(partial(_replaced, content=_png), ALL),
    "gzip": Damage(partial(_replaced, content=lambda data: gzip.compress(data, mtime=0)), ALL),
    "a zip archive of it": Damage(partial(_replaced, content=_zip), STRUCTURED),
    "a tar archive of it": Damage(partial(_replaced, content=_tar), STRUCTURED),
    "deep JSON": Damage(partial(_replaced, content=lambda data: b"[" * 100_000), STRUCTURED),
    "a long number": Damage(partial(_replaced, content=lambda data: b"9" * 5000), STRUCTURED),
    "an array of objects": Damage(_hostile_array, STRUCTURED),
    **{f"a pickle that runs, protocol {protocol}": Damage(partial(_hostile, protocol=protocol), STRUCTURED)
       for protocol in range(pickle.HIGHEST_PROTOCOL + 1)},
    "a zipped pickle that runs": Damage(partial(_hostile, protocol=2, zipped=True), STRUCTURED),
}  # fmt: skip
