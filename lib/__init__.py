"""Image-text matching: `load` opens a model, a `Matcher` scores images with captions."""

import importlib

__all__ = ["Encoded", "Match", "Matcher", "load"]


def __getattr__(name: str):
    """Imports a name of the front door when it is used, so that `import lib` needs no torch."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module("lib.inference.matcher"), name)
