"""Saved similarity matrices: our `.npy` with a JSON file beside it, and what others saved. No file can run code.

Letters: N images, C captions.
"""

from __future__ import annotations

import hashlib
import os
import warnings
import zlib
from pathlib import Path

import numpy as np

from lib.core.errors import InputError, shown
from lib.evaluation.metrics import check_matrix
from lib.files.npy import EXPECTED, map_array, read_header
from lib.files.pickled import pickled_sims
from lib.files.reading import opened, read_json
from lib.files.writing import atomic_write, write_json

BLOCK_ROWS = 256  # rows held at once while copying or checking a matrix
DIGEST = "matrix_crc32"  # of a matrix's values, in the JSON file beside it
FOLDS = 5


def save_results(path: str | Path, scores: np.ndarray, info: dict) -> None:
    """Write `scores` (N, C) as a plain float32 `.npy`, and `info` with its digest as JSON with the same stem.

    Each is replaced as a whole; a memory-mapped matrix is copied by blocks of rows. Raises InputError when the folder
    can't be written or is full.
    """
    path = Path(path)
    if path.suffix != ".npy":
        raise InputError(f"{path}: results are saved as .npy; give a name that ends in .npy")
    scores = check_matrix(scores)
    header = {"descr": "<f4", "fortran_order": False, "shape": scores.shape}
    try:
        with atomic_write(path) as temporary, open(temporary, "wb") as file:
            np.lib.format.write_array_header_1_0(file, header)
            digest = 0
            for start in range(0, len(scores), BLOCK_ROWS):
                block = np.ascontiguousarray(scores[start : start + BLOCK_ROWS], "<f4")
                block.tofile(file)
                digest = zlib.crc32(block, digest)
        write_json(path.with_suffix(".json"), info | {DIGEST: digest})
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
    it is missing, truncated, of another form, no matrix of real numbers, not the one that the JSON file has the digest
    of, or holds NaN.
    """
    path = Path(path)
    if path.is_dir():
        return [_load_matrix(file) for file in _fold_files(path)], _read_info(path / "info.json")
    info = _read_info(path.with_suffix(".json"))
    return _load_matrix(path, (info or {}).pop(DIGEST, None)), info


def _read_info(beside: Path) -> dict | None:
    info = read_json(beside) if os.path.lexists(beside) else None
    if info is not None and not isinstance(info, dict):
        raise InputError(f"{beside}: expected a JSON object with the results' dataset and split")
    return info


def _fold_files(folder: Path) -> list[Path]:
    files = []
    for fold in range(FOLDS):
        names = [folder / f"{fold}sim_best{suffix}" for suffix in (".npy", ".txt")]
        present = [name for name in names if name.is_file()]
        if not present:
            raise InputError(
                f"{folder}: no {names[0].name} or {names[1].name}; a folder of results holds five folds, "
                "0sim_best to 4sim_best"
            )
        files.append(present[0])
    return files


def _load_matrix(path: Path, digest: int | None = None) -> np.ndarray:
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
        message = shown(" ".join(str(error).split()) or type(error).__name__, 200)
        raise InputError(f"{path}: not a readable similarity matrix ({message}); save or copy it again") from None
    scores = check_matrix(scores, str(path))
    actual = _check_values(scores, path)
    if digest not in (None, actual):
        beside = path.with_suffix(".json").name
        raise InputError(f"{path}: not the matrix that {beside} was written with; copy both again, or remove {beside}")
    return scores


def _check_values(scores: np.ndarray, path: Path) -> int:
    """The digest of a matrix's values; InputError that says where one is NaN."""
    digest = 0
    for start in range(0, len(scores), BLOCK_ROWS):
        block = scores[start : start + BLOCK_ROWS]
        with np.errstate(invalid="ignore"):
            has_nan = np.isnan(block.max())
        if has_nan:
            row, column = np.argwhere(np.isnan(block))[0]
            raise InputError(f"{path}: NaN at row {start + row}, column {column}; such a matrix has no ranks")
        digest = zlib.crc32(np.ascontiguousarray(block, "<f4"), digest)
    return digest


def _load_npy(path: Path) -> np.ndarray:
    with opened(path, EXPECTED) as file:
        if read_header(file, path).dtype.hasobject:
            return pickled_sims(file, path)
    return map_array(path)
