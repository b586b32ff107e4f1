"""The slow reference itself: against the golden values where they are at hand, and against torch's own operations."""

from __future__ import annotations

import argparse
import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from tests import reference
from tests.conftest import SHARED, needs_shared

VALUE, GRADIENT = 1e-5, 1e-4
# One entry wide at embed_size 256: its float32 gradients are rounding noise.
NOISE = ("masks_8.weight", "lynorm_8.weight")


def load(name: str) -> dict[str, np.ndarray]:
    with np.load(SHARED / "golden" / name, allow_pickle=False) as file:
        return {key: file[key] for key in file.files}


def tensors(golden: dict[str, np.ndarray], prefix: str, grad: bool = False) -> dict[str, torch.Tensor]:
    """The float64 tensors under `prefix`, which is cut off their names."""
    found = {}
    for key, value in golden.items():
        if key.startswith(prefix):
            floating = value.dtype.kind == "f"
            tensor = torch.from_numpy(value)
            tensor = tensor.double() if floating else tensor
            found[key.removeprefix(prefix)] = tensor.requires_grad_(grad and floating)
    return found


def assert_close(actual, expected, tolerance: float, what: str = "") -> None:
    """Largest difference, relative to the largest expected value."""
    actual = torch.as_tensor(actual).detach().double()
    expected = torch.as_tensor(expected).double()
    assert actual.shape == expected.shape, what
    error = (actual - expected).abs().max() / expected.abs().max().clamp(min=1e-30)
    assert error <= tolerance, f"{what}: relative error {error:.2e}"


@pytest.fixture(scope="module")
def esl_a():
    golden = load("golden_esl_a.npz")
    parameters = tensors(golden, "sim_vec.", grad=True)
    images = torch.from_numpy(golden["img_emb"]).double().requires_grad_()
    captions = torch.from_numpy(golden["cap_emb"]).double().requires_grad_()
    words = [c[:n] for c, n in zip(captions, golden["cap_lens"].tolist(), strict=True)]
    scores = reference.esl_scores(list(images), words, parameters, "a", normalise=False)
    (scores * torch.from_numpy(golden["fixed_weights"]).double()).sum().backward()
    return golden, parameters, images, captions, scores


@needs_shared
def test_esl_a_scores_equal_the_golden_ones(esl_a):
    golden, *_, scores = esl_a
    assert_close(scores, golden["sims"], VALUE, "sims")


@needs_shared
def test_esl_a_input_gradients_equal_the_golden_ones(esl_a):
    golden, _, images, captions, _ = esl_a
    assert_close(images.grad, golden["grad.img_emb"], GRADIENT, "img_emb")
    assert_close(captions.grad, golden["grad.cap_emb"], GRADIENT, "cap_emb")


@needs_shared
def test_esl_a_parameter_gradients_equal_the_golden_ones(esl_a):
    golden, parameters, *_ = esl_a
    compared = 0
    for name, parameter in parameters.items():
        expected = torch.from_numpy(golden[f"grad.sim_vec.{name}"])
        if name.endswith(NOISE):
            continue
        if not expected.any():  # the temperatures that ESL-A leaves unused
            assert parameter.grad is None, name
            continue
        assert_close(parameter.grad, expected, GRADIENT, name)
        compared += 1
    assert compared == len(parameters) - 6


@needs_shared
def test_released_checkpoint_gives_its_golden_image_embeddings_and_scores():
    io = load("checkpoint_tiny64_esl_a_io.npz")
    with torch.serialization.safe_globals([argparse.Namespace]):
        released = torch.load(SHARED / "golden" / "checkpoint_tiny64_esl_a.pth", weights_only=True)["model"]
    encoder, _, head = (
        {k.removeprefix("module."): v.double() if v.is_floating_point() else v for k, v in part.items()}
        for part in released
    )
    images, _ = reference.region_encoder(torch.from_numpy(io["images"]).double(), encoder, training=False)
    assert_close(reference.l2norm(images), io["img_emb"], VALUE, "img_emb")
    captions = torch.from_numpy(io["cap_emb"]).double()
    words = [c[:n] for c, n in zip(captions, io["cap_lens"].tolist(), strict=True)]
    scores = reference.esl_scores(list(images), words, head, "a")
    assert_close(scores, io["sims"], VALUE, "sims")
    # The caption embeddings were stored in float32: a float64 run cannot come closer than their rounding.
    assert_close(scores, io["sims_f64"], 1e-6, "sims_f64")


@needs_shared
def test_gpo_values_and_gradients_equal_the_golden_ones():
    golden = load("golden_gpo.npz")
    parameters = tensors(golden, "gpo.", grad=True)
    features = torch.from_numpy(golden["features"]).double().requires_grad_()
    lengths = golden["lengths"].astype(int).tolist()
    assert_close(reference.positional_encoding(13), golden["pe"], VALUE, "pe")
    for n, expected in zip(lengths, golden["pool_weights"], strict=True):
        assert_close(reference.gpo_weights(n, parameters), expected[:n, 0], VALUE, f"weights of length {n}")
    pooled = torch.stack([reference.gpo_pool(x, n, parameters) for x, n in zip(features, lengths, strict=True)])
    assert_close(pooled, golden["pooled"], VALUE, "pooled")
    (pooled * torch.from_numpy(golden["fixed_weights"]).double()).sum().backward()
    assert_close(features.grad, golden["grad.features"], GRADIENT, "features")
    for name, parameter in parameters.items():
        assert_close(parameter.grad, golden[f"grad.gpo.{name}"], GRADIENT, name)


@needs_shared
@pytest.mark.parametrize("training", [False, True])
def test_region_encoder_values_statistics_and_gradients_equal_the_golden_ones(training):
    golden = load("golden_imgenc_esl.npz")
    mode = "train." if training else ""
    parameters = tensors(golden, "img_enc.")
    learned = [k.removeprefix("grad.img_enc.") for k in golden if k.startswith("grad.img_enc.")]
    for name in learned:
        parameters[name].requires_grad_()
    images = torch.from_numpy(golden["images"]).double()
    output, statistics = reference.region_encoder(images, parameters, training)
    output = reference.l2norm(output)
    assert_close(output, golden[f"{mode}output"], VALUE, "output")
    (output * torch.from_numpy(golden["fixed_weights"]).double()).sum().backward()
    # A bias in front of a BatchNorm that is training has no gradient; the golden one is rounding noise.
    for name in learned:
        if training and name == "mlp.layers.0.bias":
            assert parameters[name].grad.abs().max() < 1e-12
        else:
            assert_close(parameters[name].grad, golden[f"{mode}grad.img_enc.{name}"], GRADIENT, name)
    if training:
        for name, value in statistics.items():
            assert_close(value, torch.as_tensor(golden[f"train.buffer.img_enc.{name}"]), VALUE, name)


@needs_shared
@pytest.mark.parametrize("mode, hardest", [("sum", False), ("max", True)])
def test_hinge_triplet_loss_and_gradient_equal_the_golden_ones(mode, hardest):
    golden = load("golden_loss.npz")
    scores = torch.from_numpy(golden["scores"]).double().requires_grad_()
    loss = reference.hinge_triplet_loss(scores, 0.2, hardest)
    loss.backward()
    assert abs(loss.item() - golden[f"{mode}.loss_f64"]) < 1e-6
    assert_close(scores.grad, golden[f"{mode}.grad"], GRADIENT, "gradient")


def summary(ranks: list[int]) -> list[float]:
    values = np.array(ranks)
    recalls = [100 * float((values < k).mean()) for k in (1, 5, 10)]
    return [*recalls, math.floor(float(np.median(values))) + 1, float(values.mean()) + 1]


@needs_shared
def test_ranks_without_ties_equal_the_golden_ones():
    golden = load("golden_ranking.npz")
    i2t, t2i = reference.ranks(golden["sims"], np.arange(250) // 5)
    assert i2t == golden["i2t_ranks"].astype(int).tolist()
    assert t2i == golden["t2i_ranks"].astype(int).tolist()
    np.testing.assert_allclose(summary(i2t), golden["i2t"])
    np.testing.assert_allclose(summary(t2i), golden["t2i"])
    i2t, t2i = reference.ranks(golden["single_sims"], np.arange(50))
    np.testing.assert_allclose(summary(i2t), golden["single_i2t"])
    np.testing.assert_allclose(summary(t2i), golden["single_t2i"])


@needs_shared
def test_ranks_with_ties_are_never_better_than_those_of_an_arbitrary_order():
    golden = load("golden_ranking_ties.npz")
    for found, name in zip(reference.ranks(golden["sims"], np.arange(250) // 5), ("i2t", "t2i"), strict=True):
        ours, arbitrary = summary(found), golden[name]
        assert (np.array(ours[:3]) <= arbitrary[:3] + 1e-9).all()
        assert (np.array(ours[3:]) >= arbitrary[3:] - 1e-9).all()


def test_constant_scores_rank_last():
    i2t, t2i = reference.ranks(torch.ones(3, 6), [0, 0, 1, 1, 2, 2])
    assert i2t == [4, 4, 4]
    assert t2i == [2] * 6


def test_l2norm_of_zeros_has_finite_value_and_gradient():
    x = torch.zeros(2, 4, dtype=torch.float64, requires_grad=True)
    y = reference.l2norm(x)
    y.sum().backward()
    assert torch.equal(y, torch.zeros_like(y))
    assert x.grad.isfinite().all()


def test_adaptive_rows_keep_ties_with_the_second_largest_signed_value():
    rows = reference.sparse_rows(torch.tensor([[3.0, -9.0, 1.0, 2.0, 2.0], [4.0, 4.0, 1.0, 0.0, -5.0]]))
    assert (rows != 0).tolist() == [[True, False, False, True, True], [True, True, False, False, False]]
    assert torch.equal(reference.sparse_rows(torch.tensor([[2.0]])), torch.ones(1, 1))


@pytest.mark.parametrize("embed_size, size", [(16, 2), (29, 3)])
def test_heuristic_unit_equals_a_strided_convolution_summed_over_channels(embed_size, size):
    z = torch.randn(5, embed_size, dtype=torch.float64)
    kernel = torch.randn(4, 1, size, dtype=torch.float64)
    expected = F.conv1d(z.unsqueeze(1), kernel, stride=size).sum(1)
    torch.testing.assert_close(reference.aggregate_heuristic(z, kernel), expected)


def test_correspondence_equals_layer_norm():
    matrix, weight, bias = torch.randn(3, 6, 6, dtype=torch.float64)
    expected = F.layer_norm(matrix, (6, 6), weight, bias, eps=1e-8)
    torch.testing.assert_close(reference.correspondence(matrix, weight, bias), expected)


def test_gru_directions_equal_torchs_gru():
    gru = torch.nn.GRU(6, 6, batch_first=True, bidirectional=True).double()
    parameters = {f"gru.{name}": value for name, value in gru.named_parameters()}
    x = torch.randn(7, 6, dtype=torch.float64)
    expected = gru(x.unsqueeze(0))[0][0]
    torch.testing.assert_close(reference.gru_direction(x, parameters, "l0"), expected[:, :6])
    torch.testing.assert_close(reference.gru_direction(x.flip(0), parameters, "l0_reverse").flip(0), expected[:, 6:])


@pytest.mark.parametrize("kind", ["a", "h"])
def test_pair_score_equals_sums_over_single_words_regions_and_entries(kind):
    parameters = reference.random_esl_parameters(kind, 256, seed=1)
    image, caption = torch.randn(3, 256, dtype=torch.float64), torch.randn(2, 256, dtype=torch.float64)
    score, similarity = reference.esl_score(image, caption, parameters, kind)
    v = reference.esl_levels(image, parameters, kind, image_side=True)
    t = reference.esl_levels(caption, parameters, kind, image_side=False)
    matrices = reference.esl_correspondences(parameters, kind)
    s = [[sum(float(t[k][w] @ matrices[k] @ v[k][r]) for k in range(9)) for r in range(3)] for w in range(2)]
    np.testing.assert_allclose(similarity, s, rtol=1e-12, atol=1e-12)

    tau = math.exp(parameters["sims.calculator_1.temp_scale.weight"].item())
    g = [[math.tanh(x) if x > 0 else 0.1 * math.tanh(x) for x in row] for row in s]
    total = 0.0
    for w in range(2):
        e = [math.exp(tau * g[w][r] / (math.hypot(*(g[i][r] for i in range(2))) + 1e-8)) for r in range(3)]
        total += sum(s[w][r] * e[r] for r in range(3)) / sum(e) / 2
    for r in range(3):
        e = [math.exp(tau * g[w][r] / (math.hypot(*g[w]) + 1e-8)) for w in range(2)]
        total += sum(s[w][r] * e[w] for w in range(2)) / sum(e) / 3
    assert score.item() == pytest.approx(total, rel=1e-12)
    assert reference.esl_scores([image], [caption], parameters, kind).item() == pytest.approx(total, rel=1e-12)


def test_heuristic_contributions_equal_a_hand_computed_case():
    p = torch.tensor([0.1, -0.5, 0.3], dtype=torch.float64)
    found = reference.contributions_heuristic(
        p, torch.tensor([[0.25]], dtype=torch.float64), torch.tensor([[math.log(2)]], dtype=torch.float64)
    )
    expected = [0.1 * math.exp(-0.2), -0.5 * math.exp(0.6), 0.3 * math.exp(0.2)]  # threshold 0.1 + 0.25 · 0.4
    np.testing.assert_allclose(found, expected, rtol=1e-12)


@needs_shared
@pytest.mark.parametrize("kind", ["a", "h"])
def test_random_parameters_have_the_released_names_and_shapes(kind):
    expected = {}
    for line in (SHARED / "golden" / f"keys_esl_{kind}.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            _, module, key, shape, _ = line.split("\t")
            if module == "sim_vec":
                expected[key.removeprefix("module.")] = shape
    parameters = reference.random_esl_parameters(kind, 512, seed=0, dtype=torch.float32)
    assert {name: str(tuple(value.shape)) for name, value in parameters.items()} == expected
