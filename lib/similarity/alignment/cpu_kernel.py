"""The ESL score of all pairs and its gradient on a CPU, fused: `cpu_kernel.c`, built once by the machine's C compiler.

Where there is no compiler, or the result fails its trial, `alignment` computes the same with torch. The library is
kept in the user's cache folder (`$XDG_CACHE_HOME/esl`, else `~/.cache/esl`), one for each processor and compiler, and
never loaded unless it is whole and nobody else can have written it.

Letters: B images, C captions, R regions, W word pieces.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import itertools
import os
import platform
import shlex
import shutil
import stat
import subprocess
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from lib.core.errors import shown
from lib.core.functional import EPSILON
from lib.similarity.alignment import plain
from lib.similarity.alignment.plain import LARGEST_PLAIN_SCALE, NEGATIVE_SLOPE

SOURCE = Path(__file__).with_name("cpu_kernel.c")
COMPILERS = ("gcc", "cc")  # their OpenMP is the one of torch; clang's is another
# No option that changes what the program around the library computes, as -ffast-math does when linked. OpenMP is not
# linked: the symbols are those of the runtime that torch has loaded, so that both share one set of threads.
FLAGS = ("-std=gnu11", "-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-fPIC")
MOST_SECONDS = 120  # for a compiler


class _Problem(ctypes.Structure):
    """`Problem` of cpu_kernel.c."""

    _fields_ = [
        ("first", ctypes.c_void_p),
        ("captions", ctypes.c_int64),
        ("regions", ctypes.c_int64),
        ("images", ctypes.c_int64),
        ("scale", ctypes.c_float),
        ("epsilon", ctypes.c_float),
        ("slope", ctypes.c_float),
        ("threads", ctypes.c_int32),
        ("real", ctypes.c_void_p),
        ("count", ctypes.c_void_p),
    ]


def available(device: torch.device, dtype: torch.dtype = torch.float32, scale: float = 1.0) -> bool:
    """Whether `pair_scores` and `gradients` serve S of `dtype` on `device` at the temperature `scale`."""
    if device.type != "cpu" or dtype != torch.float32 or not abs(scale) <= LARGEST_PLAIN_SCALE:
        return False
    return _library() is not None


def pair_scores(S: Tensor, lengths: Sequence[int], scale: float, region_mask: Tensor | None, out: Tensor) -> None:
    """Scores (C, B) into `out` of S float32 (rows, R, B), the packed words of captions with `lengths` words.

    `region_mask` (R, B) is true at real regions, None where all are; S is 0 at the others. Raises MemoryError.
    """
    _call(_library().alignment_scores, S, lengths, scale, region_mask, out)


def gradients(S: Tensor, lengths: Sequence[int], scale: float, region_mask: Tensor | None, upstream: Tensor) -> Tensor:
    """Turn S into the gradient with respect to it, given that of the scores, `upstream` (C, B).

    Returns the gradient with respect to `scale`, (). Other arguments as of `pair_scores`.
    """
    upstream = upstream.to(torch.float32, memory_format=torch.contiguous_format, copy=True)
    _call(_library().alignment_gradients, S, lengths, scale, region_mask, upstream)
    return upstream.sum()


def _call(function, S: Tensor, lengths: Sequence[int], scale: float, region_mask: Tensor | None, scores: Tensor):
    rows, regions, images = S.shape
    first = (ctypes.c_int64 * (len(lengths) + 1))(0, *itertools.accumulate(lengths))
    fits = S.is_contiguous() and S.dtype == scores.dtype == torch.float32 and scores.stride(1) == 1
    devices = {x.device.type for x in (S, scores, region_mask) if x is not None}
    if not fits or devices != {"cpu"} or first[-1] != rows or scores.shape != (len(lengths), images):
        raise ValueError(f"S {tuple(S.shape)}, {len(lengths)} captions and scores {tuple(scores.shape)} do not fit")
    real = count = None
    if region_mask is not None:
        real = region_mask.to(torch.float32).contiguous()  # (R, B)
        count = real.sum(0)  # (B,)
    problem = _Problem(
        first=ctypes.addressof(first),
        captions=len(lengths),
        regions=regions,
        images=images,
        scale=scale,
        epsilon=EPSILON,
        slope=NEGATIVE_SLOPE,
        threads=torch.get_num_threads(),
        real=None if real is None else real.data_ptr(),
        count=None if count is None else count.data_ptr(),
    )
    if function(ctypes.byref(problem), S.data_ptr(), scores.data_ptr(), scores.stride(0)):
        raise MemoryError(f"no memory for {torch.get_num_threads()} captions of {max(lengths)} words at a time")


@functools.cache
def _library() -> ctypes.CDLL | None:
    """The library, built where it is not yet there; None, with one warning, where it cannot be had."""
    try:
        library = _load(_built())
        _try(library)
        return library
    except Exception as error:  # of compiler, linker, loader, symbols or trial: torch computes the same
        reason = shown(" ".join(str(error).split()), 300)
        chosen = f"; CC is {shown(os.environ['CC'])}" if os.environ.get("CC") else ""
        warnings.warn(f"scoring on the CPU runs in torch, without its compiled kernel: {reason}{chosen}", stacklevel=2)
        return None


def _load(path: Path) -> ctypes.CDLL:
    library = ctypes.CDLL(str(path))
    for function in (library.alignment_scores, library.alignment_gradients):
        function.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
        function.restype = ctypes.c_int
    return library


def _try(library: ctypes.CDLL) -> None:
    """Compare both functions with the definition in float64 on one small case; RuntimeError where they differ."""
    scale, shape = 10.0, (1, 3, 4, 70)  # C, W, R, B
    with torch.inference_mode(False), torch.enable_grad(), torch.device("cpu"):
        everything = torch.ones(70, 4, dtype=torch.bool), torch.ones(1, 3, dtype=torch.bool)
        S = torch.linspace(-9, 9, 3 * 4 * 70, dtype=torch.float64).sin().view(shape).requires_grad_()
        tau = torch.tensor(scale, dtype=torch.float64, requires_grad=True)
        expected = plain.instance_similarity(S.permute(3, 0, 1, 2), *everything, tau)[:, 0]  # (B,)
        expected.sum().backward()
        values = S[0].detach().float()
        scores, upstream = values.new_empty(1, 70), values.new_ones(1, 70)
        _call(library.alignment_scores, values, [3], scale, None, scores)
        _call(library.alignment_gradients, values, [3], scale, None, upstream)
    pairs = ((scores[0], expected), (values, S.grad[0]), (upstream.sum(), tau.grad))
    if not all(torch.allclose(found.double(), wanted, rtol=1e-4, atol=1e-4) for found, wanted in pairs):
        raise RuntimeError("it computes wrong values")


def _compiler() -> list[str]:
    """The command of the C compiler: $CC, which may have arguments, else the first of COMPILERS that is installed."""
    given = os.environ.get("CC", "")
    chosen = shlex.split(given)
    if chosen and shutil.which(chosen[0]):
        return chosen
    for name in filter(shutil.which, COMPILERS):
        if chosen:
            warnings.warn(f"CC={shown(given)} names no program; {name} builds the CPU's kernel", stacklevel=2)
        return [name]
    raise RuntimeError(f"no C compiler ({' or '.join(COMPILERS)}) is installed; with one it would be faster")


def _built() -> Path:
    """Path of a sound library for this source, compiler and machine, from the cache or from the compiler.

    Its name ends in the SHA-256 of its content: a library that was damaged on the disk is known before it is loaded.
    """
    compiler = _compiler()
    built_from = "\0".join(
        (SOURCE.read_text(), *compiler, *FLAGS, platform.machine(), *platform.libc_ver(), _processor())
    )
    stem = f"alignment-{hashlib.sha256(built_from.encode()).hexdigest()[:24]}"
    folder = _cache_folder()
    for library in sorted(folder.glob(f"{stem}-*.so")) if folder else ():
        if _sound(library):
            return library
    if folder is None or not os.access(folder, os.W_OK):
        folder = _folder_of_this_process()
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        object_file, library = Path(scratch, "alignment.o"), Path(scratch, "alignment.so")
        _run(*compiler, *FLAGS, "-c", SOURCE, "-o", object_file)
        _run(*compiler, "-shared", object_file, "-o", library)
        library.chmod(0o600)
        with open(library, "rb") as file:
            os.fsync(file.fileno())  # or a crash could leave the name without the content
        # at once, so that another process sees the whole file or none
        return library.replace(folder / f"{stem}-{_digest(library)}.so")


def _run(*command) -> None:
    command = list(map(str, command))
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=MOST_SECONDS)
    if done.returncode:
        raise RuntimeError(f"{command[0]} failed: {done.stderr.strip()}")


def _processor() -> str:
    """What the processor can do: -march=native depends on it, and a home folder may serve many machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n", 1)[0].splitlines()
        return "\n".join(line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part")))
    except OSError:
        return platform.processor()


def _cache_folder() -> Path | None:
    """The user's cache folder, if it is open to nobody else, since what lies there is executed."""
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "esl"
        for each in (folder.parent, folder):  # whatever the umask
            each.mkdir(mode=0o700, parents=True, exist_ok=True)
        return folder if _private(folder, stat.S_ISDIR) else None
    except (OSError, RuntimeError, AttributeError):  # read-only, no home, no user ids
        return None


def _sound(library: Path) -> bool:
    """Whether only this user can have written a library, and its content is the one of its name."""
    try:
        return _private(library, stat.S_ISREG) and _digest(library) == library.stem.rpartition("-")[2]
    except OSError:
        return False


def _private(path: Path, kind: Callable[[int], bool]) -> bool:
    """Whether `path`, no link but of this `kind`, belongs to this user and is open to nobody else."""
    state = path.lstat()
    return kind(state.st_mode) and state.st_uid == os.getuid() and not state.st_mode & 0o077


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@functools.cache
def _folder_of_this_process() -> Path:
    holder = tempfile.TemporaryDirectory(prefix="esl-")  # removed when the process ends
    _folder_of_this_process.holder = holder
    return Path(holder.name)
