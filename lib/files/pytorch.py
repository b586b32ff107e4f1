"""PyTorch files of unknown origin, read without running what they hold and without believing what they promise."""

from __future__ import annotations

import argparse
import os
import re
import stat
import struct
import tarfile
import warnings
import zipfile
from pathlib import Path

import torch
from torch import Tensor

from lib.core.errors import InputError, shown
from lib.files.archives import Damaged, check_sums, stored_members
from lib.files.pickles import MOST_BYTES, names_in, values_in
from lib.files.safetensors import begins, read_safetensors

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
# Other names of files that hold tensors; more that PyTorch allows take memory for the asking, as bytearray(10**10).
_NAMES = re.compile(
    r"argparse\.Namespace|collections\.(OrderedDict|Counter)|_codecs\.encode|builtins\.(set|complex)"
    r"|config\.all_config\.AllConfig|numpy\.(dtype|_?core\.multiarray\.scalar)"
    r"|torch\.([a-z0-9_]+|(cuda\.)?\w+Storage|storage\.UntypedStorage|Size|nn\.parameter\.Parameter)"
    r"|torch\._utils\._rebuild_(tensor|tensor_v2|tensor_v3|parameter|parameter_with_state)"
    r"|torch\._tensor\._rebuild_from_type_v2"
)


def read_file(path: str | Path, vouched=lambda content: False) -> object:
    """The content of a PyTorch file (zip or legacy form), or of a safetensors file, on the CPU.

    Only tensors, plain values, argparse.Namespace, AllConfig and numpy numbers (which become Python's) are built. The
    members of a zip file are checked against their CRC-32, its tensors not where the content is `vouched` for by
    digests of its own; the legacy form has no checksums. Raises InputError for everything else: no file, a damaged
    one, one that promises more than it holds, another format, objects that could run code.
    """
    path = Path(path)
    beginning = _beginning(path)
    try:
        if beginning.startswith(b"PK\x03\x04"):
            with zipfile.ZipFile(path) as archive:
                return _read_archive(path, archive, vouched)
        return read_safetensors(path) if begins(beginning) else _read_legacy(path, beginning)
    except InputError:
        raise
    except Exception as error:  # whatever random or hostile bytes provoke in the reader
        raise _refusal(path, error) from None


def _read_archive(path: Path, archive: zipfile.ZipFile, vouched) -> object:
    members = stored_members(archive)
    pickled = [name for name in members if os.path.basename(name) == "data.pkl"]
    if not pickled:
        raise InputError(
            f"{path}: is a zip archive of something else, expected a checkpoint; unpack it if it holds one"
        )
    folder = os.path.dirname(pickled[0])
    if any(name.partition("/")[0] != folder for name in members):
        raise Damaged(f"it holds more than the folder {folder}")
    if f"{folder}/constants.pkl" in members:
        raise _could_run(path, "a TorchScript program")
    tensors = [member for name, member in members.items() if name.startswith(f"{folder}/data/")]
    if members[pickled[0]].file_size > MOST_BYTES:
        raise Damaged(f"its pickle is longer than {MOST_BYTES:,} bytes")
    check_sums(archive, [member for member in members.values() if member not in tensors])
    _check_names(path, names_in(archive.read(pickled[0])))
    content = _load(path)
    if not vouched(content):
        check_sums(archive, tensors)
    return content


def _read_legacy(path: Path, beginning: bytes) -> object:
    """Five pickles (magic number, version, byte order, content, keys), then tensors without a checksum."""
    if beginning[:1] != b"\x80" or _is_tar(beginning):
        raise ValueError("other bytes than those of a PyTorch file")
    with open(path, "rb") as file:
        _check_names(path, names_in(file.read(MOST_BYTES), count=5))
    return _load(path)


def _is_tar(beginning: bytes) -> bool:
    """Whether PyTorch would unpack the file to the disk, as it does with those of its first versions."""
    try:
        return tarfile.TarInfo.frombuf(beginning, "utf-8", "surrogateescape") is not None
    except tarfile.HeaderError:
        return False


def _check_names(path: Path, names: set[str]) -> None:
    for name in sorted(names):
        if name.endswith(("_rebuild_sparse_tensor", "_rebuild_qtensor")):
            raise InputError(f"{path}: holds a sparse or quantized value, which is no ordinary tensor; save it dense")
        if not _NAMES.fullmatch(name):
            raise _could_run(path, shown(name))


def _load(path: Path) -> object:
    with warnings.catch_warnings(), torch.serialization.safe_globals(_ALLOWED):
        warnings.simplefilter("ignore")
        content = torch.load(path, map_location="cpu", weights_only=True)
    check_sizes(content)
    return content


def check_sizes(content: object) -> None:
    """ValueError where a few bytes stand for much: values nested without end, a tensor that repeats its numbers."""
    for value in values_in(content, (argparse.Namespace, AllConfig)):
        if isinstance(value, Tensor) and value.layout == torch.strided and not value.is_meta:
            if value.numel() * value.itemsize > value.untyped_storage().nbytes():
                raise ValueError("a tensor of more values than the file holds")


def _beginning(path: Path) -> bytes:
    """The first 512 bytes of a file; InputError where there is none, and where they are those of another format."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode) and not path.is_dir():
            raise InputError(f"{path}: is no regular file, expected a checkpoint")
        with open(path, "rb") as file:
            beginning = file.read(tarfile.BLOCKSIZE)
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
    return beginning


def _could_run(path: Path, what: str) -> InputError:
    return InputError(
        f"{path}: refused, since it holds more than tensors and plain values ({what}) and reading it could run code; "
        "ask for a file with state dicts alone"
    )


def _refusal(path: Path, error: Exception) -> InputError:
    reason = " ".join(str(error).split())
    if found := re.search(r"GLOBAL ([\w.]+)", reason):
        return _could_run(path, found[1])
    if isinstance(error, Damaged) and "compressed" in reason:
        return InputError(f"{path}: {shown(reason)}, which PyTorch does not do; load it with torch and save it again")
    if isinstance(error, Damaged | zipfile.BadZipFile | EOFError) or re.search(
        "EOF|reading file|PytorchStreamReader|storage of size|exhausted|expected .* bytes", reason
    ):
        return InputError(f"{path}: is truncated or damaged ({shown(reason)}); copy or download it again")
    reason = shown(reason.rpartition("WeightsUnpickler error: ")[2].partition("Check the documentation")[0].strip())
    detail = f"{type(error).__name__}: {reason}" if reason else type(error).__name__
    return InputError(f"{path}: is not a PyTorch file, or damaged ({detail}); expected a checkpoint")
