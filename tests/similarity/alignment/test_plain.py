"""The definition of the ESL score against the slow reference, in values and gradients."""

from __future__ import annotations

import pytest
import torch

from lib.core.fragments import Prepared
from lib.similarity.alignment import plain
from tests import reference
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
SMALL = [
    "both_masks",
    "one_word",
    "one_region",
    "one_of_all",
    "256_cells",
    "large_similarities",
    "tiny_similarities",
    "zero_similarities",
    "smallest_scale",
    "scale_above_60",
    "scale_whose_exponential_is_no_float32",
]


def few(given: Problem) -> Problem:
    """Two images and captions of a problem."""
    return given._replace(images=given.images.select(slice(2)), captions=given.captions.select(slice(2)))


def slow_scores(images: Prepared, captions: Prepared, scale: torch.Tensor) -> torch.Tensor:
    """Scores (B, C) of each pair's real fragments by themselves."""
    regions, words = ([x[m] for x, m in zip(side.units, side.mask, strict=True)] for side in (images, captions))
    return torch.stack([torch.stack([reference.instance_similarity(w @ r.T, scale) for w in words]) for r in regions])


@pytest.mark.parametrize("name", SMALL)
def test_scores_and_gradients_equal_the_slow_reference_in_float64(name):
    given = few(problem(name)).to(torch.float64)
    assert max(errors(definition(given), outcome(slow_scores, given))) < 1e-9


@pytest.mark.parametrize("name", [*CASES, *LARGE_SCALES])
def test_float32_stays_close_to_float64(name):
    given = problem(name)
    scores, *gradients = errors(outcome(plain.alignment_scores, given), definition(given))
    assert scores < SCORES[name] and max(gradients) < GRADIENTS[name]


def test_similarity_is_the_product_of_real_words_and_regions_and_zero_at_padding():
    images, captions, *_ = few(problem("both_masks")).to(torch.float64)
    S = plain.word_region_similarity(images, captions)  # (B, C, W, R)
    assert S.shape == (2, 2, 6, 9)
    for i, (regions, real_regions) in enumerate(zip(images.units, images.mask, strict=True)):
        for j, (words, real_words) in enumerate(zip(captions.units, captions.mask, strict=True)):
            expected = (words * real_words[:, None]) @ (regions * real_regions[:, None]).T
            torch.testing.assert_close(S[i, j], expected, rtol=1e-12, atol=1e-12)


def test_more_padding_changes_no_score_and_no_gradient():
    given = problem("both_masks").to(torch.float64)
    expected = definition(given)
    longer = [
        Prepared(torch.nn.functional.pad(x.units, (0, 0, 0, 3), value=7.0), torch.nn.functional.pad(x.mask, (0, 3)))
        for x in (given.images, given.captions)
    ]
    scores, images, captions, scale = definition(given._replace(images=longer[0], captions=longer[1]))
    assert (images[:, -3:] == 0).all() and (captions[:, -3:] == 0).all()
    assert max(errors([scores, images[:, :-3], captions[:, :-3], scale], expected)) < 1e-12


def test_masked_fragments_may_stand_anywhere():
    given = problem("both_masks").to(torch.float64)
    order = torch.randperm(9), torch.randperm(6)
    moved = [Prepared(x.units[:, places], x.mask[:, places]) for x, places in zip(given[:2], order, strict=True)]
    expected = plain.alignment_scores(*given[:3])
    torch.testing.assert_close(plain.alignment_scores(*moved, given.scale), expected, rtol=1e-12, atol=1e-12)


def test_products_in_bfloat16_have_scores_in_float32():
    images, captions, scale, _ = problem("both_masks")
    rounded = images.to(torch.bfloat16), captions.to(torch.bfloat16)
    scores = plain.alignment_scores(*rounded, scale)
    assert scores.dtype == torch.float32
    S = plain.word_region_similarity(*(x.to(torch.float64) for x in rounded)).to(torch.bfloat16)
    expected = plain.instance_similarity(S.double(), images.mask, captions.mask, scale.double())
    assert float((scores - expected).abs().max() / expected.abs().max()) < 1e-3  # single values of S round otherwise


def test_the_number_of_a_scale_and_its_tensor_give_the_same_scores():
    images, captions, scale, _ = problem("both_masks").to(torch.float64)
    expected = plain.alignment_scores(images, captions, scale)
    assert torch.equal(plain.alignment_scores(images, captions, float(scale)), expected)
