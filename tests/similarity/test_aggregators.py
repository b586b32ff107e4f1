"""The measure-unit aggregators: sizes of the levels, and levels equal to the slow reference."""

from __future__ import annotations

import pytest
import torch

from lib.core.errors import InputError
from lib.core.functional import EPSILON, l2_normalize
from lib.similarity.aggregators import AdaptiveAggregator, Aggregator, HeuristicAggregator, level_sizes
from tests import reference

AGGREGATORS = {AdaptiveAggregator: reference.adaptive_levels, HeuristicAggregator: reference.heuristic_levels}


def test_level_sizes_of_the_paper():
    assert level_sizes(512, 2) == [512, 256, 128, 64, 32, 16, 8, 4, 2]
    assert sum(level_sizes(512, 2)) == 1022
    assert level_sizes(300, 2) == [300, 150, 75, 37, 18, 9, 4, 2, 1]
    assert level_sizes(256, 2)[-1] == level_sizes(3**8, 3)[-1] == 1


def test_sizes_that_give_no_nine_levels_are_refused_with_their_flag():
    for embed_size, kernel_size, message in (
        (255, 2, "--embed_size is 255, .* --kernel_size 2 .* 256"),
        (512, 3, "--embed_size is 512, .* 6561"),
        (512, 1, "--kernel_size is 1, .* 2"),
        (512, 0, "--kernel_size is 0"),
    ):
        with pytest.raises(InputError, match=message):
            level_sizes(embed_size, kernel_size)


@pytest.mark.parametrize("image_side", [True, False])
@pytest.mark.parametrize(("sizes", "kernel_size"), [([21, 10, 5, 2, 1], 2), ([29, 9, 3, 1], 3)])
@pytest.mark.parametrize("kind", AGGREGATORS)
def test_levels_and_gradients_equal_the_slow_reference(kind, sizes, kernel_size, image_side):
    aggregator = kind(sizes, kernel_size).double()
    x = torch.randn(4, sizes[0], dtype=torch.float64, requires_grad=True)
    found = aggregator(x, renormalize=image_side)
    expected = torch.cat(AGGREGATORS[kind](x, list(aggregator.weights), image_side), -1)
    assert found.shape == (4, sum(sizes))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    leaves = [x, *aggregator.weights]
    upstream = torch.randn_like(found)
    gradients = (torch.autograd.grad((levels * upstream).sum(), leaves) for levels in (found, expected))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)  # a level of one value: nearly nothing


@pytest.mark.parametrize("kind", AGGREGATORS)
def test_images_and_captions_differ_by_the_epsilon_of_the_norm_alone(kind):
    torch.manual_seed(3)
    aggregator, x = kind([16, 8, 4], 2).double(), torch.randn(5, 16, dtype=torch.float64)
    images, captions = aggregator(x, renormalize=True), aggregator(x, renormalize=False)
    assert 0 < (images - captions).abs().max() < 100 * EPSILON


def test_each_level_is_normalised_and_level_0_is_what_came_in():
    x = torch.randn(2, 3, 16)
    levels = HeuristicAggregator([16, 8, 4, 2], 2)(x, renormalize=False).split([16, 8, 4, 2], -1)
    assert torch.equal(levels[0], x)
    for level in levels[1:]:
        torch.testing.assert_close(level.norm(dim=-1), torch.ones(2, 3))


@pytest.mark.parametrize("kind", AGGREGATORS)
def test_zero_fragments_have_zero_levels_and_finite_gradients(kind):
    aggregator = kind([16, 8, 4, 2, 1], 2)
    x = torch.zeros(3, 16, requires_grad=True)
    for image_side in (True, False):
        levels = aggregator(x, renormalize=image_side)
        levels.sum().backward()
        assert (levels == 0).all() and all(leaf.grad.isfinite().all() for leaf in (x, *aggregator.weights))


def test_all_entries_that_tie_with_the_second_largest_stay():
    aggregator = AdaptiveAggregator([8, 4, 2], 2)
    with torch.no_grad():
        aggregator.weights[1][:] = torch.tensor([[1.0, 1.0, -2.0, 1.0], [3.0, -1.0, 2.0, 0.5]])
    kept = aggregator.sparse_matrix(2) != 0
    assert kept.tolist() == [[True, True, False, True], [True, False, True, False]]


def test_kept_entries_are_those_of_the_normalised_row():
    aggregator = AdaptiveAggregator([8, 4], 2)
    matrix, rows = aggregator.sparse_matrix(1), l2_normalize(aggregator.weights[0])
    assert ((matrix != 0).sum(1) == 2).all() and torch.equal(matrix[matrix != 0], rows[matrix != 0])


def test_values_past_the_last_whole_window_are_left_out():
    aggregator, x = HeuristicAggregator([7, 3], 2), torch.randn(2, 7)
    expected = aggregator(x, renormalize=False)[:, 7:]
    changed = torch.cat([x[:, :6], torch.full((2, 1), 9.0)], 1)
    assert torch.equal(aggregator(changed, renormalize=False)[:, 7:], expected)


def test_a_new_aggregator_says_how_one_level_comes_from_the_one_before():
    class Halves(Aggregator):
        def aggregate(self, k, z):
            return z[..., : self.sizes[k]]

    x = torch.randn(3, 8)
    expected = torch.cat([x, l2_normalize(x[:, :4]), l2_normalize(x[:, :2])], -1)
    torch.testing.assert_close(Halves([8, 4, 2], 2)(x, renormalize=False), expected)
    with pytest.raises(NotImplementedError):
        Aggregator([8, 4], 2)(x, renormalize=False)
