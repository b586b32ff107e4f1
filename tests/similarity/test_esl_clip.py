"""The heads of CLIP-based ESL against a slow definition and the golden values."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from lib.core.fragments import Fragments
from lib.core.functional import l2_normalize
from lib.similarity import HEADS
from lib.similarity.head import SimilarityHead
from tests.conftest import SHARED, needs_shared

pytestmark = pytest.mark.usefixtures("single_thread")
ROOT = "pool_frames.cross_attn."


def one_each(vectors: torch.Tensor) -> Fragments:
    return Fragments.full(vectors[:, None])


def released_names(kind: str, head) -> dict[str, torch.nn.Parameter]:
    """The head's parameters under their released names."""
    names = {
        "sims.calculator_1.sim_eval.weight": head.contribution.p,
        "sims.calculator_1.temp_scale.weight": head.log_scale,
        "sims.calculator_1.temp_scale_1.weight": head.contribution.sigma,
        "sims.calculator_1.temp_scale_2.weight": head.contribution.log_sharpness,
    }
    for k, correspondence in enumerate(head.correspondences):
        names[f"sims.calculator_1.masks_{k}.weight"] = correspondence.matrix
    for side, short, aggregator in (("image", "img", head.image_aggregator), ("text", "txt", head.caption_aggregator)):
        for k, weight in enumerate(aggregator.weights, start=1):
            name = f"masks_{k}" if kind == "a" else f"kernel_{short}_{k}"
            names[f"plus_encoder.encoders_1.{side}_levels.{name}.weight"] = weight
    return {ROOT + name: parameter for name, parameter in names.items()}


def trained(kind: str, embed_size: int = 256):
    """A head in float64 with weights away from every initial value."""
    head = HEADS[f"esl_clip_{kind}"].make(embed_size).double()
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return head


def obvious_score(kind: str, head, image: torch.Tensor, caption: torch.Tensor) -> float:
    """The score of one pair, written as the design says it: one level after the other, one M_k after the other."""
    p = head.contribution.p.detach()
    sigma, sharpness = head.contribution.sigma.item(), math.exp(head.contribution.log_sharpness.item())
    threshold = min(abs(p)) + (max(abs(p)) - min(abs(p))) / (1 + math.exp(-sigma))
    v, t, total = l2_normalize(image), l2_normalize(caption), 0.0
    z_image, z_caption = v, t
    for k, correspondence in enumerate(head.correspondences):
        if k:
            z_image, z_caption = (
                next_level(kind, aggregator, k, z)
                for aggregator, z in ((head.image_aggregator, v), (head.caption_aggregator, z_caption))
            )
            v, t = l2_normalize(z_image), l2_normalize(z_caption)
        degree = p[k] * math.exp((abs(p[k]) - threshold) * sharpness)
        total += float(degree * (v @ correspondence.matrix.detach() @ t))
    return total / 9


def next_level(kind: str, aggregator, k: int, z: torch.Tensor) -> torch.Tensor:
    weight = aggregator.weights[k - 1].detach()
    if kind == "h":
        taps = weight.sum((0, 1))
        return torch.stack([(taps * z[2 * j : 2 * j + 2]).sum() for j in range(len(z) // 2)])
    rows = []
    for row in weight:
        row = l2_normalize(row)
        second = row.sort(descending=True).values[min(1, len(row) - 1)]
        rows.append((torch.where(row >= second, row, 0) * z).sum())
    return torch.stack(rows)


@pytest.mark.parametrize("kind", ["a", "h"])
def test_scores_equal_the_definition_pair_by_pair(kind):
    head = trained(kind)
    images, captions = torch.randn(3, 256).double(), torch.randn(4, 256).double()
    scores = head(one_each(images), one_each(captions)).detach()
    expected = [[obvious_score(kind, head, image, caption) for caption in captions] for image in images]
    assert torch.allclose(scores, torch.tensor(expected, dtype=torch.float64), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", ["a", "h"])
def test_several_fragments_are_read_by_their_mean_and_padding_by_nothing(kind):
    head = trained(kind)
    mask = torch.tensor([[True, True, False], [True, False, False]])
    images = Fragments(torch.randn(2, 3, 256).double(), mask)
    means = torch.stack([images.features[0, :2].mean(0), images.features[1, 0]])
    captions = one_each(torch.randn(4, 256).double())
    assert torch.equal(head(images, captions), head(one_each(means), captions))


def test_every_level_counts_equally_at_the_start_and_the_threshold_gets_no_gradient():
    for kind in "ah":
        head = HEADS[f"esl_clip_{kind}"].make(256)
        assert torch.equal(head.contribution() * 9, torch.full((9,), 0.1))
        assert all(torch.equal(each.matrix, torch.eye(len(each.matrix))) for each in head.correspondences)
        scores = head(one_each(torch.randn(3, 256)), one_each(torch.randn(3, 256)))
        (scores * torch.randn(3, 3)).sum().backward()
        assert head.contribution.sigma.grad == head.contribution.log_sharpness.grad == 0
        assert head.log_scale.grad is None and head.contribution.p.grad.abs().min() > 0


def test_no_words_are_compared_so_there_is_no_picture():
    head = HEADS["esl_clip_a"].make(256)
    assert type(head).attention is SimilarityHead.attention
    vectors = head.embed_images(one_each(torch.randn(3, 256)))
    assert vectors.shape == (3, 511) and torch.allclose(vectors.norm(dim=1), torch.ones(3), atol=1e-6)


def golden(kind: str, name: str, dtype):
    """A head with the golden weights, both features with gradients, and the file."""
    file = np.load(SHARED / "golden" / f"golden_esl_clip_{name}.npz")
    head = HEADS[f"esl_clip_{kind}"].make(256).to(dtype)
    with torch.no_grad():
        for key, parameter in released_names(kind, head).items():
            if key in file:
                parameter.copy_(torch.from_numpy(file[key]).reshape(parameter.shape))
    features = [torch.from_numpy(file[f"{side}_features"]).to(dtype).requires_grad_() for side in ("image", "text")]
    return head, *features, file


@needs_shared
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-8)])
@pytest.mark.parametrize(("kind", "name"), [("a", "a"), ("h", "h"), ("h", "init")])
def test_scores_levels_and_gradients_are_those_of_the_released_heads(kind, name, dtype, tolerance):
    head, images, captions, file = golden(kind, name, dtype)
    scores = head(one_each(images), one_each(captions))
    (scores * torch.from_numpy(file["fixed_weights"]).to(dtype)).sum().backward()

    def check(found, expected, tolerance):
        expected = torch.from_numpy(expected).double()
        largest = float(expected.abs().max())
        error = float((found.detach().double().reshape(expected.shape) - expected).abs().max())
        assert error <= tolerance * largest, error / largest

    check(scores, file["sims_f64"], tolerance)
    if name != "init":
        for side, units in (("image", head._image_units(images)), ("text", head._caption_units(captions))):
            check(units, file[f"{side}_levels"], 1e-5)
    # level 8 has size 1, of which float32 noise is all that is left; only the initial head's gradients are of float64
    unstable = ("_levels.masks_8.weight", "_levels.kernel_img_8.weight", "_levels.kernel_txt_8.weight")
    exact = name == "init" and dtype == torch.float64
    without = file["grad_none"].tolist() if "grad_none" in file else [f"{ROOT}sims.calculator_1.temp_scale.weight"]
    for key, parameter in (released_names(kind, head) | {"image_features": images, "text_features": captions}).items():
        if key in without:
            assert parameter.grad is None
        elif f"grad.{key}" in file and (exact or not key.endswith(unstable)):
            check(parameter.grad, file[f"grad.{key}"], 1e-7 if exact else 1e-5 if dtype == torch.float64 else 1e-4)
