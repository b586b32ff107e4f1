"""Draws whose outcome the CPU knows: from torch's generator, and from one of its own in each thread of replicas."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import torch

from lib.core.host_random import host_rand, own_draws


def test_draws_are_those_of_torchs_generator():
    torch.manual_seed(3)
    expected = torch.rand(4, 2)
    torch.manual_seed(3)
    assert torch.equal(host_rand(4, 2), expected)


def test_a_thread_with_draws_of_its_own_repeats_them_whatever_the_others_draw():
    def drawn(seed: int) -> torch.Tensor:
        with own_draws(seed):
            return torch.stack([host_rand(5) for _ in range(50)])

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(drawn, [1, 2, 3, 1]))
    assert torch.equal(found[0], found[3]) and len(torch.stack(found).unique(dim=0)) == 3


def test_draws_of_its_own_leave_torchs_generator_alone_and_end_with_the_block():
    state = torch.get_rng_state()
    with own_draws(1):
        host_rand(3)
    assert torch.equal(torch.get_rng_state(), state)
    host_rand(3)
    assert not torch.equal(torch.get_rng_state(), state)
