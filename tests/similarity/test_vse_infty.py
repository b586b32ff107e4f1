"""The head of VSE-infinity against the slow reference."""

from __future__ import annotations

import pytest
import torch

from lib.core.fragments import Fragments
from lib.similarity import HEADS
from lib.similarity.vse_infty import VSEInfinity
from tests import reference

pytestmark = pytest.mark.usefixtures("single_thread")


def make(**options) -> VSEInfinity:
    return HEADS["vse_infty"].make(7, **options).double()


def ragged(lengths: list[int], size: int = 7, seed: int = 0) -> Fragments:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(len(lengths), 6, size, generator=generator, dtype=torch.float64)
    return Fragments(features, torch.arange(6) < torch.tensor(lengths)[:, None])


def batch() -> tuple[Fragments, Fragments]:
    return ragged([6, 2, 3], seed=1), ragged([1, 5, 6, 3], seed=2)


def expected_scores(head: VSEInfinity, images: Fragments, captions: Fragments, **switches) -> torch.Tensor:
    parts = [[x[m] for x, m in zip(*side, strict=True)] for side in (images, captions)]
    pools = [dict(pool.named_parameters()) for pool in (head.image_pool, head.caption_pool)]
    return reference.pooled_scores(*parts, *pools, **switches)


def test_scores_and_gradients_equal_the_slow_reference():
    head, (images, captions) = make(), batch()
    leaves = [images.features.requires_grad_(), captions.features.requires_grad_(), *head.parameters()]
    found, expected = head(images, captions), expected_scores(head, images, captions)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)
    upstream = torch.randn_like(found)
    gradients = (torch.autograd.grad((scores * upstream).sum(), leaves) for scores in (found, expected))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-9)


def test_each_side_has_a_pool_of_its_own():
    head = make()
    assert not {id(p) for p in head.image_pool.parameters()} & {id(p) for p in head.caption_pool.parameters()}
    assert not torch.allclose(head.image_pool.linear.weight, head.caption_pool.linear.weight)


def test_a_prepared_item_is_one_fragment_its_unit_vector():
    head, (images, captions) = make(), batch()
    sides = (
        (head.prepare_images(images), head.embed_images(images)),
        (head.prepare_captions(captions), head.embed_captions(captions)),
    )
    for prepared, vectors in sides:
        assert prepared.mask.all() and torch.equal(prepared.units, vectors[:, None])
        torch.testing.assert_close(vectors.norm(dim=1), torch.ones(len(vectors), dtype=torch.float64))


def test_switching_off_a_norm_changes_that_side_alone():
    images, captions = batch()
    head = make()
    usual = head(images, captions)
    for switch, side in (("no_imgnorm", head.embed_images), ("no_txtnorm", head.embed_captions)):
        unit = side(images)
        setattr(head, switch, True)
        length = side(images).norm(dim=1, keepdim=True)
        torch.testing.assert_close(side(images), unit * length)
        assert (length - 1).abs().min() > 1e-3
        other = head.embed_captions if switch == "no_imgnorm" else head.embed_images
        torch.testing.assert_close(other(captions).norm(dim=1), torch.ones(4, dtype=torch.float64))
        assert not torch.allclose(head(images, captions), usual)
        setattr(head, switch, False)
    plain = make(no_imgnorm=True, no_txtnorm=True)
    expected = expected_scores(plain, images, captions, normalise=False)
    torch.testing.assert_close(plain(images, captions), expected, rtol=0, atol=1e-9)


def test_it_compares_no_words_and_scores_all_images_at_once():
    head, (images, captions) = make(), batch()
    assert head.attention(head.prepare_images(images), head.prepare_captions(captions)) is None
    assert head.images_per_tile(1, 5000, torch.device("cpu")) == 5000


def test_no_size_is_too_small():
    head = HEADS["vse_infty"].make(1)
    assert head(ragged([3, 2], size=1).to(torch.float32), ragged([4], size=1).to(torch.float32)).shape == (2, 1)
