"""Saved similarity matrices: our `.npy` with a JSON file beside it, and what others saved. No file can run code.

Letters: N images, C captions.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import re
import warnings
from pathlib import Path

import numpy as np

from lib.errors import InputError
from lib.evaluation.metrics import check_matrix
from lib.files import atomic_write, read_json, write_json

BLOCK_ROWS = 256  # rows held at once while copying or checking a matrix
FOLDS = 5


def save_results(path: str | Path, scores: np.ndarray, info: dict) -> None:
    """Write `scores` (N, C) as a plain float32 `.npy`, and `info` as JSON with the same stem; each replaced as a whole.

    A memory-mapped matrix is copied by blocks of rows. Raises InputError when the folder can't be written or is full.
    """
    path = Path(path)
    if path.suffix != ".npy":
        raise InputError(f"{path}: results are saved as .npy; give a name that ends in .npy")
    scores = check_matrix(scores)
    header = {"descr": "<f4", "fortran_order": False, "shape": scores.shape}
    try:
        with atomic_write(path) as temporary, open(temporary, "wb") as file:
            np.lib.format.write_array_header_1_0(file, header)
            for start in range(0, len(scores), BLOCK_ROWS):
                np.ascontiguousarray(scores[start : start + BLOCK_ROWS], "<f4").tofile(file)
        write_json(path.with_suffix(".json"), info)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror or error})") from None


def checkpoint_hash(path: str | Path) -> str:
    """The first 16 hexadecimal digits of a file's SHA-256: tells checkpoints of the same name apart."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:16]
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None


def load_scores(path: str | Path) -> tuple[np.ndarray | list[np.ndarray], dict | None]:
    """A saved matrix (N, C) and the content of the JSON file beside it (None where there is none).

    Reads our `.npy` (memory-mapped), an `.npy` that holds a pickled {"npts", "sims"}, a `.txt` of numpy.savetxt, or a
    folder of five fold files 0sim_best .. 4sim_best (`.npy` or `.txt`), which gives a list of five matrices. Pickles go
    through an unpickler that knows numbers, arrays and builtin containers alone. Raises InputError naming the file when
    it is missing, truncated, of another form, no matrix of real numbers, or holds NaN.
    """
    path = Path(path)
    if path.is_dir():
        scores = [_load_matrix(file) for file in _fold_files(path)]
        beside = path / "info.json"
    else:
        scores = _load_matrix(path)
        beside = path.with_suffix(".json")
    info = read_json(beside) if os.path.lexists(beside) else None
    if info is not None and not isinstance(info, dict):
        raise InputError(f"{beside}: expected a JSON object with the results' dataset and split")
    return scores, info


def _fold_files(folder: Path) -> list[Path]:
    files = []
    for fold in range(FOLDS):
        names = [folder / f"{fold}sim_best{suffix}" for suffix in (".npy", ".txt")]
        found = [name for name in names if name.is_file()]
        if not found:
            raise InputError(
                f"{folder}: no {names[0].name} or {names[1].name}; a folder of results holds five folds, "
                "0sim_best to 4sim_best"
            )
        files.append(found[0])
    return files


def _load_matrix(path: Path) -> np.ndarray:
    if not path.is_file():
        raise InputError(f"{path}: no such file; expected a similarity matrix saved as .npy or .txt")
    try:
        if path.suffix == ".npy":
            scores = _load_npy(path)
        elif path.suffix == ".txt":
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # an empty file is refused below
                with open(path, encoding="ascii") as file:
                    scores = np.loadtxt(file, dtype=np.float32, ndmin=2)
        else:
            raise InputError(f"{path}: expected a similarity matrix saved as .npy or .txt")
    except InputError:
        raise
    except MemoryError:
        raise InputError(f"{path}: does not fit into memory") from None
    except Exception as error:  # a broken pickle may raise anything
        message = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(f"{path}: not a readable similarity matrix ({message}); save or copy it again") from None
    scores = check_matrix(scores, str(path))
    for start in range(0, len(scores), BLOCK_ROWS):
        block = scores[start : start + BLOCK_ROWS]
        with np.errstate(invalid="ignore"):
            has_nan = np.isnan(block.max())
        if has_nan:
            row, column = np.argwhere(np.isnan(block))[0]
            raise InputError(f"{path}: NaN at row {start + row}, column {column}; such a matrix has no ranks")
    return scores


def _load_npy(path: Path) -> np.ndarray:
    with open(path, "rb") as file:
        version = np.lib.format.read_magic(file)
        read_header = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }.get(version)
        if read_header and read_header(file)[2].hasobject:
            return _sims_of_pickle(_Unpickler(file, encoding="latin1").load(), path)
    return np.lib.format.open_memmap(path, mode="r")  # never unpickles


def _sims_of_pickle(content, path: Path) -> np.ndarray:
    content = content.array() if isinstance(content, _Array) else content
    if isinstance(content, np.ndarray) and content.dtype == object and content.size == 1:
        content = content.item()  # numpy.save of a dict wraps it so
    if not isinstance(content, dict) or not isinstance(content.get("sims"), _Array):
        raise InputError(f'{path}: holds Python objects other than a dict with the matrix under "sims"')
    return content["sims"].array()


# ---- the unpickler ---------------------------------------------------------------------------------------------------
#
# numpy's own functions for pickled arrays trust their input, so stand-ins take their place: they keep what the file
# says, and the array is then built from bytes and checked numbers. No other name is ever looked up.


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
            known |= {
                (builtins, kind.__name__): kind for kind in (int, float, complex, bool, list, dict, set, frozenset)
            }
        if (module, name) not in known:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which a similarity matrix does not need")
        return known[module, name]

    def persistent_load(self, pid):
        raise pickle.UnpicklingError("it refers to objects outside the file")

    def _reconstruct(self, _type, _shape, _typecode) -> _Array:
        return _Array()

    def _scalar(self, dtype: _Dtype, content):
        return _Array((), dtype, False, content).array()[()]

    def _frombuffer(self, content, dtype: _Dtype, shape: tuple, order: str) -> _Array:
        return _Array(shape, dtype, order == "F", content)

    def _encode(self, text: str, _encoding: str) -> bytes:
        return text.encode("latin1")
