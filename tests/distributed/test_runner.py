"""Splitting work over devices: on the CPU, with two or three "devices" that are all the CPU."""

from __future__ import annotations

import importlib

import pytest
import torch

from lib.core.errors import InputError
from lib.core.fragments import Fragments
from lib.distributed import runner as parallel
from lib.distributed.launch import visible_devices
from lib.distributed.runner import Runner, seed_devices
from lib.model import build_model
from lib.similarity.alignment import Backend
from tests.helpers import HEADS, small_batch, small_config

CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("single_thread")


def encoded(model) -> tuple[Fragments, Fragments]:
    """Encoded images and captions as leaves that take gradients."""
    images, captions = small_batch()
    with torch.no_grad():
        both = model.image_encoder(images.to(torch.float64)), model.text_encoder(captions)
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


def assert_same_gradients(found: tuple, expected: tuple) -> None:
    assert_close(found[0], expected[0])
    for one, other in zip(found[1], expected[1], strict=True):
        assert_close(one, other)


@pytest.fixture
def calls(monkeypatch) -> list:
    """The module, the number of items of each share and the number of devices of every split piece of work."""
    seen, run = [], parallel.run_replicas

    def record(module, inputs, devices):
        name = type(getattr(module, "encoder", module)).__name__
        counts = [len(items) if isinstance(items, torch.Tensor) else items.count for items, *_ in inputs]
        seen.append((name, counts, len(devices)))
        return run(module, inputs, devices)

    monkeypatch.setattr(parallel, "run_replicas", record)
    return seen


@pytest.fixture
def torchs_replicas(monkeypatch):
    """Let several "devices" of the CPU work as GPUs do, through torch's replicas, one after another; each replica gets
    the parameters themselves."""
    module = importlib.import_module("torch.nn.parallel.replicate")
    monkeypatch.setattr(
        module, "_broadcast_coalesced_reshape", lambda tensors, devices, *_, **__: [[*tensors] for _ in devices]
    )
    monkeypatch.setattr(module, "_get_device_index", lambda *_: 0)
    run, made = parallel.run_replicas, []

    def apply(replicas, inputs, devices):
        made.append(replicas)
        return [replica(*each) for replica, each in zip(replicas, inputs, strict=True)]

    monkeypatch.setattr(parallel, "parallel_apply", apply)
    gpus = [torch.device("cuda", number) for number in range(3)]
    monkeypatch.setattr(parallel, "run_replicas", lambda each, inputs, used: run(each, inputs, gpus[: len(used)]))
    return made


# ---- scoring ----


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("similarity", HEADS)
def test_scoring_in_parts_equals_one_device_in_values_and_gradients(similarity, count, calls):
    model = build_model(small_config(similarity)).double().eval()
    fragments = encoded(model)
    one = gradients(model, *fragments, model.similarity)
    assert_same_gradients(gradients(model, *fragments, Runner(model, [CPU] * count).score), one)
    shares = {2: [4, 3], 3: [3, 3, 1]}[count]  # of the images; every device gets all captions
    assert calls == [(type(model.similarity).__name__, shares, count)]


@pytest.mark.parametrize("similarity", HEADS)
def test_a_head_survives_torchs_replication_with_every_parameter_and_its_backend(similarity, torchs_replicas):
    model = build_model(small_config(similarity)).double().eval()
    backend = Backend("torch", 1 << 20)
    runner = Runner(model, [CPU, CPU], backend=backend)
    fragments = encoded(model)
    one = gradients(model, *fragments, model.similarity)
    assert_same_gradients(gradients(model, *fragments, runner.score), one)
    (replicas,) = torchs_replicas
    assert len(replicas) == 2 and all(replica.backend == backend for replica in replicas)


def test_fewer_images_than_devices_leave_devices_idle(calls):
    model = build_model(small_config()).double().eval()
    images, captions = encoded(model)
    images = images.select(slice(2))
    scores = Runner(model, [CPU] * 3).score(images, captions)
    assert scores.shape == (2, captions.count) and calls == [("ESL", [1, 1], 2)]
    assert_close(scores, model.similarity(images, captions))


def test_the_heads_of_several_devices_are_equal_copies_and_that_of_one_is_the_models_own():
    model = build_model(small_config())
    assert Runner(model, [CPU]).heads() == [model.similarity]
    first, *others = Runner(model, [CPU] * 3, backend=Backend("plain")).heads()
    assert first is model.similarity and len(others) == 2
    for other in others:
        assert other.backend == Backend("plain")
        for (name, one), copied in zip(first.named_parameters(), other.parameters(), strict=True):
            assert torch.equal(one, copied) and one.data_ptr() != copied.data_ptr(), name


@pytest.mark.parametrize("similarity", HEADS)
def test_the_way_of_a_runner_is_that_of_its_head_and_no_other_models(similarity):
    model, other = (build_model(small_config(similarity)) for _ in range(2))
    Runner(model, [CPU], backend=Backend("torch", 3 << 20))
    assert model.similarity.backend == Backend("torch", 3 << 20) and other.similarity.backend == Backend("auto", None)
    Runner(model, [CPU])  # one without a wish leaves it
    assert model.similarity.backend == Backend("torch", 3 << 20)


# ---- encoding ----


@pytest.mark.parametrize("grid", [False, True])
def test_a_runner_on_one_device_gives_the_models_own_numbers(grid):
    model = build_model(small_config(grid=grid)).eval()
    runner = Runner(model, [CPU])
    images, captions = small_batch(grid)
    expected = model(images, captions)
    assert torch.equal(runner.score(runner.encode_images(images), runner.encode_captions(captions)), expected)
    prepared = runner.prepare_images(model.image_encoder(images)), runner.prepare_captions(model.text_encoder(captions))
    assert torch.equal(model.similarity.score(*prepared), expected)


@pytest.mark.parametrize("grid", [False, True])
def test_several_devices_split_captions_and_raw_images_but_never_regions(grid, calls):
    model = build_model(small_config(grid=grid)).eval()
    runner = Runner(model, [CPU, CPU])
    images, captions = small_batch(grid)
    encoded_images, encoded_captions = runner.encode_images(images), runner.encode_captions(captions)
    assert calls == [*([("GridEncoder", [4, 3], 2)] if grid else []), ("BertEncoder", [4, 3], 2)]
    for found, expected in (
        (encoded_images, model.image_encoder(images)),
        (encoded_captions, model.text_encoder(captions)),
    ):
        assert torch.equal(found.mask, expected.mask)
        assert_close(found.features, expected.features, 1e-5)


def test_encoders_survive_torchs_replication_in_values_and_gradients(torchs_replicas):
    model = build_model(small_config(grid=True)).double().eval()
    images, captions = small_batch(grid=True)
    images = images.double()

    def outcome(runner):
        model.zero_grad()
        both = runner.encode_images(images), runner.encode_captions(captions)
        sum(each.features.square().mean() for each in both).backward()
        grads = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        return [each.features.detach() for each in both], grads

    features, grads = outcome(Runner(model, [CPU]))
    found, found_grads = outcome(Runner(model, [CPU, CPU]))
    assert [len(replicas) for replicas in torchs_replicas] == [2, 2]
    for one, other in zip(found, features, strict=True):
        assert_close(one, other, 1e-6)  # the backbone hands on float32
    assert found_grads.keys() == grads.keys()
    largest = max(gradient.abs().max() for gradient in grads.values())
    for name, gradient in grads.items():
        assert (found_grads[name] - gradient).abs().max() <= 1e-5 * largest, name


@pytest.mark.parametrize("devices", [1, 2])
def test_bf16_encodes_in_bfloat16_on_every_device_and_hands_on_float32(devices, monkeypatch):
    model = build_model(small_config("vse_infty", grid=True)).eval()
    runner, (images, captions), inside = Runner(model, [CPU] * devices, "bf16"), small_batch(grid=True), []
    for encoder in (model.image_encoder, model.text_encoder):
        encoder.register_forward_hook(lambda *_: inside.append(torch.is_autocast_enabled("cpu")))
    for fragments, prepare in (
        (runner.encode_images(images), runner.prepare_images),
        (runner.encode_captions(captions), runner.prepare_captions),
    ):
        assert fragments.features.dtype == torch.float32
        assert prepare(fragments).units.dtype == torch.bfloat16
    assert inside == [True] * (2 * devices) and not torch.is_autocast_enabled("cpu")


# ---- devices ----


def test_devices_are_the_named_one_else_all_gpus_else_the_cpu(monkeypatch):
    assert visible_devices("cpu") == [CPU]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert visible_devices() == [CPU]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    assert visible_devices() == [torch.device("cuda", index) for index in range(3)]


@pytest.mark.parametrize("name", ["gpu", "cuda:99", "cuda:-1", "", "meta"])
def test_a_device_that_is_not_here_is_an_input_error_that_names_it(name):
    with pytest.raises(InputError, match=f"--device '{name}' can't be used"):
        visible_devices(name)


@pytest.mark.parametrize("places", [[0, 1, 2], [2, 0], [1]])
def test_every_device_draws_from_a_seed_of_its_own_that_follows_from_the_seed_alone(monkeypatch, places):
    generators = [torch.Generator() for _ in range(3)]
    monkeypatch.setattr(torch.cuda, "default_generators", generators)
    devices = [torch.device("cuda", place) for place in places]

    def draws(seed: int) -> list[torch.Tensor]:
        seed_devices(seed, devices)
        return [torch.rand(4), *(torch.rand(4, generator=generators[place]) for place in places[1:])]

    first, again, other = draws(11), draws(11), draws(700)
    assert all(torch.equal(one, same) for one, same in zip(first, again, strict=True))
    assert len(torch.stack([*first, *other]).unique(dim=0)) == 2 * len(places)


def test_the_draws_of_one_device_are_those_of_torchs_seed():
    seed_devices(11, [CPU])
    found = torch.rand(4)
    torch.manual_seed(11)
    assert torch.equal(found, torch.rand(4))
