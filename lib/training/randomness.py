"""The states of every random generator that a step may draw from, as plain values for a checkpoint."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch


def random_states(devices: list[torch.device]) -> dict[str, Any]:
    """The states of Python's, numpy's and torch's global generators, those of the GPUs among `devices` included."""
    name, keys, *rest = np.random.get_state()
    gpus = [device for device in devices if device.type == "cuda"]
    return {
        "python": random.getstate(),
        "numpy": (name, keys.tolist(), *rest),
        "torch": torch.get_rng_state(),
        "cuda": [torch.cuda.get_rng_state(device) for device in gpus],
    }


def set_random_states(states: dict[str, Any], devices: list[torch.device]) -> None:
    """Go back to what `random_states` returned; a GPU that was not there keeps its state."""
    version, internal, gauss = states["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, place, *rest = states["numpy"]
    if not 0 <= place <= len(keys):  # which numpy would read from anywhere in memory
        raise ValueError(f"place {place} among {len(keys)} numbers")
    np.random.set_state((name, np.array(keys, np.uint32), place, *rest))
    torch.set_rng_state(states["torch"])
    gpus = [device for device in devices if device.type == "cuda"]
    for device, state in zip(gpus, states["cuda"], strict=False):
        torch.cuda.set_rng_state(state, device)


def random_state(device: torch.device):
    """The states of torch's generators that an encoder on `device` draws from."""
    return torch.get_rng_state(), torch.cuda.get_rng_state_all() if device.type == "cuda" else None


def set_random_state(state, device: torch.device) -> None:
    """Go back to what `random_state` returned."""
    torch.set_rng_state(state[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state_all(state[1])
