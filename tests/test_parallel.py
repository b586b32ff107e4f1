"""Splitting work over devices: on the CPU, with two or three "devices" that are all the CPU."""

from __future__ import annotations

import copy
import importlib

import pytest
import torch

from lib import parallel
from lib.errors import InputError
from lib.fragments import Fragments
from lib.model import build_model
from lib.parallel import PairScorer, Runner, score_in_parts, visible_devices
from tests.helpers import HEADS, small_batch, small_config

CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("single_thread")


def encoded(model) -> tuple[Fragments, Fragments]:
    """Encoded images and captions as leaves that take gradients."""
    images, token_ids = small_batch()
    with torch.no_grad():
        both = model.image_encoder(images.to(torch.float64)), model.text_encoder(token_ids)
    return tuple(Fragments(features.clone().requires_grad_(), mask) for features, mask in both)


def gradients(model, images: Fragments, captions: Fragments, score) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Scores, and the gradients of a fixed weighting of them with respect to fragments and the head."""
    inputs = [images.features, captions.features, *model.similarity.parameters()]
    scores = score(images, captions)
    weights = torch.linspace(-1, 1, scores.numel()).reshape(scores.shape)
    found = torch.autograd.grad((scores * weights).sum(), inputs, allow_unused=True)
    return scores.detach(), [torch.zeros_like(x) if g is None else g for x, g in zip(inputs, found, strict=True)]


def assert_close(found, expected, tolerance: float = 1e-10) -> None:
    assert (found - expected).abs().max() <= tolerance * expected.abs().max().clamp(min=1e-3)


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("similarity", HEADS)
def test_scoring_in_parts_equals_one_scorer_in_values_and_gradients(similarity, count):
    model = build_model(small_config(similarity)).double().eval()
    fragments = encoded(model)
    one = gradients(model, *fragments, model.score)
    scorer = PairScorer(model.similarity)  # replicas share the parameters, so their gradients add up
    parts = gradients(model, *fragments, lambda *x: score_in_parts([scorer] * count, [CPU] * count, *x))
    assert_close(parts[0], one[0])
    for found, expected in zip(parts[1], one[1], strict=True):
        assert_close(found, expected)


def test_fewer_images_than_devices_leave_devices_idle():
    model = build_model(small_config()).double().eval()
    images, captions = encoded(model)
    images = images.select(slice(2))
    scorers = [PairScorer(copy.deepcopy(model.similarity)) for _ in range(3)]
    scores = score_in_parts(scorers, [CPU] * 3, images, captions)
    assert scores.shape == (2, len(captions.mask))
    assert_close(scores, model.score(images, captions))


@pytest.mark.parametrize("grid", [False, True])
def test_a_runner_on_one_device_gives_the_models_own_numbers(grid):
    model = build_model(small_config(grid=grid)).eval()
    runner = Runner(model, [CPU])
    images, token_ids = small_batch(grid)
    expected = model(images, token_ids)
    assert torch.equal(runner.score(runner.encode_images(images), runner.encode_captions(token_ids)), expected)


@pytest.fixture
def replicas_on_the_cpu(monkeypatch):
    """Let torch's replicate work on the CPU: each replica gets the parameters themselves."""
    module = importlib.import_module("torch.nn.parallel.replicate")
    monkeypatch.setattr(
        module, "_broadcast_coalesced_reshape", lambda tensors, devices, *_, **__: [[*tensors] for _ in devices]
    )
    monkeypatch.setattr(module, "_get_device_index", lambda *_: 0)


@pytest.mark.parametrize("similarity", HEADS)
def test_a_head_survives_torchs_replication_with_every_parameter(similarity, replicas_on_the_cpu):
    model = build_model(small_config(similarity)).double().eval()
    model.similarity.score_memory = 1 << 20
    fragments = encoded(model)
    one = gradients(model, *fragments, model.score)
    parts = gradients(model, *fragments, Runner(model, [CPU, CPU]).score)
    assert_close(parts[0], one[0])
    for found, expected in zip(parts[1], one[1], strict=True):
        assert_close(found, expected)


@pytest.mark.parametrize("grid", [False, True])
def test_several_devices_split_captions_and_raw_images_but_never_regions(grid, monkeypatch):
    calls = []

    def split(module, inputs, devices):
        calls.append((type(module.encoder).__name__, len(devices)))
        parts = [module(part) for part in inputs.chunk(len(devices))]
        return Fragments(*map(torch.cat, zip(*parts, strict=True)))

    monkeypatch.setattr(parallel, "data_parallel", split)
    model = build_model(small_config(grid=grid)).eval()
    runner = Runner(model, [CPU, CPU])
    images, token_ids = small_batch(grid)
    encoded_images, encoded_captions = runner.encode_images(images), runner.encode_captions(token_ids)
    assert calls == [*([("GridEncoder", 2)] if grid else []), ("BertEncoder", 2)]
    for found, expected in (
        (encoded_images, model.image_encoder(images)),
        (encoded_captions, model.text_encoder(token_ids)),
    ):
        assert torch.equal(found.mask, expected.mask)
        assert_close(found.features, expected.features, 1e-5)


def test_devices_are_the_named_one_else_all_gpus_else_the_cpu(monkeypatch):
    assert visible_devices("cpu") == [CPU]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert visible_devices() == [CPU]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    assert visible_devices() == [torch.device("cuda", index) for index in range(3)]


@pytest.mark.parametrize("name", ["gpu", "cuda:99", "cuda:-1", ""])
def test_a_device_that_is_not_here_is_an_input_error_that_names_it(name):
    with pytest.raises(InputError, match=f"--device '{name}' can't be used"):
        visible_devices(name)
