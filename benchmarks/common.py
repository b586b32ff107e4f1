"""What the benchmarks share: the machine and versions, medians of repeated runs, tables, JSON."""

from __future__ import annotations

import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from lib.core.machine import available_cores
from lib.files.writing import write_json as _write_json


def machine() -> str:
    """One line: processor, cores that this process may use, accelerator if any, versions of Python, torch and numpy."""
    cores = available_cores()
    parts = [f"{_processor()}, {cores} core{'s' if cores != 1 else ''}"]
    torch = sys.modules.get("torch")  # only where the benchmark itself uses it
    if torch is not None and torch.cuda.is_available():
        parts.append(torch.cuda.get_device_name())
    parts.append(f"Python {platform.python_version()}")
    for package in ("torch", "numpy"):
        try:
            parts.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    return ", ".join(parts)


def median_time(fn: Callable[[], object], runs: int = 5, warmup: int = 1) -> float:
    """Median wall-clock seconds of `runs` calls after `warmup` calls that don't count.

    Where torch is loaded and has a GPU, each call is timed until the GPU is done.
    """
    wait = _gpu_wait()
    times = []
    for _ in range(warmup + runs):
        wait()
        start = time.perf_counter()
        fn()
        wait()
        times.append(time.perf_counter() - start)
    return statistics.median(times[warmup:])


def print_table(rows: Iterable[Sequence], columns: Sequence[str]) -> None:
    """Print rows below their column names: text left, numbers right, floats with three digits, None as a dash."""
    rows = [[_cell(value) for value in row] for row in rows]
    numeric = [all(not row[c] or row[c][0] in "-0123456789" for row in rows) for c in range(len(columns))]
    widths = [max(len(row[c]) for row in [list(columns), *rows]) for c in range(len(columns))]
    for row in [list(columns), *rows]:
        cells = (
            text.rjust(width) if right else text.ljust(width)
            for text, width, right in zip(row, widths, numeric, strict=True)
        )
        print("  ".join(cells).rstrip())


def write_json(path: str | Path, rows: Iterable[Sequence], columns: Sequence[str], **settings) -> None:
    """Write the table, the machine and the settings as JSON."""
    content = {"machine": machine(), **settings, "rows": [dict(zip(columns, row, strict=True)) for row in rows]}
    _write_json(path, content)


def _cell(value) -> str:
    if value is None:
        return "-"
    return f"{value:#.3g}".rstrip(".") if isinstance(value, float) else str(value)


def _gpu_wait() -> Callable[[], None]:
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        return torch.cuda.synchronize
    return lambda: None


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
