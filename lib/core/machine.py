"""Cores and memory that this process may use."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path


def available_cores(most: int | None = None) -> int:
    """Cores that this process may use, at most `most`."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return cores if most is None else min(cores, most)


def free_memory() -> int | None:
    """Bytes of free memory, swap included; None if the system does not say."""
    with contextlib.suppress(OSError):
        sizes = re.findall(r"^(?:MemAvailable|SwapFree): +(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
        return sum(map(int, sizes)) * 1024 if sizes else None
    return None
