"""On fake tensors of a GPU, a training step and the scoring of a split never ask the GPU for a value.

A fake tensor has a shape, a type and a device but no values, so whatever would wait for a GPU to know one fails; so
does a mixture of devices. Copies to the GPU must not wait either.
"""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from lib.core.fragments import Fragments, Tokens
from lib.distributed.runner import Runner
from lib.inference import scoring
from lib.model import build_model
from lib.similarity import gpo
from lib.similarity.alignment import gpu_kernel, tiled
from lib.training.engine import Trainer
from lib.training.losses import HingeTriplet
from lib.training.optim import build_optimizer
from lib.training.schedule import Phase, Schedule
from tests import python_autograd
from tests.helpers import HEADS, IMG_DIM, small_config

CUDA = torch.device("cuda", 0)
LENGTHS = np.array([5, 9, 4, 9, 7, 3])
PARTS = [*((head, False, precision) for head in HEADS for precision in ("float32", "bf16"))]
PARTS += [("esl_a", True, "float32"), ("esl_h", True, "bf16"), ("vse_infty", True, "float32")]
of_every_head_and_encoder = pytest.mark.parametrize(("similarity", "grid", "precision"), PARTS)


class CopiesDoNotWait(TorchDispatchMode):
    """Fails where a copy from the CPU to the GPU waits for what the GPU is doing."""

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = operator(*args, **kwargs)
        if operator in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default) and result.is_cuda:
            from_cpu = any(isinstance(x, torch.Tensor) and x.device.type == "cpu" for x in args)
            non_blocking = kwargs.get("non_blocking") or args[2:] == (True,)
            assert non_blocking or not from_cpu, f"{operator} waits for the GPU"
        return result


@pytest.fixture
def gpu(monkeypatch):
    """A GPU of fake tensors on this machine: new tensors are made there."""
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_: True)
    monkeypatch.setattr(gpu_kernel, "available", lambda *_: False)
    monkeypatch.setattr(gpo, "pack_padded_sequence", lambda codes, lengths, batch_first: codes)
    monkeypatch.setattr(gpo, "pad_packed_sequence", lambda codes, batch_first: (codes, None))
    monkeypatch.setattr(torch.Tensor, "backward", python_autograd.backward)
    with FakeTensorMode(), torch.device(CUDA), torch.backends.cudnn.flags(enabled=False):
        yield


def model_on_gpu(similarity: str, grid: bool):
    model = build_model(small_config(similarity, grid, **({} if grid else {"img_dim": IMG_DIM})))
    if grid:  # its draws are values of the CPU, which fake tensors lack
        rng = np.random.default_rng(0)
        model.image_encoder.kept_cells = lambda images, cells: rng.random((images, cells)) < 0.9
    model.to = lambda device: model  # it is there
    return model


def batch_of(grid: bool) -> SimpleNamespace:
    rng, count = np.random.default_rng(0), len(LENGTHS)
    if grid:
        images = torch.randn(count, 3, 64, 64, device="cpu")
    else:
        images = Fragments(torch.randn(count, 8, IMG_DIM, device="cpu"), rng.random((count, 8)) < 0.8)
    return SimpleNamespace(
        images=images, captions=Tokens(torch.ones(count, 9, dtype=torch.long, device="cpu"), LENGTHS)
    )


@of_every_head_and_encoder
def test_a_training_step_waits_for_no_value_of_the_gpu(gpu, similarity, grid, precision):
    model, loss = model_on_gpu(similarity, grid).train(), HingeTriplet()
    optimizer = build_optimizer(model, loss, "adam", 1e-3)
    trainer = Trainer(Runner(model, [CUDA], precision), loss, optimizer, Schedule())
    with CopiesDoNotWait():
        found, norm = trainer.step(batch_of(grid), Phase(1.0, True, 1.0, 0))
    assert found.device == norm.device == CUDA and found.dtype == torch.float32
    assert all(p.grad is not None and p.grad.device == CUDA for p in model.similarity.parameters())


@of_every_head_and_encoder
def test_the_scores_of_a_split_are_read_once_from_the_gpu(gpu, similarity, grid, precision):
    batch = batch_of(grid)
    runner = Runner(model_on_gpu(similarity, grid).eval(), [CUDA], precision)
    with CopiesDoNotWait():
        tiles, _ = scoring.encode_images(runner, [batch.images] * 2, 2 * len(LENGTHS), vectors=False)
        captions, _ = scoring.encode_captions(runner, [(np.arange(len(LENGTHS)), batch.captions)], 6, vectors=False)
        matrix = scoring._room_for_scores(2 * len(LENGTHS), 6)
        scoring._score(runner, tiles, captions, matrix)
    assert matrix.shape == (12, 6) and matrix.device.type == "cpu"


def operands(keep: bool) -> dict:
    """What the operator of the tiles takes for 6 images of 8 regions and 6 captions, words packed or not."""
    words = int(LENGTHS.sum()) if keep else LENGTHS.size * int(LENGTHS.max())
    return {
        "words": torch.randn(words, 20), "regions": torch.randn(6, 8, 20), "scale": torch.randn(()),
        "region_mask": torch.ones(8, 6, dtype=torch.bool), "lengths": sorted(LENGTHS.tolist()),
        "memory": None, "kernels": False,
    }  # fmt: skip


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("kernel", [False, True])
def test_the_tiles_of_the_scores_wait_for_no_value_of_the_gpu(gpu, monkeypatch, keep, kernel):
    """What the operator hides from fake tensors, with torch's operations and around the Triton kernel."""
    monkeypatch.setattr(gpu_kernel, "available", lambda *_: kernel)
    shapes = []

    def scores_of(S, scale, lengths, mask):
        assert {x.device.type for x in (S, scale, lengths, mask) if x is not None} == {"cuda"}
        shapes.append(S.shape)
        return S.new_empty(S.shape[0], S.shape[3])

    monkeypatch.setattr(gpu_kernel, "pair_scores", scores_of)
    with CopiesDoNotWait():
        places = None if keep else torch.zeros(int(LENGTHS.sum()), dtype=torch.long)
        given = operands(keep) | {"kernels": kernel}
        scores, product = tiled.forward(places=places, keep=keep, **given)
        assert bool(shapes) == kernel
        assert scores.shape == (6, 6) and scores.device == CUDA
        if keep:
            gradients = tiled.backward(product=product, grad=scores, **given)
            assert [g.shape for g in gradients] == [given[name].shape for name in ("words", "regions", "scale")]


def test_a_value_that_is_asked_for_is_noticed(gpu):
    """Or the tests above could not fail."""
    with pytest.raises(DataDependentOutputException):
        bool(torch.ones(3).all())
    with pytest.raises(AssertionError, match="waits for the GPU"), CopiesDoNotWait():
        torch.ones(3, device="cpu").to(CUDA)
