"""The states of random generators: what is drawn after going back to them is what was drawn then."""

from __future__ import annotations

import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from lib.checkpoint.native import plain_tensors
from lib.training import randomness
from lib.training.randomness import random_states, set_random_states

CPU = [torch.device("cpu")]


def draws() -> list:
    return [random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn(), torch.rand(3).tolist()]


def test_every_generator_repeats_its_draws_also_after_a_file(tmp_path):
    random.gauss(0, 1), np.random.randn()  # half of a pair is left over in both
    torch.save(plain_tensors(random_states(CPU)), tmp_path / "states.pth")
    expected = draws()
    assert draws() != expected
    set_random_states(torch.load(tmp_path / "states.pth", weights_only=True), CPU)
    assert draws() == expected


def test_every_gpu_gets_its_state_back_and_one_that_was_not_there_keeps_its_own(monkeypatch):
    states = {0: "a", 1: "b", 2: "c"}
    cuda = SimpleNamespace(
        get_rng_state=lambda device: states[device.index],
        set_rng_state=lambda state, device: states.update({device.index: state}),
    )
    monkeypatch.setattr(randomness.torch, "cuda", cuda)
    devices = [torch.device("cuda", index) for index in range(3)]
    before = random_states(devices[:2])
    states.update({0: "x", 1: "y", 2: "z"})
    set_random_states(before, devices)
    assert states == {0: "a", 1: "b", 2: "z"}


@pytest.mark.parametrize("place", [-1, 625, 1 << 40])
def test_a_place_outside_of_numpys_numbers_is_refused(place):
    states, before = random_states(CPU), np.random.get_state()[2]
    name, keys, _, *rest = states["numpy"]
    with pytest.raises(ValueError, match=f"place {place} among 624 numbers"):
        set_random_states(states | {"numpy": (name, keys, place, *rest)}, CPU)
    assert np.random.get_state()[2] == before
