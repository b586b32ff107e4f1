"""Checkpoints: our format, the adapter for released ESL and VSE-infinity files, and conversion between them."""

from __future__ import annotations

import importlib

_HOMES = {
    "Checkpoint": "checkpoint",
    "convert": "reading",
    "load_for": "loading",
    "load_model": "loading",
    "read_checkpoint": "reading",
    "save_checkpoint": "native",
}
__all__ = list(_HOMES)


def __getattr__(name: str):
    """Imports a name from its module when it is used, so that `python -m lib.checkpoint` reads its flags at once."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
