"""The contract of similarity heads, and a head of one's own: a class and a row."""

from __future__ import annotations

import pytest
import torch

from lib.core.config import Option, Part
from lib.core.errors import InputError
from lib.core.fragments import Fragments, Prepared
from lib.distributed.runner import Runner
from lib.model import build_model, describe
from lib.similarity import HEADS
from lib.similarity.alignment import Backend
from lib.similarity.head import SimilarityHead
from tests.helpers import small_batch, small_config

CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("single_thread")


class MeanHead(SimilarityHead):
    """The cosine of the means of both sides' fragments, times a learned number."""

    def __init__(self, start: float):
        super().__init__()
        self.factor = torch.nn.Parameter(torch.tensor(start))

    def prepare_images(self, images: Fragments) -> Prepared:
        return Prepared.full(self.embed_images(images)[:, None])

    prepare_captions = prepare_images

    def score(self, images: Prepared, captions: Prepared) -> torch.Tensor:
        return self.factor * images.units[:, 0] @ captions.units[:, 0].T


@pytest.fixture
def mean_head(monkeypatch):
    """The head as a row of the table."""
    part = Part("Mean", lambda embed_size, options: MeanHead(**options), {"start": Option(2.0, "the factor's start")})
    monkeypatch.setitem(HEADS, "mean", part)


def test_a_head_of_ones_own_has_any_size_where_esl_has_not(mean_head):
    model = build_model(small_config("mean", embed_size=128))
    assert isinstance(model.similarity, MeanHead) and model.config.similarity_options == {"start": 2.0}
    assert model.text_encoder.linear.out_features == 128
    for name in ("esl_a", "esl_h"):
        with pytest.raises(InputError, match="--embed_size is 128, but an ESL head .* needs at least 256") as error:
            small_config(name, embed_size=128)
        assert "\n" not in str(error.value)


def test_a_head_of_ones_own_scores_trains_and_is_evaluated(mean_head):
    model = build_model(small_config("mean", embed_size=128, dropout=0.0, start=3.0))
    images, captions = small_batch()
    scores = model(images, captions)
    assert scores.shape == (7, 7) and model.similarity.factor == 3.0 and describe(model.config).startswith("Mean, ")
    scores.sum().backward()
    assert all(p.grad.isfinite().all() for p in model.similarity.parameters())
    runner = Runner(model, [CPU], backend=Backend("plain"))
    encoded = runner.encode_images(images), runner.encode_captions(captions)
    assert torch.equal(runner.score(*encoded), scores)
    prepared = runner.prepare_images(encoded[0]), runner.prepare_captions(encoded[1])
    assert torch.equal(runner.heads()[0].score(*prepared), scores)


def test_a_head_compares_no_words_and_takes_all_images_unless_it_says_otherwise():
    head = MeanHead(1.0)
    fragments = Fragments.full(torch.randn(3, 2, 8))
    assert head.attention(head.prepare_images(fragments), head.prepare_captions(fragments)) is None
    assert head.images_per_tile(36, 5000, CPU) == 5000
    assert head.backend == Backend()


@pytest.mark.parametrize("name", HEADS)
def test_calling_a_head_prepares_both_sides_and_scores(name):
    head = HEADS[name].make(256)
    images, captions = Fragments.full(torch.randn(5, 3, 256)), Fragments.full(torch.randn(4, 2, 256))
    expected = head.score(head.prepare_images(images), head.prepare_captions(captions))
    assert expected.shape == (5, 4) and torch.equal(head(images, captions), expected)
    for vectors, count in ((head.embed_images(images), 5), (head.embed_captions(captions), 4)):  # of length one
        torch.testing.assert_close(vectors.norm(dim=1), torch.ones(count))


@pytest.mark.parametrize("name", HEADS)
def test_encoded_items_are_no_prepared_ones(name):
    head, encoded = HEADS[name].make(256), Fragments.full(torch.randn(2, 3, 256))
    prepared = head.prepare_images(encoded), head.prepare_captions(encoded)
    wrong = [(encoded, encoded), (prepared[0], encoded), (encoded, prepared[1])]
    compares_words = type(head).attention is not SimilarityHead.attention
    for images, captions in wrong:
        for function in (head.score, head.attention) if compares_words else (head.score,):
            with pytest.raises(TypeError, match="encoded items where prepared ones are needed"):
                function(images, captions)
    for function in (head.prepare_images, head.prepare_captions, head.embed_images, head.embed_captions):
        with pytest.raises((TypeError, AttributeError)):  # prepared items have neither features nor map
            function(prepared[0])


@pytest.mark.parametrize("name", HEADS)
def test_items_prepared_one_by_one_have_the_scores_of_the_batch(name):
    head = HEADS[name].make(256).double()
    lengths = torch.tensor([[3], [1], [4]]), torch.tensor([[2], [5], [1], [4]])
    images, captions = (
        Fragments(torch.randn(len(n), int(n.max()), 256, dtype=torch.float64), torch.arange(int(n.max())) < n)
        for n in lengths
    )
    expected = head(images, captions)
    prepared = head.prepare_images(images), head.prepare_captions(captions)
    for i, (regions, real) in enumerate(zip(*images, strict=True)):
        alone = head.score(head.prepare_images(Fragments.full(regions[real][None])), prepared[1])
        torch.testing.assert_close(alone[0], expected[i], rtol=1e-9, atol=1e-12)
    for j, (words, real) in enumerate(zip(*captions, strict=True)):
        alone = head.score(prepared[0], head.prepare_captions(Fragments.full(words[real][None])))
        torch.testing.assert_close(alone[:, 0], expected[:, j], rtol=1e-9, atol=1e-12)


def test_what_a_head_does_not_say_is_not_guessed():
    head, fragments = SimilarityHead(), Fragments.full(torch.zeros(1, 1, 1))
    for method in (head.prepare_images, head.prepare_captions):
        with pytest.raises(NotImplementedError):
            method(fragments)
    with pytest.raises(NotImplementedError):
        head.score(fragments, fragments)
