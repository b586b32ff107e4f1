"""Similarity matrices that others saved with numpy.save of a dict: unpickled without running what they hold.

numpy's own functions for pickled arrays trust their input, so stand-ins take their place: they keep what the file says,
and the array is then built from bytes and checked numbers. No other name is ever looked up.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Sized
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np

from lib.core.errors import InputError

MOST_COPIED = 1_000_000


def pickled_sims(file: BinaryIO, path: Path) -> np.ndarray:
    """The matrix under "sims" of a pickled {"npts", "sims"}.

    Raises InputError for other content, and whatever a broken pickle may provoke.
    """
    content = _Unpickler(file, encoding="latin1").load()
    content = content.array() if isinstance(content, _Array) else content
    if isinstance(content, np.ndarray) and content.dtype == object and content.size == 1:
        content = content.item()  # numpy.save of a dict wraps it so
    if not isinstance(content, dict) or not isinstance(content.get("sims"), _Array):
        raise InputError(f'{path}: holds Python objects other than a dict with the matrix under "sims"')
    return content["sims"].array()


class _Dtype:
    """Stands in for numpy.dtype: numbers, bools and fixed-size strings, and object for containers."""

    def __init__(self, code: str, align: bool = False, copy: bool = False):
        if not isinstance(code, str) or not re.fullmatch(r"[biuf](1|2|4|8|16)|c(8|16)|b1|[SU]\d{1,6}|O8?", code):
            raise pickle.UnpicklingError(f"dtype {code!r} is not allowed")
        self.dtype = np.dtype("O" if code[0] == "O" else code)

    def __setstate__(self, state: tuple) -> None:
        if state[1] in ("<", ">"):
            self.dtype = self.dtype.newbyteorder(state[1])


class _Array:
    """Stands in for numpy.ndarray: `__setstate__` keeps the pickled state, `array` builds the array."""

    def __init__(self, shape: tuple = (0,), dtype: _Dtype | None = None, fortran_order: bool = False, content=b""):
        self.state = (shape, dtype, fortran_order, content)

    def __setstate__(self, state: tuple) -> None:
        _, *self.state = state  # version first

    def array(self) -> np.ndarray:
        shape, dtype, fortran_order, content = self.state
        if not isinstance(dtype, _Dtype) or not all(type(n) is int and n >= 0 for n in shape):
            raise pickle.UnpicklingError("a pickled array without dtype or shape")
        order = "F" if fortran_order else "C"
        if dtype.dtype.hasobject:
            array = np.empty(len(content), object)
            array[:] = content
            return array.reshape(shape, order=order)
        if isinstance(content, str):  # bytes written by Python 2
            content = content.encode("latin1")
        return np.frombuffer(content, dtype.dtype).reshape(shape, order=order)


class _Unpickler(pickle.Unpickler):
    """Knows the names that pickled numpy arrays and numbers need, as numpy 1 and 2 spell them; refuses all others."""

    copied = 0  # values that containers took over from others

    def find_class(self, module: str, name: str):
        module = re.sub(r"^numpy\.core\b", "numpy._core", module)
        known = {
            ("numpy", "dtype"): _Dtype,
            ("numpy", "ndarray"): "ndarray",  # a mere argument of _reconstruct
            ("numpy._core.multiarray", "_reconstruct"): self._reconstruct,
            ("numpy._core.multiarray", "scalar"): self._scalar,
            ("numpy._core.numeric", "_frombuffer"): self._frombuffer,
            ("_codecs", "encode"): self._encode,
        }
        for builtins in ("builtins", "__builtin__"):
            known |= {(builtins, kind.__name__): kind for kind in (int, float, complex, bool)}
            known |= {(builtins, kind.__name__): partial(self._filled, kind) for kind in (list, dict, set, frozenset)}
        if (module, name) not in known:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which a similarity matrix does not need")
        return known[module, name]

    def persistent_load(self, pid):
        raise pickle.UnpicklingError("it refers to objects outside the file")

    def _filled(self, kind: type, items: Sized = ()):
        self.copied += len(items)
        if self.copied > MOST_COPIED:
            raise pickle.UnpicklingError("it copies the same values again and again")
        return kind(items)

    def _reconstruct(self, _type, _shape, _typecode) -> _Array:
        return _Array()

    def _scalar(self, dtype: _Dtype, content):
        return _Array((), dtype, False, content).array()[()]

    def _frombuffer(self, content, dtype: _Dtype, shape: tuple, order: str) -> _Array:
        return _Array(shape, dtype, order == "F", content)

    def _encode(self, text: str, _encoding: str) -> bytes:
        return text.encode("latin1")
