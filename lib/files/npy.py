"""Arrays in .npy form, never unpickled; what a header promises is believed where the file holds it."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from lib.core.errors import InputError, shown
from lib.files.reading import opened

EXPECTED = "an array saved by numpy.save"
MOST_VALUES = 1 << 59  # of an array of which one side may be 0


class Header(NamedTuple):
    """Shape, type and order of an array, and at which byte its values begin."""

    shape: tuple[int, ...]
    dtype: np.dtype
    fortran_order: bool
    offset: int


def read_header(file: BinaryIO, where: str | Path) -> Header:
    """The header of an .npy file; InputError for none, for one of absurd sizes, and for a file shorter than it says.

    An array of Python objects has a header like others; its values are a pickle, of whatever length.
    """
    try:
        version = np.lib.format.read_magic(file)
        readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        if version not in readers:
            raise ValueError(f"format version {version}")
        shape, fortran_order, dtype = readers[version](file)
        if any(isinstance(size, bool) or size < 0 for size in shape) or math.prod(filter(None, shape)) > MOST_VALUES:
            raise ValueError(f"shape {shape}")
    except Exception as error:  # of a text that is evaluated: numpy lets all sorts through
        reason = shown(str(error).partition("\n")[0] or type(error).__name__, 120)
        raise InputError(f"{where}: no readable .npy array ({reason}); expected one saved by numpy.save") from None
    offset, found = file.tell(), file.seek(0, io.SEEK_END)
    file.seek(offset)
    expected = offset + math.prod(shape) * dtype.itemsize
    if found < expected and not dtype.hasobject:
        raise InputError(f"{where}: truncated, {found} bytes where {expected} are expected; copy it again")
    return Header(shape, dtype, fortran_order, offset)


def map_array(path: Path) -> np.ndarray:
    """An array of numbers or bools, memory-mapped for reading; InputError for anything else."""
    with opened(path, EXPECTED) as file:
        header = read_header(file, path)
    _check_kind(header.dtype, path)
    order = "F" if header.fortran_order else "C"
    if 0 in header.shape:
        return np.empty(header.shape, header.dtype, order)
    return np.memmap(path, header.dtype, "r", header.offset, header.shape, order)


def array_of(data: bytes, where: str | Path) -> np.ndarray:
    """The array of numbers or bools of an .npy file with these bytes; InputError for anything else."""
    header = read_header(io.BytesIO(data), where)
    _check_kind(header.dtype, where)
    order = "F" if header.fortran_order else "C"
    if 0 in header.shape:
        return np.empty(header.shape, header.dtype, order)
    return np.frombuffer(data, header.dtype, math.prod(header.shape), header.offset).reshape(header.shape, order=order)


def _check_kind(dtype: np.dtype, where: str | Path) -> None:
    if dtype.kind not in "fiub":
        raise InputError(f"{where}: no readable .npy array of numbers, found {shown(dtype)}; save it with numpy.save")
