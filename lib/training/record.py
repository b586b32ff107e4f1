"""config.json: what a run was started with, so that its figures can be traced."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import platform
import socket
import subprocess
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from lib.errors import InputError
from lib.files import read_json, write_json

CONFIG = "config.json"
PACKAGES = ("torch", "torchvision", "transformers", "numpy", "pillow", "nltk")
WITHIN = ("config.json", "model.safetensors", "pytorch_model.bin", "vocab.txt")  # of a folder, what a run reads
BLOCKS, BLOCK = 64, 1 << 16


def describe_start(
    command: str, settings: dict[str, Any], files: Iterable[str | Path | None], devices: list[torch.device]
) -> dict[str, Any]:
    """The command line, every setting, versions, commit, host, GPUs, and the files that are read."""
    return {
        "command": command,
        "settings": settings,
        "started": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "host": socket.gethostname(),
        "gpus": [torch.cuda.get_device_name(device) for device in devices if device.type == "cuda"],
        "commit": commit(),
        "versions": {"python": platform.python_version(), "cuda": torch.version.cuda} | dict(_versions()),
        "data": {str(file): fingerprint(file) for file in _present(files)},
    }


def write_start(folder: Path, start: dict[str, Any], step: int) -> None:
    """Write config.json; the starts of before, those of a run that goes on, stay in it with their steps."""
    before = []
    if step:
        with contextlib.suppress(InputError):  # none of a run of an earlier version, or a damaged one
            before = list(read_json(folder / CONFIG).get("starts", []))
    now = {name: start[name] for name in ("started", "host", "gpus", "command", "commit")}
    write_json(folder / CONFIG, start | {"starts": [*before, {"step": step} | now]})


def summary(start: dict[str, Any]) -> list[str]:
    """The same in a few lines."""
    versions, gpus = start["versions"], ", ".join(start["gpus"]) or "no GPU"
    revision, _, changed = (start["commit"] or "").partition("-")
    code = f"commit {revision[:12]}{' with changes' if changed else ''}" if revision else "no commit"
    names = [
        f"{Path(name).name} {size_of(each['bytes'])} {each['fingerprint'][:8]}" for name, each in start["data"].items()
    ]
    return [
        f"command: {start['command']}",
        f"host {start['host']}, {gpus}, {code}, torch {versions['torch']}, Python {versions['python']}",
        f"files: {', '.join(names)}",
    ]


def fingerprint(path: Path) -> dict[str, Any]:
    """Size in bytes, and a SHA-256 of the size and of 64 blocks of 64 KiB spread over the file, or of all of it."""
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with open(path, "rb") as file:
        if size <= BLOCKS * BLOCK:
            digest.update(file.read())
        else:
            for number in range(BLOCKS):
                file.seek(number * (size - BLOCK) // (BLOCKS - 1))
                digest.update(file.read(BLOCK))
    return {"bytes": size, "fingerprint": digest.hexdigest()}


def commit() -> str | None:
    """The git commit of this code, with "-dirty" where files were changed since; None outside of git."""
    command = [
        "git",
        "-C",
        str(Path(__file__).parents[2]),
        "describe",
        "--always",
        "--dirty",
        "--abbrev=40",
        "--exclude=*",
    ]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def size_of(count: int) -> str:
    """A number of bytes for people: "33.4 GB"."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count} B"


def _versions() -> Iterable[tuple[str, str]]:
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            yield name, metadata.version(name)


def _present(files: Iterable[str | Path | None]) -> Iterable[Path]:
    """The files among `files`, and in its folders those that a run reads."""
    for path in (Path(file) for file in files if file is not None):
        yield from filter(Path.is_file, [path, *(path / name for name in WITHIN)])
