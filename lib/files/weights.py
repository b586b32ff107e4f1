"""Weights of unknown origin, given to a network only where every one of them fits."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from lib.core.errors import InputError, listed
from lib.files.safetensors import METADATA


def state_dict_of(content: object, where: str) -> dict[str, object]:
    """The state dict in a weight file's content, itself or under "state_dict" or "model", without "module." in front.

    Raises InputError that begins with `where` for anything else, and for a key with "module." that is there without.
    """
    for name in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
    if not isinstance(content, Mapping):
        raise InputError(f"{where}: holds a {type(content).__name__}, expected a state dict")
    named = {str(key).removeprefix("module."): value for key, value in content.items() if key != METADATA}
    if len(named) < len(content.keys() - {METADATA}):
        raise InputError(f"{where}: holds a key twice, with and without 'module.'; expected a state dict")
    return named


def load_strictly(network: nn.Module, weights: Mapping[str, Tensor], where: str, named=str, may_lack=lambda key: False):
    """Give a network its weights: all that it has places for, and no others.

    InputError that begins with `where` and names what is missing, left over or of another shape, each key as `named`
    says. The network keeps its own value for a key that the weights `may_lack`.
    """
    check_fit(network, weights, where, named, may_lack)
    network.load_state_dict({**{key: value for key, value in network.state_dict().items() if may_lack(key)}, **weights})


def check_fit(network: nn.Module, weights: Mapping[str, Tensor], where: str, named=str, may_lack=lambda key: False):
    """The checks of `load_strictly` alone."""
    own = network.state_dict()
    places = {key: _shape(value) for key, value in own.items()}
    found = {key: _shape(value) for key, value in weights.items()}
    problems = {
        "missing": [named(key) for key in places if key not in found and not may_lack(key)],
        "left over": [named(key) for key in found if key not in places],
        "of another shape": [
            f"{named(key)} {found[key]}, expected {shape}"
            for key, shape in places.items()
            if found.get(key, shape) != shape
        ],
        "of another type": [
            f"{named(key)} {_type(weights[key])}, expected {_type(value)}"
            for key, value in own.items()
            if found.get(key) == places[key] and weights[key].is_floating_point() != value.is_floating_point()
        ],
    }
    parts = [
        f"{len(keys)} {'key' if len(keys) == 1 else 'keys'} {what} ({listed(keys)})"
        for what, keys in problems.items()
        if keys
    ]
    if parts:
        raise InputError(f"{where}: {'; '.join(parts)}")


def _shape(value) -> tuple[int, ...] | str:
    return tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__


def _type(value: Tensor) -> str:
    return str(value.dtype).removeprefix("torch.")
