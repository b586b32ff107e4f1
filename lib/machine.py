"""What this machine gives to the process."""

from __future__ import annotations

import os


def available_cores(most: int | None = None) -> int:
    """Cores that this process may use, at most `most`."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return cores if most is None else min(cores, most)
