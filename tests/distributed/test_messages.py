"""Several processes give the numbers of one: shares, gathered fragments, statistics, and whole steps."""

from __future__ import annotations

import copy
import sys

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn

from lib.core.errors import InputError
from lib.core.fragments import Fragments
from lib.distributed import launch, messages, runner
from lib.distributed.batchnorm import share_statistics
from lib.distributed.launch import joined, my_slice
from lib.distributed.messages import concatenated, gather_items, gather_objects, max_over_processes
from lib.training.stopping import Stop
from tests import sharing
from tests.processes import in_a_process

pytestmark = pytest.mark.usefixtures("single_thread")


@pytest.fixture
def alone():
    """A group of one process, in which every message is sent."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("command", [["--kinds", "vse_infty", "esl_h in chunks", "--processes", "2"]])
def test_steps_and_validation_of_two_processes_equal_those_of_one(tmp_path, command):
    """Scores, loss, every gradient, statistics, weights after five steps, in float64; more of it runs in .ci/run. The
    comparison notices where a caption's gradient is not summed over the processes."""
    done = in_a_process(tmp_path, sharing.main, [str(tmp_path), *command])
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count(" of 2: ") == 4 and "gradients of others dropped: " in done.stdout


@pytest.mark.parametrize(("count", "parts"), [(13, 3), (4, 4), (128, 5), (2, 3)])
def test_shares_are_equal_up_to_one_and_cover_all_in_order(monkeypatch, count, parts):
    monkeypatch.setattr(launch, "world_size", lambda: parts)
    found = []
    for number in range(parts):
        monkeypatch.setattr(launch, "rank", lambda number=number: number)
        found.append(list(range(count)[my_slice(count)]))
    assert sum(found, []) == list(range(count)) and max(map(len, found)) - min(map(len, found)) <= 1


def test_one_process_is_the_first_and_sends_nothing():
    assert (launch.rank(), launch.world_size(), launch.is_main()) == (0, 1, True)
    assert gather_objects("x") == ["x"] and max_over_processes(3) == 3 and my_slice(7) == slice(0, 7)
    fragments = Fragments.full(torch.randn(2, 3, 4))
    assert gather_items(fragments)[0] is fragments
    rows = np.arange(3)
    assert messages.gather_rows(rows, 3) is rows
    with joined(None):
        assert not dist.is_initialized()


def test_gathered_fragments_are_in_their_places_and_hand_their_gradients_back(alone):
    real = np.array([[True, False, True], [True, True, False]])
    features = torch.randn(2, 3, 4, requires_grad=True)
    (found,) = gather_items(Fragments(features, real))
    expected = features * torch.from_numpy(real)[..., None]
    assert torch.equal(found.features, expected) and (found.real == real).all()
    weights = torch.randn(2, 3, 4)
    (found.features * weights).sum().backward()
    assert torch.equal(features.grad, weights * torch.from_numpy(real)[..., None])


def test_parts_of_several_lengths_are_padded_to_the_longest():
    parts = [Fragments.full(torch.ones(count, length, 4)) for count, length in ((2, 3), (1, 5), (3, 1))]
    found = concatenated(parts)
    assert found.features.shape == (6, 5, 4) and found.lengths.tolist() == [3, 3, 5, 1, 1, 1]
    assert torch.equal(found.features[..., 0], found.mask.float())


@pytest.mark.parametrize("settings", [{}, {"momentum": None}, {"affine": False}, {"track_running_stats": False}])
@pytest.mark.parametrize("kind", ["rows", "maps"])
def test_shared_statistics_of_one_process_are_those_of_batchnorm(alone, kind, settings):
    norm = (nn.BatchNorm1d if kind == "rows" else nn.BatchNorm2d)(6, **settings).double()
    shared = copy.deepcopy(norm)
    share_statistics(nn.Sequential(shared))
    assert type(shared) is not type(norm) and isinstance(shared, type(norm))
    for _ in range(3):
        x = torch.randn((20, 6) if kind == "rows" else (5, 6, 3, 2), dtype=torch.float64) * 3 + 2
        one, other = (x.clone().requires_grad_() for _ in range(2))
        weights = torch.randn_like(x)
        for layer, inputs in ((norm, one), (shared, other)):
            (layer(inputs) * weights).sum().backward()
        torch.testing.assert_close(shared(other), norm(one))
        torch.testing.assert_close(other.grad, one.grad)
    for (name, value), expected in zip(shared.state_dict().items(), norm.state_dict().values(), strict=True):
        torch.testing.assert_close(value, expected, msg=name)
    norm.eval(), shared.eval()
    torch.testing.assert_close(shared(x), norm(x))


def test_gradients_are_summed_in_buckets_that_hold_all_of_them_once(monkeypatch):
    monkeypatch.setattr(runner, "BUCKET", 10)
    tensors = [torch.ones(size) for size in (4, 5, 2, 30)] + [torch.ones(1, dtype=torch.float64)]
    buckets = runner._buckets(tensors)
    assert [[len(each) for each in bucket] for bucket in buckets] == [[4, 5], [2], [30], [1]]


def test_a_stop_of_several_processes_is_noticed_where_all_check_and_nowhere_else(monkeypatch):
    from lib.training import stopping

    told = []
    monkeypatch.setattr(stopping, "world_size", lambda: 2)
    monkeypatch.setattr(
        stopping, "max_over_processes", lambda value: told.append(value) or max(value, 2)
    )  # another got SIGUSR1
    with Stop() as stop:
        with stop.waiting(), stop.waiting(False):
            stop._note(stopping.signal.SIGTERM, None)
        assert told == []
        with pytest.raises(stopping.Stopped) as stopped:
            stop.check()
    assert told == [1] and stopped.value.name == "SIGUSR1"


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (InputError("a.npy: broken"), "process 1: a.npy: broken"),
        (RuntimeError("[gloo/pair.cc:5] Connection closed by peer. And more"), "another process of this run ended"),
    ],
)
def test_what_goes_wrong_among_processes_is_one_line(monkeypatch, error, line):
    for name, value in {"WORLD_SIZE": "2", "RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(launch, "_join", lambda device: None)
    monkeypatch.setattr(launch, "PATIENCE", 0)
    monkeypatch.setattr(launch, "is_main", lambda: isinstance(error, RuntimeError))
    monkeypatch.setattr(launch, "rank", lambda: 1)
    monkeypatch.setattr(launch.sys, "stdout", sys.stdout)
    monkeypatch.setattr(launch.signal, "signal", lambda *_: None)
    with pytest.raises(InputError, match=line), joined(None):
        raise error


def test_torchrun_with_one_gpu_for_all_is_refused(monkeypatch):
    for name, value in {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match="--device cuda:1: torchrun gives each process a GPU of its own"):
        with joined("cuda:1"):
            pytest.fail("joined")
