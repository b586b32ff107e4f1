"""What a run writes down: config.json, with what it was started, and metrics.jsonl, its figures by their steps."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lib.core.errors import InputError
from lib.core.provenance import provenance
from lib.files.reading import read_json
from lib.files.writing import write_json

CONFIG, METRICS = "config.json", "metrics.jsonl"
WITHIN = ("config.json", "model.safetensors", "pytorch_model.bin", "vocab.txt")  # of a folder, what a run reads


def describe_start(
    command: str, settings: dict[str, Any], files: Iterable[str | Path | None], devices: list, processes: int = 1
) -> dict[str, Any]:
    """The command line, every setting, the number of processes, and where results come from."""
    start = {"command": command, "settings": settings, "processes": processes}
    return start | provenance(devices, _present(files))


def write_start(folder: Path, start: dict[str, Any], step: int) -> None:
    """Write config.json; the starts of before, those of a run that goes on, stay in it with their steps."""
    before = []
    if step:
        with contextlib.suppress(InputError):  # none of a run of an earlier version, or a damaged one
            found = read_json(folder / CONFIG)
            before = list(found.get("starts", [])) if isinstance(found, dict) else []
    now = {name: start[name] for name in ("date", "host", "devices", "processes", "command", "commit")}
    write_json(folder / CONFIG, start | {"starts": [*before, {"step": step} | now]})


def read_lines_of_json(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics file; a line that a kill left unfinished is passed over, and no file has none."""
    found = []
    with contextlib.suppress(OSError):
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            with contextlib.suppress(ValueError, RecursionError):
                content = json.loads(line)
                found += [content] if isinstance(content, dict) else []
    return found


def summary(start: dict[str, Any]) -> list[str]:
    """The same in a few lines."""
    revision, _, changed = (start["commit"] or "").partition("-")
    code = f"commit {revision[:12]}{' with changes' if changed else ''}" if revision else "no commit"
    versions, devices = start["versions"], ", ".join(start["devices"])
    files = (f"{Path(each['path']).name} {size_of(each['bytes'])} {digest_of(each)[:8]}" for each in start["files"])
    return [
        f"command: {start['command']}",
        f"host {start['host']}, {devices}, {code}, torch {versions['torch']}, Python {versions['python']}",
        f"files: {', '.join(files)}",
    ]


def digest_of(file: dict[str, Any]) -> str:
    """The digest in the record of a file, be it of the whole or of blocks of it."""
    return next((str(value) for name, value in file.items() if name.startswith("sha256")), "")


def size_of(count: int) -> str:
    """A number of bytes for people: "33.4 GB"."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count} B"


def _present(files: Iterable[str | Path | None]) -> Iterable[Path]:
    """The files among `files`, and in its folders those that a run reads."""
    for path in (Path(file) for file in files if file is not None):
        yield from filter(Path.is_file, [path, *(path / name for name in WITHIN)])
