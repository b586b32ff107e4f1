"""Scoring tile by tile with torch's operations against the definition, in values and gradients."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from lib.core.fragments import Prepared
from lib.similarity.alignment import cpu_kernel, gpu_kernel, plain, tiled, tiles
from tests.similarity.alignment.problems import (
    CASES,
    GRADIENTS,
    LARGE_SCALES,
    SCORES,
    Problem,
    definition,
    errors,
    outcome,
    problem,
)

pytestmark = pytest.mark.usefixtures("single_thread")
DOUBLE = 1e-9  # of values and gradients in float64


@pytest.fixture(autouse=True)
def no_kernel_runs(monkeypatch):
    """Everything here is torch's own work."""
    for kernel, name in ((cpu_kernel, "pair_scores"), (cpu_kernel, "gradients"), (gpu_kernel, "pair_scores")):
        monkeypatch.setattr(kernel, name, lambda *_: pytest.fail("a kernel was called"))


def torch_scores(given: Problem):
    return partial(tiled.alignment_scores, memory=given.memory, kernels=False)


def in_evaluation(given: Problem) -> torch.Tensor:
    with torch.inference_mode():
        return torch_scores(given)(*given[:3])


@pytest.mark.parametrize("name", [*CASES, *LARGE_SCALES])
def test_scores_and_gradients_equal_the_definition_in_float64(name):
    given = problem(name).to(torch.float64)
    expected = definition(given)
    assert max(errors(outcome(torch_scores(given), given), expected)) < DOUBLE
    assert max(errors([in_evaluation(given)], expected[:1])) < DOUBLE


@pytest.mark.parametrize("name", [*CASES, *LARGE_SCALES])
def test_float32_stays_close_to_the_definition(name):
    given = problem(name)
    expected = definition(given)
    scores, *gradients = errors(outcome(torch_scores(given), given), expected)
    assert max(scores, *errors([in_evaluation(given)], expected[:1])) < SCORES[name]
    assert max(gradients) < GRADIENTS[name]


@pytest.mark.parametrize("memory", [1, 1 << 14, 1 << 20, None])
@pytest.mark.parametrize("kept", [1 << 28, 0], ids=["S is kept", "S is multiplied again"])
def test_tile_sizes_change_nothing(memory, kept, monkeypatch):
    monkeypatch.setattr(tiled, "MOST_SAVED", kept)
    given = problem("several_image_tiles").to(torch.float64)._replace(memory=memory)
    expected = definition(given)
    assert max(errors(outcome(torch_scores(given), given), expected)) < DOUBLE
    assert max(errors([in_evaluation(given)], expected[:1])) < DOUBLE


def test_a_backward_pass_multiplies_a_kept_product_no_second_time(monkeypatch):
    made, product = [], tiles.product
    monkeypatch.setattr(tiles, "product", lambda *args: (made.append(args), product(*args))[1])
    given = problem("several_blocks")
    outcome(torch_scores(given), given)
    assert len(made) == 3  # S, and the gradients of its two factors
    monkeypatch.setattr(tiled, "MOST_SAVED", 0)
    made.clear()
    outcome(torch_scores(given), given)
    assert len(made) > 10


@pytest.mark.parametrize("name", ["several_blocks", "both_masks", "long_caption", "scale_above_60"])
def test_padded_blocks_of_a_gpu_give_the_same(name, monkeypatch):
    budget = tiles.budget
    monkeypatch.setattr(tiles, "budget", lambda *args: budget(*args)._replace(spread=1.25))
    test_scores_and_gradients_equal_the_definition_in_float64(name)


def test_a_block_of_captions_of_any_length_gives_the_same(monkeypatch):
    budget = tiles.budget
    monkeypatch.setattr(tiles, "budget", lambda *args: budget(*args)._replace(spread=100.0))
    test_scores_and_gradients_equal_the_definition_in_float64("both_masks")


def test_bfloat16_rounds_the_product_and_nothing_after_it():
    given = problem("both_masks").to(torch.bfloat16)
    S = plain.word_region_similarity(*(x.to(torch.float64) for x in given[:2])).to(torch.bfloat16)
    masks = given.images.mask, given.captions.mask
    expected = plain.instance_similarity(S.double(), *masks, given.scale.double())
    found = in_evaluation(given)
    assert found.dtype == torch.float32
    assert max(errors([found], [expected])) < 1e-3  # single values of S round otherwise
    scores, *gradients = errors(outcome(torch_scores(given), given), definition(given))
    assert scores < 5e-3 and max(gradients) < 0.08  # the gradients' own steps are in bfloat16 too


def test_autocast_leaves_the_scores_in_float32():
    given = problem("both_masks")
    expected = outcome(torch_scores(given), given)
    with torch.autocast("cpu", torch.bfloat16):
        found = outcome(torch_scores(given), given)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_a_second_derivative_is_refused():
    given = problem("one_of_all").to(torch.float64)
    given.images.units.requires_grad_()
    scores = torch_scores(given)(*given[:3])
    (gradient,) = torch.autograd.grad(scores.square().sum(), given.images.units, create_graph=True)
    with pytest.raises(RuntimeError, match="no autograd formula"):
        gradient.sum().backward()


def test_scoring_without_gradient_keeps_nothing():
    given = problem("both_masks")
    assert torch_scores(given)(*given[:3]).grad_fn is None
    given.images.units.requires_grad_()
    assert in_evaluation(given).grad_fn is None


@pytest.mark.parametrize("name", ["both_masks", "several_image_tiles"])
def test_the_product_of_onednn_gives_the_same(name, monkeypatch):
    monkeypatch.setattr(tiles, "LARGE_PRODUCT", 0)
    monkeypatch.setattr(tiles, "onednn_is_faster", lambda: True)
    test_float32_stays_close_to_the_definition(name)


def test_arrays_may_lie_in_any_order_and_padding_may_even_hold_nan():
    given = problem("both_masks").to(torch.float64)
    expected = definition(given)
    for side in ("images", "captions"):
        units, mask = getattr(given, side).units, getattr(given, side).mask
        spoilt = units.masked_fill(~mask[..., None], torch.nan).transpose(0, 1).contiguous().transpose(0, 1)
        assert not spoilt.is_contiguous()  # as evaluation lays out its tiles
        changed = given._replace(**{side: Prepared(spoilt, mask)})
        assert max(errors(outcome(torch_scores(changed), changed), expected)) < DOUBLE
        assert max(errors([in_evaluation(changed)], expected[:1])) < DOUBLE


def test_any_of_the_three_may_take_a_gradient_alone():
    for leaf in range(3):
        given = problem("both_masks").to(torch.float64)
        leaves = [given.images.units, given.captions.units, given.scale]
        leaves[leaf].requires_grad_()
        gradients = [torch.autograd.grad(score(*given[:3]).sum(), leaves[leaf])
                     for score in (torch_scores(given), plain.alignment_scores)]  # fmt: skip
        assert max(errors(*gradients)) < DOUBLE
