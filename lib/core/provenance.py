"""The origin of a result: versions, commit, date, machine, and hashed files."""

from __future__ import annotations

import datetime
import hashlib
import importlib.metadata
import platform
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lib.core.errors import InputError

PACKAGES = ("torch", "torchvision", "transformers", "numpy")
WHOLE, BLOCK, BLOCKS = 256 << 20, 1 << 20, 64  # bytes: files hashed as a whole; blocks of larger ones


def provenance(devices: Iterable = (), files: Iterable[str | Path | None] = ()) -> dict[str, Any]:
    """Versions, commit, UTC date, host, the devices' names and the files with size and hash, as JSON takes them."""
    return {
        "versions": versions(),
        "commit": commit(),
        "date": date(),
        "host": platform.node(),
        "devices": device_names(devices),
        "files": [file_record(path) for path in files if path is not None],
    }


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that results depend on, without importing them."""
    installed = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            installed[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return installed


def commit() -> str | None:
    """The git commit of this code, ending in "-dirty" where tracked files were changed since; None outside a clone."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def date() -> str:
    """Now, in UTC, as in 2026-01-31T12:00:00+00:00."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def device_names(devices: Iterable) -> list[str]:
    """Vendor names of torch devices, such as "NVIDIA H100 80GB HBM3"."""
    return [_gpu(device) if device.type == "cuda" else _cpu() for device in devices]


def file_record(path: str | Path) -> dict[str, Any]:
    """Path, bytes and SHA-256 of a file; above 256 MB, the SHA-256 of 64 blocks of 1 MB at equal distances.

    Raises InputError for a file that can't be read.
    """
    path, digest = Path(path), hashlib.sha256()
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            if size <= WHOLE:
                return {"path": str(path), "bytes": size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
            for block in range(BLOCKS):
                file.seek((size - BLOCK) * block // (BLOCKS - 1))
                digest.update(file.read(BLOCK))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    return {"path": str(path), "bytes": size, f"sha256_of_{BLOCKS}_blocks": digest.hexdigest()}


def _gpu(device) -> str:
    import torch

    return torch.cuda.get_device_name(device)


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
