"""PyTorch files of unknown origin: read without running what they hold, loaded only where every weight fits."""

from __future__ import annotations

import argparse
import os
import re
import struct
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from lib.errors import InputError, listed, shown

_BEGINNINGS = {
    b"<": "a web page; the download went wrong, repeat it",
    b"version https://git-lfs": "a Git LFS pointer; fetch the file itself with 'git lfs pull'",
    b"\x1f\x8b": "a gzip archive; unpack it first",
    b"\x93NUMPY": "a NumPy array, not a checkpoint",
}
_NUMBERS = {"f2": "e", "f4": "f", "f8": "d", "b1": "?"} | {
    f"{kind}{size}": code
    for kind, codes in (("i", "bhiq"), ("u", "BHIQ"))
    for size, code in zip((1, 2, 4, 8), codes, strict=True)
}


class _NumberType:
    """Stands in for numpy.dtype while a file is read: the name and byte order of a number, nothing else."""

    def __init__(self, name, align=False, copy=True):
        self.name, self.order = name, "<"

    def __setstate__(self, state):
        self.order = ">" if state[1] == ">" else "<"


def _number(kind, data):
    """Stands in for numpy's scalar constructor (of NumPy 1 and 2): gives a plain Python number."""
    if not isinstance(kind, _NumberType) or kind.name not in _NUMBERS or not isinstance(data, bytes):
        raise ValueError("a NumPy value that is no plain number")
    return struct.unpack(kind.order + _NUMBERS[kind.name], data)[0]


class AllConfig:
    """Stands in for config.all_config.AllConfig, the settings in files of CLIP-based ESL: attributes alone."""


_ALLOWED = [
    argparse.Namespace,
    (AllConfig, "config.all_config.AllConfig"),
    (_NumberType, "numpy.dtype"),
    (_number, "numpy.core.multiarray.scalar"),
    (_number, "numpy._core.multiarray.scalar"),
]


def read_file(path: str | Path) -> object:
    """The content of a PyTorch file (zip or legacy form) on the CPU.

    Only tensors, plain values, argparse.Namespace, AllConfig and numpy numbers (which become Python's) are built.
    Raises InputError for everything else: no file, a damaged one, another format, objects that could run code.
    """
    path = Path(path)
    _check_beginning(path)
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(_ALLOWED):
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever random or hostile bytes provoke in the reader
        raise _refusal(path, error) from None


def _check_beginning(path: Path) -> None:
    """InputError where the first bytes tell that it is no PyTorch file, or a zip archive without one."""
    try:
        with open(path, "rb") as file:
            beginning = file.read(64)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise InputError(f"{path}: is a folder, expected a checkpoint; name a file in it, as model_best.pth") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    if not beginning:
        raise InputError(f"{path}: is empty, expected a checkpoint; copy or download it again")
    for start, what in _BEGINNINGS.items():
        if beginning.startswith(start):
            raise InputError(f"{path}: is {what}")
    if not beginning.startswith(b"PK\x03\x04"):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        raise InputError(f"{path}: is truncated or damaged; copy or download it again") from None
    if not any(os.path.basename(name) == "data.pkl" for name in names):
        raise InputError(
            f"{path}: is a zip archive of something else, expected a checkpoint; unpack it if it holds one"
        )


def _refusal(path: Path, error: Exception) -> InputError:
    text = str(error)
    if found := re.search(r"GLOBAL ([\w.]+)|(TorchScript)", text):
        what = found[1] or "a TorchScript program"
        return InputError(f"{path}: refused, since it holds more than tensors and plain values ({what}) and reading it "
                          "could run code; ask for a file with state dicts alone")  # fmt: skip
    reason = " ".join(text.split())
    if isinstance(error, EOFError) or re.search("EOF|reading file|PytorchStreamReader|storage of size", reason):
        return InputError(f"{path}: is truncated or damaged; copy or download it again")
    reason = shown(reason.rpartition("WeightsUnpickler error: ")[2].partition("Check the documentation")[0].strip())
    detail = f"{type(error).__name__}: {reason}" if reason else type(error).__name__
    return InputError(f"{path}: is not a PyTorch file, or damaged ({detail}); expected a checkpoint")


def load_strictly(network: nn.Module, weights: Mapping[str, Tensor], where: str, named=str, may_lack=lambda key: False):
    """Give a network its weights: all that it has places for, and no others.

    InputError that begins with `where` and names what is missing, left over or of another shape, each key as `named`
    says. The network keeps its own value for a key that the weights `may_lack`.
    """
    check_fit(network, weights, where, named, may_lack)
    network.load_state_dict({**{key: value for key, value in network.state_dict().items() if may_lack(key)}, **weights})


def check_fit(network: nn.Module, weights: Mapping[str, Tensor], where: str, named=str, may_lack=lambda key: False):
    """The checks of `load_strictly` alone."""
    places = {key: _shape(value) for key, value in network.state_dict().items()}
    found = {key: _shape(value) for key, value in weights.items()}
    problems = {
        "missing": [named(key) for key in places if key not in found and not may_lack(key)],
        "left over": [named(key) for key in found if key not in places],
        "of another shape": [
            f"{named(key)} {found[key]}, expected {shape}"
            for key, shape in places.items()
            if found.get(key, shape) != shape
        ],
    }
    parts = [
        f"{len(keys)} {'key' if len(keys) == 1 else 'keys'} {what} ({listed(keys)})"
        for what, keys in problems.items()
        if keys
    ]
    if parts:
        raise InputError(f"{where}: {'; '.join(parts)}")


def _shape(value) -> tuple[int, ...] | str:
    return tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
