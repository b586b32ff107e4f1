"""Fragments and Tokens: masks, lengths, shares, and work that padding takes no part in."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lib.core.fragments import Fragments, Tokens


def ragged(lengths: list[int], longest: int = 5, size: int = 3) -> Fragments:
    """Fragments whose padding holds NaN."""
    mask = torch.arange(longest) < torch.tensor(lengths)[:, None]
    return Fragments(torch.randn(len(lengths), longest, size).masked_fill(~mask[..., None], torch.nan), mask)


def tokens() -> Tokens:
    """Three captions; the id 0 may be a word as well as padding."""
    return Tokens(torch.tensor([[5, 0, 7, 0], [4, 3, 2, 1], [9, 0, 0, 0]]), torch.tensor([3, 4, 1]))


def assert_equal(found: Fragments, expected: Fragments) -> None:
    assert torch.equal(found.mask, expected.mask)
    torch.testing.assert_close(found.features, expected.features, rtol=0, atol=0, equal_nan=True)


def test_full_fragments_are_all_real():
    fragments = Fragments.full(torch.randn(2, 4, 3))
    assert fragments.mask.dtype == torch.bool and fragments.mask.shape == (2, 4) and fragments.mask.all()
    assert fragments.lengths.tolist() == [4, 4] and fragments.count == 2


def test_count_is_the_number_of_items_and_lengths_those_of_their_real_fragments():
    fragments = Fragments(torch.zeros(3, 4, 2), torch.tensor([[True, False, True, False], [True] * 4, [False] * 4]))
    assert fragments.count == 3 and fragments.lengths.tolist() == [2, 4, 0]


@pytest.mark.parametrize("lengths", [[5, 1, 3], [5, 5, 5], [2, 4, 0]])
def test_a_mapped_function_and_its_gradient_see_real_fragments_alone_and_padding_becomes_zero(lengths):
    fragments, seen = ragged(lengths), []
    x, mask = fragments.features.requires_grad_(), fragments.mask

    def function(x):
        seen.append(x)
        return torch.cat([x, 2 * x], -1).double() + 1

    mapped = fragments.map(function)
    assert len(seen) == 1 and torch.equal(seen[0], x[mask])
    assert torch.equal(mapped.mask, mask) and mapped.features.shape == (3, 5, 6)
    assert torch.equal(mapped.features[mask], function(x[mask])) and (mapped.features[~mask] == 0).all()
    mapped.features.sum().backward()
    assert (x.grad[mask] == 3).all() and (x.grad[~mask] == 0).all()


def test_moving_takes_both_parts_to_a_device_and_the_features_alone_to_a_type():
    fragments = ragged([2, 5])
    assert fragments.to(torch.float64).features.dtype == torch.float64
    assert torch.equal(fragments.to(torch.float64).mask, fragments.mask)
    moved = fragments.to("meta", torch.bfloat16, non_blocking=True)
    assert (moved.features.device.type, moved.mask.device.type) == ("meta", "meta")
    assert (moved.features.dtype, moved.mask.dtype) == (torch.bfloat16, torch.bool)


@pytest.mark.parametrize("items", [slice(1, 3), torch.tensor([2, 0]), torch.tensor([True, False, True])])
def test_selected_items_keep_their_masks(items):
    fragments = ragged([5, 1, 3])
    assert_equal(fragments.select(items), Fragments(fragments.features[items], fragments.mask[items]))


def test_a_mask_given_as_an_array_or_as_a_tensor_is_known_in_both_forms():
    real = np.array([[True, True, False], [True, False, True]])
    for given in (real, torch.from_numpy(real)):
        fragments = Fragments(torch.zeros(2, 3, 4), given)
        assert torch.equal(fragments.mask, torch.from_numpy(real)) and np.array_equal(fragments.real, real)


def test_the_lengths_of_tokens_say_what_is_real_and_not_their_ids():
    assert tokens().count == 3
    assert tokens().mask.tolist() == [[True] * 3 + [False], [True] * 4, [True] + [False] * 3]


def test_moved_tokens_keep_their_lengths_on_the_cpu():
    moved = tokens().to(torch.device("meta"), non_blocking=True)
    assert moved.ids.device.type == "meta" and moved.lengths.tolist() == [3, 4, 1]
    assert moved.mask.device.type == "meta" and moved.mask.shape == (3, 4)


def test_chunks_are_equal_shares_that_cat_puts_together_again():
    fragments = ragged([5, 1, 3, 2, 4, 5, 1])
    for parts, counts in ((1, [7]), (2, [4, 3]), (3, [3, 3, 1]), (9, [1] * 7)):
        shares = fragments.chunk(parts)
        assert [share.count for share in shares] == counts
        assert_equal(Fragments.cat(shares), fragments)
    for parts, counts in ((1, [3]), (2, [2, 1]), (5, [1, 1, 1])):
        shares = tokens().chunk(parts)
        assert [share.count for share in shares] == counts and all(isinstance(share, Tokens) for share in shares)
        assert torch.equal(torch.cat([share.ids for share in shares]), tokens().ids)
        assert np.concatenate([share.lengths for share in shares]).tolist() == [3, 4, 1]
