"""A training step against plain autograd, accumulated batches, bfloat16, an epoch, random draws, peak memory."""

from __future__ import annotations

import copy
import dataclasses
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from lib.core.errors import InputError
from lib.core.fragments import Fragments
from lib.datasets.loaders import TrainBatch, train_loader
from lib.distributed.runner import Runner
from lib.model import build_model
from lib.training import engine, tracking
from lib.training.engine import Trainer
from lib.training.losses import HingeTriplet
from lib.training.optim import OPTIMIZERS, build_optimizer
from lib.training.progress import EpochLog
from lib.training.schedule import Phase, Schedule
from lib.training.tracking import Tracker
from tests.helpers import HEADS, IMG_DIM, differences, open_sample, scalars, small_batch, small_config, threads

CPU = torch.device("cpu")
HARDEST, ALL = (Phase(1.0, hardest, 1.0, 0) for hardest in (True, False))  # negatives that count
pytestmark = pytest.mark.usefixtures("single_thread")


def model_and_batch(similarity: str = "esl_a", grid: bool = False, dropout: float = 0.1):
    model = build_model(small_config(similarity, grid, dropout)).train()
    images, captions = small_batch(grid)
    return model, TrainBatch(images, captions, np.arange(captions.count))


def gradients(model) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def frozen_optimizer(model) -> torch.optim.Optimizer:
    """An optimizer that changes nothing, so that the gradients of a step can be looked at."""
    return torch.optim.SGD([{"params": list(model.parameters()), "base_lr": 0.0}], lr=0.0)


def trainer_of(model, optimizer=None, margin: float = 0.2, precision: str = "float32", **settings) -> Trainer:
    runner = Runner(model, [CPU], precision)
    return Trainer(runner, HingeTriplet(margin), optimizer or frozen_optimizer(model), Schedule(), **settings)


def step_gradients(model, batch, phase: Phase, **settings):
    """Loss, gradient norm and gradients of a step that changes no weight."""
    loss, norm = map(float, trainer_of(model, **settings).step(batch, phase))
    return loss, norm, gradients(model)


def length(tensors: dict[str, torch.Tensor]) -> float:
    """The norm over all tensors."""
    return math.sqrt(sum(float(x.double().square().sum()) for x in tensors.values()))


def distance(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    """The norm of the difference over all tensors, relative to that of `expected`."""
    assert found.keys() == expected.keys()
    return length({name: found[name] - gradient for name, gradient in expected.items()}) / length(expected)


def assert_gradients_equal(found: dict, expected: dict, tolerance: float) -> None:
    """Relative to the largest entry of each tensor; entries far below the largest of all are rounding noise."""
    assert found.keys() == expected.keys()
    largest = max(g.abs().max() for g in expected.values())
    for name, gradient in expected.items():
        scale = max(gradient.abs().max(), 1e-2 * largest)
        assert (found[name] - gradient).abs().max() <= tolerance * scale, name


def keep_all_cells(model, monkeypatch) -> None:
    """Let a grid encoder in training mode drop no cell."""

    monkeypatch.setattr(model.image_encoder, "kept_cells", lambda images, cells: np.ones((images, cells), dtype=bool))


# ---- one step ----


@pytest.mark.parametrize("optim", OPTIMIZERS)
@pytest.mark.parametrize("grid", [False, True])
@pytest.mark.parametrize("similarity", HEADS)
def test_one_step_equals_plain_autograd(similarity, grid, optim):
    model, batch = model_and_batch(similarity, grid)
    plain, loss_of = copy.deepcopy(model), HingeTriplet(0.2)
    torch.manual_seed(5)
    found, norm = map(float, trainer_of(model, build_optimizer(model, loss_of, optim, 1e-3)).step(batch, ALL))
    torch.manual_seed(5)
    optimizer = build_optimizer(plain, loss_of, optim, 1e-3)
    loss = loss_of(plain(batch.images, batch.captions), hardest=False)
    loss.backward()
    total = length(gradients(plain))
    for parameter in plain.parameters():
        if parameter.grad is not None:
            parameter.grad *= min(1.0, 2.0 / (total + 1e-6))
    optimizer.step()
    assert found == pytest.approx(float(loss.detach()), rel=1e-6)
    assert norm == pytest.approx(total, rel=1e-4)  # summed in float32
    for (name, value), expected in zip(model.state_dict().items(), plain.state_dict().values(), strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")


def test_the_hardest_negatives_and_the_margin_reach_the_loss():
    model, batch = model_and_batch(dropout=0.0)
    scores = model(batch.images, batch.captions).detach()
    for phase, margin in ((HARDEST, 0.2), (ALL, 0.2), (HARDEST, 0.5)):
        loss, *_ = step_gradients(model, batch, phase, margin=margin)
        assert loss == pytest.approx(float(HingeTriplet(margin)(scores, phase.hardest)), rel=1e-5)


@pytest.mark.parametrize("limit", [2.0, 1e-3, 0.0])
def test_gradients_are_clipped_to_the_limit_over_all_parameters_and_0_means_no_limit(limit):
    model, batch = model_and_batch()
    _, norm, found = step_gradients(model, batch, HARDEST, grad_clip=limit)
    assert norm > 2.0
    assert length(found) == pytest.approx(limit or norm, rel=1e-4)


def test_the_scale_weighs_the_gradients_but_not_the_reported_loss():
    model, batch = model_and_batch(dropout=0.0)
    loss, norm, whole = step_gradients(model, batch, HARDEST, grad_clip=0.0)
    scaled_loss, scaled_norm, quarter = step_gradients(model, batch, HARDEST._replace(loss_scale=0.25), grad_clip=0.0)
    assert scaled_loss == loss and scaled_norm == pytest.approx(norm / 4, rel=1e-5)
    assert_gradients_equal(quarter, {name: g / 4 for name, g in whole.items()}, 1e-5)


def test_a_step_is_taken_at_its_phases_share_of_every_groups_rate():
    model, batch = model_and_batch("vse_infty", grid=True)
    optimizer = build_optimizer(model, HingeTriplet(), "adam", 1e-3, 0.02)
    trainer = trainer_of(model, optimizer)
    for factor in (0.5, 0.5, 1.0):
        trainer.step(batch, HARDEST._replace(learning_rate=factor))
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx(
            [1e-3 * factor, 1e-4 * factor, 2e-5 * factor]
        )


@pytest.mark.parametrize("grid", [False, True])
def test_a_step_without_a_finite_gradient_changes_neither_weights_nor_statistics_nor_the_optimizer(grid):
    model, batch = model_and_batch(grid=grid, dropout=0.0)
    optimizer = build_optimizer(model, HingeTriplet(), "adam", 1e-3)
    trainer = trainer_of(model, optimizer)
    trainer.step(batch, HARDEST)
    before = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    (batch.images if grid else batch.images.features).view(-1)[0] = torch.nan
    loss, norm = trainer.step(batch, HARDEST)
    assert math.isnan(loss) and math.isnan(norm)
    assert differences(before, (model.state_dict(), optimizer.state_dict())) == []


def test_the_parameters_of_a_loss_are_trained_with_the_models():
    class Weighted(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(()))

        def forward(self, scores, hardest=True):
            return self.weight * HingeTriplet()(scores, hardest)

    model, batch = model_and_batch("vse_infty")
    loss = Weighted()
    optimizer = build_optimizer(model, loss, "sgd", 1e-3)
    Trainer(Runner(model, [CPU]), loss, optimizer, Schedule(), grad_clip=0.0).step(batch, HARDEST)
    assert float(loss.weight.detach()) == pytest.approx(1 - 1e-3 * float(loss.weight.grad), rel=1e-6)
    assert float(loss.weight.grad) > 0.1


def test_a_step_repeats_bit_by_bit_on_two_threads():
    model = build_model(small_config())
    images, captions = small_batch(count=40, words=20)
    batch, results = TrainBatch(images, captions, np.arange(40)), []
    with threads(2):
        for _ in range(2):
            trainer = trainer_of(copy.deepcopy(model).train())
            trainer.seed_epoch(0)
            results.append((*trainer.step(batch, ALL), gradients(trainer.runner.model)))
    assert results[0][:2] == results[1][:2]
    assert all(torch.equal(g, results[1][2][name]) for name, g in results[0][2].items())


# ---- accumulated batches ----


@pytest.mark.parametrize("grid", [False, True])
def test_accumulation_gives_the_gradients_of_the_whole_batch(grid, monkeypatch):
    model, batch = model_and_batch(grid=grid, dropout=0.0)
    if grid:
        keep_all_cells(model, monkeypatch)
    whole = step_gradients(model, batch, ALL)
    limit = 1e-5 * length(whole[2])  # which is clipped to 2
    for pieces in (2, 3, 7, 50):
        chunks = step_gradients(model, batch, ALL, accumulate=pieces)
        assert chunks[0] == pytest.approx(whole[0], rel=1e-6)
        for name, gradient in whole[2].items():
            # Convolutions round otherwise in batches of another size, and otherwise on each processor.
            assert (chunks[2][name] - gradient).abs().max() <= limit, (pieces, name)

    model.double()  # without the noise of float32, and without clipping: relative to each gradient
    batch = batch._replace(images=batch.images.to(torch.float64))
    whole = step_gradients(model, batch, ALL, grad_clip=0.0)
    for pieces in (2, 3, 7):
        chunks = step_gradients(model, batch, ALL, grad_clip=0.0, accumulate=pieces)
        assert_gradients_equal(chunks[2], whole[2], 1e-6 if grid else 1e-10)  # the backbone hands on float32


@pytest.mark.parametrize("similarity", HEADS)
@pytest.mark.parametrize("grid", [False, True])
def test_accumulation_with_dropout_equals_autograd_through_the_same_chunks(similarity, grid):
    model, batch = model_and_batch(similarity, grid)
    plain = copy.deepcopy(model)
    torch.manual_seed(3)
    loss, _, found = step_gradients(model, batch, HARDEST, grad_clip=0.0, accumulate=3)
    state = torch.get_rng_state()

    torch.manual_seed(3)
    images = [plain.image_encoder(part) for part in (batch.images.chunk(3) if grid else [batch.images])]
    captions = [plain.text_encoder(part) for part in batch.captions.chunk(3)]
    images, captions = Fragments.cat(images), Fragments.cat(captions)
    expected = HingeTriplet(0.2)(plain.similarity(images, captions), hardest=True)
    expected.backward()
    assert loss == pytest.approx(float(expected.detach()), rel=1e-6)
    assert_gradients_equal(found, gradients(plain), 1e-5)
    assert torch.equal(state, torch.get_rng_state())  # the draws that follow are those of a step without re-encoding
    for (name, value), other in zip(model.named_buffers(), plain.buffers(), strict=True):
        assert torch.equal(value, other), name  # BatchNorm saw the batch once


def test_encoding_again_repeats_the_same_random_draws(monkeypatch):
    model, batch = model_and_batch(grid=True)
    trainer, outputs = trainer_of(model, accumulate=3), {"encode_images": [], "encode_captions": []}

    def recording(encode, seen):
        def record(part):
            encoded = encode(part)
            seen.append(Fragments(encoded.features.detach().clone(), encoded.mask))
            return encoded

        return record

    for name, seen in outputs.items():
        monkeypatch.setattr(trainer.runner, name, recording(getattr(trainer.runner, name), seen))
    trainer.step(batch, HARDEST)
    for seen in outputs.values():
        assert [part.count for part in seen] == [3, 3, 1] * 2
        for first, second in zip(seen[:3], seen[3:], strict=True):
            assert torch.equal(first.mask, second.mask)
            torch.testing.assert_close(second.features, first.features, rtol=0, atol=1e-6)
    dropped = torch.cat([part.mask for part in outputs["encode_images"][:3]])
    assert not torch.equal(outputs["encode_captions"][0].features, outputs["encode_captions"][1].features)
    assert dropped.all(1).any()  # and each image drew for itself


def test_the_draws_of_every_gpu_are_repeated_when_a_chunk_is_encoded_again(monkeypatch):
    states = {"now": ["state 0", "other state 0"]}
    monkeypatch.setattr(torch.cuda, "get_rng_state_all", lambda: list(states["now"]))
    monkeypatch.setattr(torch.cuda, "set_rng_state_all", lambda new: states.update(now=list(new)))
    before = engine.random_state(torch.device("cuda", 0))
    states["now"] = ["state 9", "other state 9"]
    draw = torch.rand(2)
    engine.set_random_state(before, torch.device("cuda", 0))
    assert states["now"] == ["state 0", "other state 0"] and torch.equal(torch.rand(2), draw)


def test_accumulation_scores_the_whole_batch_once_and_encodes_a_chunk_at_a_time(monkeypatch):
    model, batch = model_and_batch(grid=True)
    trainer, scored, encoded = trainer_of(model, accumulate=7), [], []
    runner = trainer.runner
    score, encode = runner.score, runner.encode_images
    monkeypatch.setattr(runner, "score", lambda i, c: scored.append((i.count, c.count)) or score(i, c))
    monkeypatch.setattr(runner, "encode_images", lambda images: encoded.append(len(images)) or encode(images))
    trainer.step(batch, HARDEST)
    assert scored == [(7, 7)] and encoded == [1] * 14


def test_region_features_are_encoded_in_one_piece_for_the_statistics_of_their_batch(monkeypatch):
    model, batch = model_and_batch()
    trainer, encoded = trainer_of(model, accumulate=7), []
    encode = trainer.runner.encode_images
    monkeypatch.setattr(trainer.runner, "encode_images", lambda images: encoded.append(images.count) or encode(images))
    trainer.step(batch, HARDEST)
    assert encoded == [7]


def test_a_frozen_backbone_accumulates_too():
    model, batch = model_and_batch(grid=True)
    model.image_encoder.fix_blocks(4)
    _, _, found = step_gradients(model, batch, HARDEST, accumulate=2)
    assert "image_encoder.fc.weight" in found and not any("backbone" in name for name in found)


# ---- bfloat16 ----


@pytest.mark.parametrize("similarity", HEADS)
def test_bf16_trains_close_to_float32_with_float32_weights(similarity):
    model, batch = model_and_batch(similarity, dropout=0.0)
    exact, _, expected = step_gradients(model, batch, ALL, grad_clip=0.0)
    rough, _, found = step_gradients(model, batch, ALL, grad_clip=0.0, precision="bf16")
    assert rough == pytest.approx(exact, rel=0.01) and rough != exact
    assert all(gradient.dtype == torch.float32 for gradient in found.values())
    assert distance(found, expected) <= 0.1  # bfloat16 has 8 bits


@pytest.mark.parametrize(
    ("similarity", "grid", "tolerance"),
    [("esl_a", False, 0.1), ("esl_h", False, 0.1), ("vse_infty", False, 0.1), ("vse_infty", True, 0.3)],
)
def test_accumulation_in_bf16_gives_the_gradients_of_the_whole_batch(similarity, grid, tolerance, monkeypatch):
    """Exact up to the rounding of sums; from float32 as far as bfloat16 is, farther behind a deep random backbone."""
    model, batch = model_and_batch(similarity, grid, dropout=0.0)
    if grid:
        keep_all_cells(model, monkeypatch)
    exact, _, expected = step_gradients(model, batch, ALL, grad_clip=0.0)
    loss, _, whole = step_gradients(model, batch, ALL, grad_clip=0.0, precision="bf16")
    chunked, _, chunks = step_gradients(model, batch, ALL, grad_clip=0.0, precision="bf16", accumulate=3)
    assert chunked == pytest.approx(loss, rel=1e-3) and chunked == pytest.approx(exact, rel=0.01)
    assert distance(chunks, whole) <= 0.01
    least = 1e-3 * length(whole)
    for name, gradient in whole.items():
        assert float((chunks[name] - gradient).norm()) <= 0.1 * max(float(gradient.norm()), least), name
    assert distance(chunks, expected) <= tolerance


# ---- an epoch ----


@pytest.fixture
def epoch_parts(sample) -> tuple[Trainer, object]:
    """A trainer and a loader of the sample's training split (5 steps)."""
    inputs = open_sample(sample, "train")
    config = small_config(img_dim=IMG_DIM)
    vocabulary = {"vocab_size": inputs.captions.tokeniser.vocab_size}
    model = build_model(dataclasses.replace(config, text_options=config.text_options | vocabulary))
    optimizer = build_optimizer(model, HingeTriplet(), "adam", 1e-3)
    return trainer_of(model, optimizer), train_loader(inputs, 24, seed=0)


def train_epoch(trainer, loader, epoch: int = 0, number: int = 0, tracker=None, log_step: int = 200):
    """Train an epoch with its log; yields the number of each step."""
    with EpochLog(tracker or Tracker(None), epoch, len(loader.batch_sampler), log_step) as log:
        for step in trainer.steps(loader, epoch, number):
            trainer.watch(log.add(step))
            yield step.number


def test_an_epoch_counts_its_steps_reports_each_and_logs_every_log_step(epoch_parts, tmp_path, monkeypatch):
    tracker, lines = Tracker(tmp_path), []
    monkeypatch.setattr(tracking.logger, "info", lines.append)
    numbers = list(train_epoch(*epoch_parts, 0, 100, tracker, 2))
    tracker.close()
    assert numbers == [101, 102, 103, 104, 105]
    assert [line.split()[3] for line in lines] == ["2/5", "4/5", "5/5"]
    events = scalars(tmp_path)
    assert [s for s, _ in events["train/loss"]] == numbers
    for (_, loss), (_, per_pair) in zip(events["train/loss"], events["train/loss_per_pair"], strict=True):
        assert per_pair == pytest.approx(loss / 24, rel=1e-6)


def test_an_epoch_trains_in_training_mode_whatever_happened_before(epoch_parts):
    trainer, loader = epoch_parts
    trainer.runner.model.eval()
    assert [trainer.runner.model.training for _ in train_epoch(trainer, loader)] == [True] * 5


@pytest.mark.parametrize(
    ("epoch", "scales", "blocks"), [(0, [1.0] * 5, 4), (1, [0.0, 0.2, 0.4, 0.6, 0.8], 3), (2, [1.0] * 5, 2)]
)
def test_the_phase_of_every_step_and_the_fixed_blocks_of_every_epoch_are_the_schedules(
    epoch_parts, monkeypatch, epoch, scales, blocks
):
    trainer, loader = epoch_parts
    trainer.schedule = Schedule(2, 1, False, embedding_warmup_epochs=1, backbone_warmup_epochs=1, staged=True)
    seen, fixed = [], []
    monkeypatch.setattr(trainer, "step", lambda batch, phase: seen.append(phase) or torch.ones(2))
    monkeypatch.setattr(trainer.runner.model.image_encoder, "fix_blocks", fixed.append)
    list(train_epoch(trainer, loader, epoch))
    assert [phase.loss_scale for phase in seen] == pytest.approx(scales) and fixed == [blocks]
    assert seen == [trainer.schedule.at(epoch, step, 5) for step in range(5)]


def test_each_epoch_shuffles_anew_and_repeats_its_own_order(epoch_parts, monkeypatch):
    seen = {}
    monkeypatch.setattr(Trainer, "step", lambda _, batch, phase: order.extend(batch.indices.tolist()) or torch.ones(2))
    for name, epoch in (("first", 0), ("second", 1), ("again", 0)):
        order = seen[name] = []
        list(train_epoch(*epoch_parts, epoch))
    assert sorted(seen["first"]) == sorted(seen["second"]) == list(range(120))
    assert seen["first"] == seen["again"] != seen["second"]


def test_random_draws_of_an_epoch_follow_from_seed_and_epoch_alone():
    model, draws = build_model(small_config("vse_infty")), {}
    for seed, epoch in ((0, 0), (0, 1), (1, 0)):
        trainer_of(model, seed=seed).seed_epoch(epoch)
        draws[seed, epoch] = torch.rand(3)
    torch.rand(7)
    trainer_of(model, seed=0).seed_epoch(1)
    assert torch.equal(torch.rand(3), draws[0, 1])
    assert not torch.equal(draws[0, 0], draws[0, 1]) and not torch.equal(draws[0, 0], draws[1, 0])


def test_an_epoch_seeds_every_gpu_with_a_seed_of_its_own(monkeypatch):
    generators = [torch.Generator() for _ in range(3)]
    monkeypatch.setattr(torch.cuda, "default_generators", generators)
    trainer = trainer_of(build_model(small_config("vse_infty")))
    trainer.runner.devices = [torch.device("cuda", index) for index in range(3)]  # the model stays where it is

    def draws(epoch: int) -> list[torch.Tensor]:
        trainer.seed_epoch(epoch)
        return [torch.rand(4), *(torch.rand(4, generator=generator) for generator in generators[1:])]

    first, again, second = draws(0), draws(0), draws(1)
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))
    every = torch.stack([*first, *second])
    assert len(every.unique(dim=0)) == 6


def step_results(monkeypatch, losses: list[float], norms: list[float]) -> None:
    results = zip(torch.tensor(losses), torch.tensor(norms), strict=True)
    monkeypatch.setattr(Trainer, "step", lambda *_: next(results))


@pytest.mark.parametrize(
    ("losses", "norms"), [([1.0, *[math.nan] * 3], [1.0] * 4), ([1.0] * 4, [1.0, *[math.inf] * 3])]
)
def test_three_steps_in_a_row_without_a_finite_loss_or_gradient_stop_the_epoch(epoch_parts, monkeypatch, losses, norms):
    step_results(monkeypatch, losses, norms)
    found = f"the loss is {losses[-1]}, the gradient norm {norms[-1]}"
    with pytest.raises(InputError, match=f"3 steps in a row were skipped, the last one step 4: {found}"):
        list(train_epoch(*epoch_parts, 3))


def test_a_skipped_step_is_told_with_its_captions_and_the_epoch_goes_on(epoch_parts, monkeypatch):
    _, loader = epoch_parts
    step_results(monkeypatch, [math.nan, math.nan, 1.0, math.nan, math.nan], [1.0] * 5)
    warnings = []
    monkeypatch.setattr(engine.logger, "warning", lambda text, *values: warnings.append(text % values))
    loader.batch_sampler.set_epoch(3)
    first = ", ".join(str(index) for _, index in next(iter(loader.batch_sampler))[:8])
    list(train_epoch(*epoch_parts, 3))
    assert len(warnings) == 4
    assert (
        f"step 1 was skipped: the loss is nan, the gradient norm 1.0 (rows of its captions: {first}, …)" in warnings[0]
    )


# ---- memory ----

ONE_STEP = """
import resource, sys, torch
from lib.core.fragments import Fragments
from lib.similarity import HEADS
from lib.training.losses import HingeTriplet

head = HEADS["esl_a"].make(512)
regions = torch.randn(128, 36, 512, requires_grad=True)
words = torch.randn(128, 20, 512, requires_grad=True)
lengths = torch.randint(8, 21, (128,))
mask = torch.arange(20) < lengths[:, None]
HingeTriplet()(head(Fragments.full(regions), Fragments(words, mask)), hardest=False).backward()
assert regions.grad.isfinite().all() and words.grad.isfinite().all()
if sys.platform == "linux":  # ru_maxrss would begin with the memory of the process that started this one
    print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
else:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_a_training_step_of_the_esl_head_at_batch_128_stays_below_one_and_a_half_gibibytes():
    root, environment = Path(engine.__file__).parents[2], {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", ONE_STEP], capture_output=True, text=True, cwd=root, env=environment)
    assert done.returncode == 0, done.stderr
    kibibytes = int(done.stdout) / (1024 if sys.platform == "darwin" else 1)
    assert kibibytes < 1.5 * 1024 * 1024
