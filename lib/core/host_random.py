"""Random draws whose outcome the CPU has to know: they are made on the CPU, whatever device the numbers are for."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import torch
from torch import Tensor

_thread = threading.local()


def host_rand(*shape: int) -> Tensor:
    """Uniform numbers in [0, 1) on the CPU, from torch's generator or, inside `own_draws`, from the thread's own."""
    return torch.rand(*shape, generator=getattr(_thread, "generator", None), device="cpu")


@contextlib.contextmanager
def own_draws(seed: int | None) -> Iterator[None]:
    """Let this thread draw from a generator of its own, so that replicas don't race for torch's; None: no change."""
    _thread.generator = None if seed is None else torch.Generator().manual_seed(seed)
    try:
        yield
    finally:
        _thread.generator = None
