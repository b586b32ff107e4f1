"""A training step against plain autograd, accumulated batches, an epoch, the scores of a split, peak memory."""

from __future__ import annotations

import copy
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lib.datasets.loaders import RegionTrainSet, TrainBatch, train_loader
from lib.errors import InputError
from lib.fragments import Fragments
from lib.model import build_model
from lib.parallel import Runner
from lib.training import engine
from lib.training.engine import Recipe, score_split, seed_epoch, train_one_epoch, train_step
from lib.training.losses import hinge_triplet_loss
from lib.training.optim import build_optimizer
from lib.training.tracking import Tracker
from tests.helpers import HEADS, IMG_DIM, open_sample, scalars, small_batch, small_config, threads

CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("single_thread")


def model_and_batch(similarity: str = "esl_a", grid: bool = False, dropout: float = 0.1):
    model = build_model(small_config(similarity, grid, dropout)).train()
    images, token_ids = small_batch(grid)
    return model, TrainBatch(images, token_ids, torch.arange(len(token_ids)))


def gradients(model) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def frozen_optimizer(model) -> torch.optim.Optimizer:
    """An optimizer that changes nothing, so that the gradients of a step can be looked at."""
    return torch.optim.SGD(model.parameters(), lr=0.0)


def step_gradients(model, batch, recipe: Recipe, scale: float = 1.0):
    loss, norm = train_step(Runner(model, [CPU]), batch, frozen_optimizer(model), recipe, scale)
    return loss, norm, gradients(model)


def assert_gradients_equal(found: dict, expected: dict, tolerance: float) -> None:
    """Relative to the largest entry of each tensor; entries far below the largest of all are rounding noise."""
    assert found.keys() == expected.keys()
    largest = max(g.abs().max() for g in expected.values())
    for name, gradient in expected.items():
        scale = max(gradient.abs().max(), 1e-2 * largest)
        assert (found[name] - gradient).abs().max() <= tolerance * scale, name


# ---- one step ----


@pytest.mark.parametrize("optim", ["adam", "sgd"])
@pytest.mark.parametrize("grid", [False, True])
@pytest.mark.parametrize("similarity", HEADS)
def test_one_step_equals_plain_autograd(similarity, grid, optim):
    model, batch = model_and_batch(similarity, grid)
    plain = copy.deepcopy(model)
    torch.manual_seed(5)
    found, norm = train_step(Runner(model, [CPU]), batch, build_optimizer(model, optim, 1e-3), Recipe(hardest=False))
    torch.manual_seed(5)
    optimizer = build_optimizer(plain, optim, 1e-3)
    loss = hinge_triplet_loss(plain(batch.images, batch.captions), 0.2, hardest=False)
    loss.backward()
    total = math.sqrt(sum(float(g.double().square().sum()) for g in gradients(plain).values()))
    for parameter in plain.parameters():
        if parameter.grad is not None:
            parameter.grad *= min(1.0, 2.0 / (total + 1e-6))
    optimizer.step()
    assert found == pytest.approx(float(loss), rel=1e-6) and norm == pytest.approx(total, rel=1e-4)  # summed in float32
    for (name, value), expected in zip(model.state_dict().items(), plain.state_dict().values(), strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")


def test_the_hardest_negatives_and_the_margin_reach_the_loss():
    model, batch = model_and_batch(dropout=0.0)
    scores = model(batch.images, batch.captions)
    for hardest, margin in ((True, 0.2), (False, 0.2), (True, 0.5)):
        loss, *_ = step_gradients(model, batch, Recipe(margin=margin, hardest=hardest))
        assert loss == pytest.approx(float(hinge_triplet_loss(scores, margin, hardest)), rel=1e-5)


@pytest.mark.parametrize("limit", [2.0, 1e-3, 0.0])
def test_gradients_are_clipped_to_the_limit_over_all_parameters_and_0_means_no_limit(limit):
    model, batch = model_and_batch()
    _, norm, found = step_gradients(model, batch, Recipe(grad_clip=limit))
    after = math.sqrt(sum(float(g.square().sum()) for g in found.values()))
    assert norm > 2.0
    assert after == pytest.approx(limit or norm, rel=1e-4)


def test_the_scale_weighs_the_gradients_but_not_the_reported_loss():
    model, batch = model_and_batch(dropout=0.0)
    loss, norm, whole = step_gradients(model, batch, Recipe(grad_clip=0.0))
    scaled_loss, scaled_norm, quarter = step_gradients(model, batch, Recipe(grad_clip=0.0), scale=0.25)
    assert scaled_loss == loss and scaled_norm == pytest.approx(norm / 4, rel=1e-5)
    assert_gradients_equal(quarter, {name: g / 4 for name, g in whole.items()}, 1e-5)


def test_gradients_that_are_no_numbers_change_no_weight():
    model, batch = model_and_batch(dropout=0.0)
    before = copy.deepcopy(model.state_dict())
    batch.images.features[0, 0, 0] = torch.nan
    optimizer = build_optimizer(model, "adam", 1e-3)
    loss, norm = train_step(Runner(model, [CPU]), batch, optimizer, Recipe())
    assert math.isnan(loss) and math.isnan(norm)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]), name


def test_bf16_trains_close_to_float32_with_float32_weights():
    model, batch = model_and_batch(dropout=0.0)
    exact, _, expected = step_gradients(model, batch, Recipe(hardest=False))
    rough, _, found = step_gradients(model, batch, Recipe(hardest=False, precision="bf16"))
    assert rough == pytest.approx(exact, rel=0.02) and rough != exact
    assert all(g.dtype == torch.float32 for g in found.values())
    both = (torch.cat([g.flatten() for g in each.values()]) for each in (expected, found))
    assert torch.nn.functional.cosine_similarity(*both, dim=0) > 0.98


def test_a_step_repeats_bit_by_bit_on_two_threads():
    model = build_model(small_config())
    images, token_ids = small_batch(count=40, words=20)
    batch, results = TrainBatch(images, token_ids, torch.arange(40)), []
    with threads(2):
        for _ in range(2):
            seed_epoch(0, 0)
            loss, norm, found = step_gradients(copy.deepcopy(model).train(), batch, Recipe(hardest=False))
            results.append((loss, norm, found))
    assert results[0][:2] == results[1][:2]
    assert all(torch.equal(g, results[1][2][name]) for name, g in results[0][2].items())


# ---- accumulated batches ----


@pytest.mark.parametrize("pieces", [2, 3, 7, 50])
@pytest.mark.parametrize("grid", [False, True])
def test_accumulation_gives_the_gradients_of_the_whole_batch(grid, pieces, monkeypatch):
    model, batch = model_and_batch(grid=grid, dropout=0.0)
    if grid:
        keep_all = lambda images, cells, device=None: torch.ones(images, cells, dtype=torch.bool)  # noqa: E731
        monkeypatch.setattr(model.image_encoder, "cell_mask", keep_all)
    whole = step_gradients(model, batch, Recipe(hardest=False))
    chunks = step_gradients(model, batch, Recipe(hardest=False, accumulate=pieces))
    assert chunks[0] == pytest.approx(whole[0], rel=1e-6)
    length = math.sqrt(sum(float(g.square().sum()) for g in whole[2].values()))  # clipped to 2
    for name, gradient in whole[2].items():
        # Convolutions round otherwise in batches of another size, and otherwise on each processor.
        assert (chunks[2][name] - gradient).abs().max() <= 1e-5 * length, name

    model.double()  # without the noise of float32, and without clipping: relative to each gradient
    batch = batch._replace(images=batch.images.to(torch.float64))
    whole = step_gradients(model, batch, Recipe(grad_clip=0.0, hardest=False))
    chunks = step_gradients(model, batch, Recipe(grad_clip=0.0, hardest=False, accumulate=pieces))
    assert_gradients_equal(chunks[2], whole[2], 1e-6 if grid else 1e-10)  # the backbone hands on float32


@pytest.mark.parametrize("similarity", HEADS)
@pytest.mark.parametrize("grid", [False, True])
def test_accumulation_with_dropout_equals_autograd_through_the_same_chunks(similarity, grid):
    model, batch = model_and_batch(similarity, grid)
    plain = copy.deepcopy(model)
    torch.manual_seed(3)
    loss, _, found = step_gradients(model, batch, Recipe(grad_clip=0.0, accumulate=3))
    state = torch.get_rng_state()

    torch.manual_seed(3)
    captions = [plain.text_encoder(part) for part in batch.captions.chunk(3)]
    images = [plain.image_encoder(part) for part in (batch.images.chunk(3) if grid else [batch.images])]
    images, captions = (Fragments(*map(torch.cat, zip(*parts, strict=True))) for parts in (images, captions))
    expected = hinge_triplet_loss(plain.score(images, captions), 0.2, hardest=True)
    expected.backward()
    assert loss == pytest.approx(float(expected), rel=1e-6)
    assert_gradients_equal(found, gradients(plain), 1e-5)
    assert torch.equal(state, torch.get_rng_state())  # the draws that follow are those of a step without re-encoding
    for (name, value), other in zip(model.named_buffers(), plain.buffers(), strict=True):
        assert torch.equal(value, other), name  # BatchNorm saw the batch once


def test_encoding_again_repeats_the_same_random_draws(monkeypatch):
    model, batch = model_and_batch(grid=True)
    runner, outputs = Runner(model, [CPU]), {"encode_images": [], "encode_captions": []}

    def recording(encode, seen):
        def record(part):
            encoded = encode(part)
            seen.append(Fragments(encoded.features.detach().clone(), encoded.mask))
            return encoded

        return record

    for name, seen in outputs.items():
        monkeypatch.setattr(runner, name, recording(getattr(runner, name), seen))
    train_step(runner, batch, frozen_optimizer(model), Recipe(accumulate=3))
    for seen in outputs.values():
        assert [len(part.mask) for part in seen] == [3, 3, 1] * 2
        for first, second in zip(seen[:3], seen[3:], strict=True):
            assert torch.equal(first.mask, second.mask)
            torch.testing.assert_close(second.features, first.features, rtol=0, atol=1e-6)
    dropped = torch.cat([part.mask for part in outputs["encode_images"][:3]])
    assert not torch.equal(outputs["encode_captions"][0].features, outputs["encode_captions"][1].features)
    assert dropped.all(1).any()  # and each image drew for itself


def test_accumulation_scores_the_whole_batch_once_and_encodes_a_chunk_at_a_time(monkeypatch):
    model, batch = model_and_batch(grid=True)
    runner, scored = Runner(model, [CPU]), []
    score = runner.score
    monkeypatch.setattr(runner, "score", lambda i, c: scored.append((len(i.mask), len(c.mask))) or score(i, c))
    train_step(runner, batch, frozen_optimizer(model), Recipe(accumulate=7))
    assert scored == [(7, 7)]


@pytest.mark.parametrize("grid", [False, True])
def test_accumulation_in_bf16_reaches_every_weight(grid):
    model, batch = model_and_batch(grid=grid)
    _, _, whole = step_gradients(model, batch, Recipe(precision="bf16"))
    _, _, chunks = step_gradients(model, batch, Recipe(precision="bf16", accumulate=3))
    assert chunks.keys() == whole.keys()
    assert all(gradient.any() == whole[name].any() for name, gradient in chunks.items())


def test_a_frozen_backbone_accumulates_too():
    model, batch = model_and_batch(grid=True)
    model.image_encoder.backbone.set_trainable_stages(4)
    _, _, found = step_gradients(model, batch, Recipe(accumulate=2))
    assert "image_encoder.fc.weight" in found and not any("backbone" in name for name in found)


# ---- an epoch ----


@pytest.fixture
def epoch_parts(sample):
    """A runner, a loader of the sample's training split (5 steps) and an optimizer."""
    split, tokenized = open_sample(sample, "train")
    bert = small_config().bert | {"vocab_size": tokenized.vocab_size}
    model = build_model(small_config(img_dim=IMG_DIM, bert=bert))
    loader = train_loader(RegionTrainSet(split, tokenized, seed=0), 24, seed=0)
    return Runner(model, [CPU]), loader, build_optimizer(model, "adam", 1e-3)


def test_an_epoch_counts_its_steps_reports_each_and_logs_every_log_step(epoch_parts, tmp_path, monkeypatch):
    tracker, seen, lines = Tracker(tmp_path), [], []
    monkeypatch.setattr(engine.logger, "info", lambda text, *values: lines.append(text % values))
    step = train_one_epoch(*epoch_parts, Recipe(), 0, 100, tracker, 2, seen.append)
    tracker.close()
    assert step == 105 and seen == [101, 102, 103, 104]  # after the last one the caller validates
    assert [line.split()[3] for line in lines] == ["2/5", "4/5", "5/5"]
    events = scalars(tmp_path)
    assert [s for s, _ in events["train/loss"]] == [*seen, 105]
    for (_, loss), (_, per_pair) in zip(events["train/loss"], events["train/loss_per_pair"], strict=True):
        assert per_pair == pytest.approx(loss / 24, rel=1e-6)


def test_an_epoch_trains_in_training_mode_whatever_happened_before(epoch_parts):
    runner, loader, optimizer = epoch_parts
    runner.model.eval()
    seen = []
    train_one_epoch(
        runner, loader, optimizer, Recipe(), 0, 0, Tracker(None), 200, lambda _: seen.append(runner.model.training)
    )
    assert seen == [True] * 4


@pytest.mark.parametrize(("epoch", "scales"), [(0, [1.0] * 5), (1, [0.0, 0.2, 0.4, 0.6, 0.8]), (2, [1.0] * 5)])
def test_the_loss_ramp_of_grid_training_reaches_every_step(epoch_parts, monkeypatch, epoch, scales):
    runner, loader, optimizer = epoch_parts
    runner.model.config = small_config(grid=True)
    seen = []
    monkeypatch.setattr(engine, "train_step", lambda *arguments: seen.append(arguments[-1]) or (1.0, 1.0))
    train_one_epoch(runner, loader, optimizer, Recipe(embedding_warmup_epochs=1), epoch, 0, Tracker(None))
    assert seen == pytest.approx(scales)


def test_each_epoch_shuffles_anew_and_repeats_its_own_order(epoch_parts, monkeypatch):
    seen = {}
    monkeypatch.setattr(engine, "train_step", lambda _, batch, *__: order.extend(batch.indices.tolist()) or (1.0, 1.0))
    for name, epoch in (("first", 0), ("second", 1), ("again", 0)):
        order = seen[name] = []
        train_one_epoch(*epoch_parts, Recipe(), epoch, 0, Tracker(None))
    assert sorted(seen["first"]) == sorted(seen["second"]) == list(range(120))
    assert seen["first"] == seen["again"] != seen["second"]


def test_random_draws_of_an_epoch_follow_from_seed_and_epoch_alone():
    draws = {}
    for seed, epoch in ((0, 0), (0, 1), (1, 0)):
        seed_epoch(seed, epoch)
        draws[seed, epoch] = torch.rand(3)
    torch.rand(7)
    seed_epoch(0, 1)
    assert torch.equal(torch.rand(3), draws[0, 1])
    assert not torch.equal(draws[0, 0], draws[0, 1]) and not torch.equal(draws[0, 0], draws[1, 0])


def test_a_loss_that_is_no_number_stops_the_epoch_with_its_step(epoch_parts, monkeypatch):
    losses = iter([1.0, 1.0, math.nan])
    monkeypatch.setattr(engine, "train_step", lambda *_: (next(losses), 1.0))
    with pytest.raises(InputError, match="the loss is nan at epoch 3, step 2"):
        train_one_epoch(*epoch_parts, Recipe(), 3, 0, Tracker(None))


# ---- the scores of a split ----


@pytest.mark.parametrize("training", [True, False])
def test_scoring_a_split_leaves_mode_weights_and_random_state_as_they_were(sample, training):
    split, tokenized = open_sample(sample)
    bert = small_config().bert | {"vocab_size": tokenized.vocab_size}
    model = build_model(small_config(img_dim=IMG_DIM, bert=bert)).train(training)
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    scores = score_split(Runner(model, [CPU]), split, tokenized)
    assert scores.matrix.shape == (10, 50) and model.training == model.text_encoder.training == training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())


def test_a_split_that_cannot_be_read_leaves_the_mode_as_it_was(sample):
    split, tokenized = open_sample(sample)
    model = build_model(small_config(img_dim=16)).train()  # the features have another size
    with pytest.raises(RuntimeError):
        score_split(Runner(model, [CPU]), split, tokenized)
    assert model.training


# ---- memory ----

ONE_STEP = """
import resource, torch
from lib.fragments import Fragments
from lib.training.losses import hinge_triplet_loss
from lib.similarity import esl_a

head = esl_a(512)
regions = torch.randn(128, 36, 512, requires_grad=True)
words = torch.randn(128, 20, 512, requires_grad=True)
lengths = torch.randint(8, 21, (128,))
mask = torch.arange(20) < lengths[:, None]
scores = head.score(head.prepare_images(Fragments.full(regions)), head.prepare_captions(Fragments(words, mask)))
hinge_triplet_loss(scores, hardest=False).backward()
assert regions.grad.isfinite().all() and words.grad.isfinite().all()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_a_training_step_of_the_esl_head_at_batch_128_stays_below_3_gigabytes():
    root, environment = Path(engine.__file__).parents[2], {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", ONE_STEP], capture_output=True, text=True, cwd=root, env=environment)
    assert done.returncode == 0, done.stderr
    kilobytes = int(done.stdout) / (1024 if sys.platform == "darwin" else 1)
    assert kilobytes < 3 * 1024 * 1024
