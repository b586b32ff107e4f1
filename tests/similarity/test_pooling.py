"""One vector an item: the mean of its real fragments, compared by dot products in float32 at least."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lib.core.fragments import Fragments, Prepared
from lib.similarity.pooling import MeanPool, dot_products, mean_fragment


def ragged() -> Fragments:
    real = np.array([[True, True, False], [True, False, True], [True, False, False]])
    return Fragments(torch.randn(3, 3, 5), real)


def test_the_mean_is_of_real_fragments_alone():
    fragments = ragged()
    expected = [row[real].mean(0) for row, real in zip(*fragments, strict=True)]
    torch.testing.assert_close(MeanPool()(fragments), torch.stack(expected))
    spoilt = fragments.features.masked_fill(~torch.from_numpy(fragments.real)[..., None], 1e9)
    assert torch.equal(MeanPool()(Fragments(spoilt, fragments.real)), MeanPool()(fragments))


def test_the_mean_as_the_only_fragment_is_real():
    fragments = ragged()
    mean = mean_fragment(fragments)
    assert torch.equal(mean.features, MeanPool()(fragments)[:, None]) and mean.real.shape == (3, 1) and mean.real.all()


def test_a_single_fragment_is_its_own_mean():
    one = Fragments.full(torch.randn(4, 1, 6))
    assert torch.equal(mean_fragment(one).features, one.features)


@pytest.mark.parametrize(
    ("given", "found"),
    [(torch.bfloat16, torch.float32), (torch.float32, torch.float32), (torch.float64, torch.float64)],
)
def test_scores_of_all_pairs_are_products_in_float32_at_least(given, found):
    images, captions = (Prepared.full(torch.randn(count, 1, 6).to(given)) for count in (3, 4))
    scores = dot_products(images, captions)
    assert scores.shape == (3, 4) and scores.dtype == found
    expected = torch.einsum("bd,cd->bc", images.units[:, 0].double(), captions.units[:, 0].double())
    torch.testing.assert_close(scores.double(), expected, rtol=1e-5, atol=1e-6)


def test_scores_of_bfloat16_vectors_that_differ_little_do_not_tie():
    images = Prepared.full(torch.ones(1, 1, 256, dtype=torch.bfloat16))
    captions = torch.ones(2, 1, 256, dtype=torch.bfloat16)
    captions[1, 0, 0] = 1.0078125  # the next bfloat16; of 256 the next is 258
    first, second = dot_products(images, Prepared.full(captions))[0].tolist()
    assert (first, second) == (256.0, 256.0078125)
