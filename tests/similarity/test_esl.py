"""The ESL heads against the slow reference."""

from __future__ import annotations

import pytest
import torch

from lib.core.config import KERNELS
from lib.core.fragments import Fragments
from lib.similarity import HEADS, aggregators, esl
from lib.similarity.alignment import Backend
from lib.similarity.esl import ESL, Correspondence, PlainContribution, ThresholdContribution
from tests import reference

pytestmark = pytest.mark.usefixtures("single_thread")
CALCULATOR = "sims.calculator_1."


def make(kind: str, embed_size: int = 256, **options) -> ESL:
    """A head with random weights, of kind 'a' (adaptive) or 'h' (heuristic)."""
    return HEADS[f"esl_{kind}"].make(embed_size, **options)


def released_names(kind: str, head) -> dict[str, torch.nn.Parameter]:
    """The head's parameters under their released names."""
    names = {
        CALCULATOR + "sim_eval.weight": head.contribution.p,
        CALCULATOR + "temp_scale.weight": head.log_scale,
    }
    if kind == "h":
        names[CALCULATOR + "temp_scale_1.weight"] = head.contribution.sigma
        names[CALCULATOR + "temp_scale_2.weight"] = head.contribution.log_sharpness
    for k, correspondence in enumerate(head.correspondences):
        names[f"{CALCULATOR}masks_{k}.weight"] = correspondence.matrix
        names[f"{CALCULATOR}lynorm_{k}.weight"] = correspondence.norm.weight
        names[f"{CALCULATOR}lynorm_{k}.bias"] = correspondence.norm.bias
    sides = (("image", "img", head.image_aggregator), ("text", "txt", head.caption_aggregator))
    for side, short, aggregator in sides:
        for k, weight in enumerate(aggregator.weights, start=1):
            name = f"masks_{k}" if kind == "a" else f"kernel_{short}_{k}"
            names[f"plus_encoder.encoders_1.{side}_levels.{name}.weight"] = weight
    return names


def build(kind: str, parameters: dict, dtype=torch.float64, embed_size: int = 256, **options) -> ESL:
    """A head of ours holding the reference's parameters."""
    head = make(kind, embed_size, **options).to(dtype)
    with torch.no_grad():
        for name, parameter in released_names(kind, head).items():
            parameter.copy_(parameters[name].reshape(parameter.shape))
    return head


def ragged(count: int, longest: int, size: int, lengths=None, dtype=torch.float64, seed: int = 0) -> Fragments:
    generator = torch.Generator().manual_seed(seed)
    lengths = (
        torch.tensor(lengths) if lengths is not None else torch.randint(1, longest + 1, (count,), generator=generator)
    )
    mask = torch.arange(longest) < lengths[:, None]
    return Fragments(torch.randn(count, longest, size, generator=generator, dtype=dtype), mask)


def items(fragments: Fragments) -> list[torch.Tensor]:
    return [x[m] for x, m in zip(*fragments, strict=True)]


def score(head, images: Fragments, captions: Fragments) -> torch.Tensor:
    return head.score(head.prepare_images(images), head.prepare_captions(captions))


def test_attention_is_the_word_region_similarity_of_the_reference():
    parameters = reference.random_esl_parameters("h", 256, seed=1)
    head = build("h", parameters)
    images, captions = ragged(2, 4, 256, [4, 2], seed=2), ragged(2, 3, 256, [1, 3], seed=3)
    attention = head.attention(head.prepare_images(images), head.prepare_captions(captions))
    for i, image in enumerate(items(images)):
        for j, caption in enumerate(items(captions)):
            _, expected = reference.esl_score(image, caption, parameters, "h")
            torch.testing.assert_close(attention[i, j, : len(caption), : len(image)], expected, rtol=1e-9, atol=1e-12)
    assert (attention[1, :, :, 2:] == 0).all() and (attention[:, 0, 1:] == 0).all()


def test_the_kernel_size_reaches_both_aggregators(monkeypatch):
    monkeypatch.setattr(aggregators, "AGGREGATIONS", 2)  # 3^8 would be a large head
    head = make("h", 30, kernel_size=3)
    assert head.sizes == [30, 10, 3]
    for aggregator in (head.image_aggregator, head.caption_aggregator):
        assert aggregator.kernel_size == 3 and [w.shape for w in aggregator.weights] == [(4, 1, 3)] * 2


@pytest.mark.parametrize("size", [1, 2, 9])
def test_correspondence_is_the_layer_norm_of_the_whole_matrix(size):
    match = Correspondence(size).double()
    torch.nn.init.normal_(match.norm.weight), torch.nn.init.normal_(match.norm.bias)
    expected = reference.correspondence(match.matrix, match.norm.weight, match.norm.bias)
    torch.testing.assert_close(match(), expected, rtol=1e-9, atol=1e-12)


def test_contribution_degrees_equal_the_reference_and_begin_equal():
    plain, threshold = PlainContribution(9).double(), ThresholdContribution(9).double()
    assert plain().tolist() == [plain.p[0].item()] * 9 and threshold().tolist() == plain().tolist()
    p, sigma, log_lambda = torch.randn(9).double(), torch.tensor(0.3).double(), torch.tensor(1.2).double()
    with torch.no_grad():
        plain.p.copy_(p), threshold.p.copy_(p), threshold.sigma.copy_(sigma)
        threshold.log_sharpness.copy_(log_lambda)
    assert torch.equal(plain(), reference.contributions_adaptive(p))
    torch.testing.assert_close(threshold(), reference.contributions_heuristic(p, sigma, log_lambda))


@pytest.mark.parametrize("kind", ["a", "h"])
def test_prepared_padding_is_zero_and_levels_stand_side_by_side(kind):
    head = make(kind, 300)
    assert head.sizes == [300, 150, 75, 37, 18, 9, 4, 2, 1]
    fragments = ragged(3, 4, 300, [4, 1, 2], torch.float32)
    for prepared in (head.prepare_images(fragments), head.prepare_captions(fragments)):
        assert prepared.units.shape == (3, 4, sum(head.sizes)) and torch.equal(prepared.mask, fragments.mask)
        assert (prepared.units[~fragments.mask] == 0).all()


@pytest.mark.parametrize("kind", ["a", "h"])
def test_the_temperature_begins_at_one_over_007(kind):
    assert make(kind).log_scale.exp().item() == pytest.approx(1 / 0.07)


@pytest.mark.parametrize("kernels", KERNELS)
def test_the_way_of_a_head_says_how_many_images_a_tile_of_evaluation_holds(kernels):
    head = make("a")
    head.backend = Backend(kernels)
    tile = head.images_per_tile(36, 5000, torch.device("cpu"))
    assert tile == 32 if kernels == "plain" else 32 <= tile <= 5000


@pytest.mark.parametrize("kind", ["a", "h"])
def test_scores_and_gradients_equal_the_slow_reference_in_float64(kind):
    size = 512  # the last level has two values: at 256 its gradients are cancellation noise
    parameters = {k: v.requires_grad_() for k, v in reference.random_esl_parameters(kind, size, seed=1).items()}
    head = build(kind, {k: v.detach() for k, v in parameters.items()}, embed_size=size)
    names = released_names(kind, head)
    for regions, words in (([5, 5, 5], [4, 4, 4, 4]), ([5, 2, 4], [3, 6, 1, 6]), ([1, 1, 1], [1, 1, 1, 1])):
        images, captions = ragged(3, max(regions), size, regions, seed=2), ragged(4, max(words), size, words, seed=3)
        sides = [side.features.requires_grad_() for side in (images, captions)]
        upstream = torch.randn(3, 4, dtype=torch.float64)
        outcomes = []
        for scores, weights in (
            (reference.esl_scores(items(images), items(captions), parameters, kind), [parameters[n] for n in names]),
            (score(head, images, captions), names.values()),
        ):
            outcomes.append([scores, *torch.autograd.grad((scores * upstream).sum(), [*sides, *weights])])
        for name, expected, computed in zip(("scores", "images", "captions", *names), *outcomes, strict=True):
            bound = (
                1e-9 * float(expected.detach().abs().max()) + 1e-12
            )  # tau has no gradient where nothing is chosen among
            torch.testing.assert_close(computed.reshape(expected.shape), expected, rtol=0, atol=bound, msg=name)


def test_the_backend_of_a_head_is_that_of_its_scoring(monkeypatch):
    backends = []
    monkeypatch.setattr(esl, "alignment_scores", lambda *arguments: backends.append(arguments[3]))
    for kind in "ah":
        head = make(kind)
        for kernels in KERNELS:
            head.backend = Backend(kernels, 1 << 14)
            score(head, ragged(2, 3, 256, dtype=torch.float32), ragged(2, 3, 256, dtype=torch.float32))
            assert backends.pop() is head.backend


@pytest.mark.parametrize("kind", ["a", "h"])
def test_a_side_without_normalisation_equals_the_reference_and_changes_that_side_alone(kind):
    parameters = reference.random_esl_parameters(kind, 256, seed=1)
    images, captions = ragged(3, 4, 256, [4, 1, 3], seed=2), ragged(2, 3, 256, [3, 2], seed=3)
    usual = score(build(kind, parameters), images, captions)
    for flag, normalised in (("no_imgnorm", 1), ("no_txtnorm", 0)):
        sides = [items(images), items(captions)]
        sides[normalised] = [reference.l2norm(x) for x in sides[normalised]]
        expected = reference.esl_scores(*sides, parameters, kind, normalise=False)
        largest = float(expected.abs().max())
        scores = score(build(kind, parameters, **{flag: True}), images, captions)
        torch.testing.assert_close(scores, expected, rtol=0, atol=1e-9 * largest)
        assert (usual - expected).abs().max() > 1e-3 * largest


def test_item_vectors_are_unit_means_of_all_levels():
    parameters = reference.random_esl_parameters("a", 256, seed=1)
    head, fragments = build("a", parameters), ragged(3, 4, 256, [4, 1, 2], seed=3)
    for vectors, image_side in ((head.embed_captions(fragments), False), (head.embed_images(fragments), True)):
        for vector, item in zip(vectors, items(fragments), strict=True):
            levels = torch.cat(reference.esl_levels(item, parameters, "a", image_side), -1)
            torch.testing.assert_close(vector, reference.l2norm(levels.mean(0)))
