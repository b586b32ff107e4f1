"""The ESL heads against the slow reference and the golden values."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lib.core.config import KERNELS
from lib.core.errors import InputError
from lib.core.fragments import Fragments
from lib.similarity import HEADS, aggregators
from lib.similarity.alignment import Backend
from lib.similarity.esl import ESL, Correspondence, PlainContribution, ThresholdContribution
from tests import reference
from tests.conftest import SHARED, needs_shared

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


@pytest.mark.parametrize("kind", ["a", "h"])
@pytest.mark.parametrize(
    ("regions", "words"),
    [([5, 5, 5], [4, 4, 4, 4]), ([5, 1, 3], [1, 6, 2, 6]), ([1, 1, 1], [1, 1, 1, 1])],
    ids=["full", "ragged", "one"],
)
def test_scores_equal_the_slow_reference_in_float64(kind, regions, words):
    parameters = reference.random_esl_parameters(kind, 256, seed=1)
    head = build(kind, parameters)
    images, captions = ragged(3, max(regions), 256, regions, seed=2), ragged(4, max(words), 256, words, seed=3)
    expected = reference.esl_scores(items(images), items(captions), parameters, kind)
    torch.testing.assert_close(score(head, images, captions), expected, rtol=0, atol=1e-9 * float(expected.abs().max()))


@pytest.mark.parametrize("kind", ["a", "h"])
def test_gradients_equal_the_slow_reference_in_float64(kind):
    size = 512  # the last level has two values: at 256 its gradients are cancellation noise
    parameters = {k: v.requires_grad_() for k, v in reference.random_esl_parameters(kind, size, seed=1).items()}
    head = build(kind, {k: v.detach() for k, v in parameters.items()}, embed_size=size)
    images, captions = ragged(3, 5, size, [5, 2, 4], seed=2), ragged(4, 6, size, [3, 6, 1, 6], seed=3)
    for fragments in (images, captions):
        fragments.features.requires_grad_()
    expected = reference.esl_scores(items(images), items(captions), parameters, kind)
    weights = torch.randn(expected.shape, dtype=torch.float64)
    (expected * weights).sum().backward()
    wanted = {name: parameters[name].grad.clone() for name in released_names(kind, head)}
    wanted |= {"images": images.features.grad.clone(), "captions": captions.features.grad.clone()}
    images.features.grad = captions.features.grad = None
    (score(head, images, captions) * weights).sum().backward()
    found = {name: p.grad for name, p in released_names(kind, head).items()}
    found |= {"images": images.features.grad, "captions": captions.features.grad}
    for name, gradient in wanted.items():
        bound = 1e-9 * float(gradient.abs().max()) + 1e-15
        torch.testing.assert_close(found[name].reshape(gradient.shape), gradient, rtol=0, atol=bound, msg=name)


@needs_shared
def test_esl_a_agrees_with_the_released_model_in_value_and_gradient():
    golden = {
        k: torch.as_tensor(v) for k, v in np.load(SHARED / "golden/golden_esl_a.npz").items() if v.dtype.kind == "f"
    }
    parameters = {k.removeprefix("sim_vec."): v for k, v in golden.items() if k.startswith("sim_vec.")}
    head = build("a", parameters, torch.float32, no_imgnorm=True, no_txtnorm=True)
    lengths = torch.as_tensor(np.load(SHARED / "golden/golden_esl_a.npz")["cap_lens"])
    images = Fragments.full(golden["img_emb"].requires_grad_())
    captions = Fragments(
        golden["cap_emb"].requires_grad_(), torch.arange(golden["cap_emb"].shape[1]) < lengths[:, None]
    )
    scores = score(head, images, captions)
    assert (scores - golden["sims"]).abs().max() <= 1e-5 * golden["sims"].abs().max()
    (scores * golden["fixed_weights"]).sum().backward()
    found = {"sim_vec." + name: p.grad for name, p in released_names("a", head).items()}
    found |= {"img_emb": images.features.grad, "cap_emb": captions.features.grad}
    for name, gradient in found.items():
        if name.endswith(("masks_8.weight", "lynorm_8.weight")):
            continue  # float32 noise in the released model
        expected = golden["grad." + name]
        assert (gradient.reshape(expected.shape) - expected).abs().max() <= 1e-4 * expected.abs().max(), name


@pytest.mark.parametrize("kind", ["a", "h"])
def test_padding_and_other_captions_change_no_score_and_no_gradient(kind):
    head = make(kind)

    def run(extra_words, extra_regions, extra_captions):
        images, captions = (
            ragged(4, 6, 256, [6, 3, 5, 6], torch.float32),
            ragged(5, 7, 256, [7, 2, 5, 1, 7], torch.float32),
        )
        x, y = images.features.requires_grad_(), captions.features.requires_grad_()
        pad = torch.nn.functional.pad
        junk = lambda t, n: pad(t, (0, 0, 0, n), value=3.0)  # noqa: E731
        images = Fragments(junk(x, extra_regions), pad(images.mask, (0, extra_regions)))
        captions = Fragments(junk(y, extra_words), pad(captions.mask, (0, extra_words)))
        if extra_captions:
            more = ragged(3, captions.mask.shape[1], 256, dtype=torch.float32, seed=9)
            captions = Fragments(*(torch.cat(pair) for pair in zip(captions, more, strict=True)))
        scores = score(head, images, captions)[:, :5]
        head.zero_grad()
        (scores * torch.arange(20.0).view(4, 5).sin()).sum().backward()
        return [scores.detach(), x.grad, y.grad, *(p.grad for p in head.parameters())]

    plain = run(0, 0, 0)
    for variant in ((4, 0, 0), (0, 5, 0), (0, 0, 1), (2, 3, 1)):
        for expected, found in zip(plain, run(*variant), strict=True):
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-6 * max(1.0, float(expected.abs().max())))


@pytest.mark.parametrize("kind", ["a", "h"])
def test_a_zero_fragment_gives_finite_gradients(kind):
    head = make(kind)
    images, captions = ragged(2, 3, 256, [3, 3], torch.float32), ragged(2, 3, 256, [3, 2], torch.float32)
    images.features[0, 1] = 0
    captions.features[1, 0] = 0
    images.features.requires_grad_(), captions.features.requires_grad_()
    score(head, images, captions).sum().backward()
    for gradient in (images.features.grad, captions.features.grad, *(p.grad for p in head.parameters())):
        assert gradient.isfinite().all()


@pytest.mark.parametrize("kind", ["a", "h"])
def test_the_ways_of_kernels_give_the_same_scores_and_gradients(kind):
    parameters = reference.random_esl_parameters(kind, 256, seed=1)
    images, captions = ragged(40, 6, 256, seed=2), ragged(9, 7, 256, seed=3)

    def run(dtype, backend: Backend) -> list[torch.Tensor]:
        head = build(kind, parameters, dtype)
        head.backend = backend
        x, y = (f.features.to(dtype, copy=True).requires_grad_() for f in (images, captions))
        scores = score(head, Fragments(x, images.mask), Fragments(y, captions.mask))
        (scores * torch.arange(360.0).view(40, 9).sin()).sum().backward()
        # Of weights that nothing normalises: the others' gradients are small differences in float32.
        return [scores.detach(), x.grad, y.grad, head.contribution.p.grad, head.log_scale.grad]

    exact = run(torch.float64, Backend("plain"))
    for kernels in KERNELS:
        for memory in (None, 1 << 14):
            found = run(torch.float32, Backend(kernels, memory))
            for name, one, other in zip(("scores", "images", "captions", "p", "tau"), found, exact, strict=True):
                error = (one - other).abs().max() / other.abs().max()
                assert error < (1e-5 if name == "scores" else 1e-3), (kernels, memory, name, float(error))


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("kind", ["a", "h"])
def test_products_in_bfloat16_have_scores_in_float32_close_to_the_exact_ones(kind, kernels):
    parameters = reference.random_esl_parameters(kind, 256, seed=1)
    images, captions = ragged(40, 6, 256, seed=2), ragged(9, 7, 256, seed=3)
    expected = score(build(kind, parameters), images, captions)
    head = build(kind, parameters, torch.float32)
    head.backend = Backend(kernels)
    prepared = head.prepare_images(images.to(torch.float32)), head.prepare_captions(captions.to(torch.float32))
    found = head.score(*(side.to(torch.bfloat16) for side in prepared))
    assert found.dtype == torch.float32
    # On average: where a caption has one word, or an image one region, the sign of a small S decides.
    assert 0 < (found - expected).abs().mean() < 0.005 * expected.abs().mean()


@pytest.mark.parametrize("log_scale", [3.0, 4.5, 6.0])
def test_a_large_scale_neither_overflows_nor_changes_the_result(log_scale):
    parameters = reference.random_esl_parameters("a", 256, seed=1)
    parameters[CALCULATOR + "temp_scale.weight"].fill_(log_scale)
    images, captions = ragged(3, 5, 256, [5, 1, 3], seed=2), ragged(4, 6, 256, seed=3)
    expected = reference.esl_scores(items(images), items(captions), parameters, "a")
    head = build("a", parameters)
    torch.testing.assert_close(score(head, images, captions), expected, rtol=1e-9, atol=1e-12)
    single = build("a", parameters, torch.float32)
    found = score(single, *(Fragments(f.features.float(), f.mask) for f in (images, captions)))
    torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=1e-3)


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


def test_item_vectors_are_unit_means_of_all_levels():
    parameters = reference.random_esl_parameters("a", 256, seed=1)
    head = build("a", parameters)
    captions = ragged(3, 4, 256, [4, 1, 2], seed=3)
    for vector, caption in zip(head.embed_captions(captions), items(captions), strict=True):
        levels = torch.cat(reference.esl_levels(caption, parameters, "a", image_side=False), -1)
        torch.testing.assert_close(vector, reference.l2norm(levels.mean(0)))
    images = ragged(3, 4, 256, [4, 1, 2], seed=3)
    for vector, image in zip(head.embed_images(images), items(images), strict=True):
        levels = torch.cat(reference.esl_levels(image, parameters, "a", image_side=True), -1)
        torch.testing.assert_close(vector, reference.l2norm(levels.mean(0)))


@pytest.mark.parametrize("cells", [49, 256])
def test_grids_of_49_to_256_cells_score_like_the_reference(cells):
    parameters = reference.random_esl_parameters("h", 256, seed=1)
    head = build("h", parameters)
    images, captions = ragged(2, cells, 256, [cells, cells - 5], seed=2), ragged(2, 5, 256, [5, 3], seed=3)
    expected = reference.esl_scores(items(images), items(captions), parameters, "h")
    torch.testing.assert_close(score(head, images, captions), expected, rtol=0, atol=1e-9 * float(expected.abs().max()))


@pytest.mark.parametrize("kind", ["a", "h"])
@pytest.mark.parametrize("side", ["image", "text"])
def test_a_side_without_normalisation_equals_the_reference_and_changes_that_side_alone(kind, side):
    parameters = reference.random_esl_parameters(kind, 256, seed=1)
    images, captions = ragged(3, 4, 256, [4, 1, 3], seed=2), ragged(2, 3, 256, [3, 2], seed=3)
    head = build(kind, parameters, **{"no_imgnorm" if side == "image" else "no_txtnorm": True})
    sides = [items(images), items(captions)]
    normalised = 1 if side == "image" else 0
    sides[normalised] = [reference.l2norm(x) for x in sides[normalised]]
    expected = reference.esl_scores(*sides, parameters, kind, normalise=False)
    torch.testing.assert_close(score(head, images, captions), expected, rtol=0, atol=1e-9 * float(expected.abs().max()))
    usual = score(build(kind, parameters), images, captions)
    assert (usual - expected).abs().max() > 1e-3 * expected.abs().max()


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


@pytest.mark.parametrize("kind", ["a", "h"])
def test_sizes_without_nine_levels_are_refused_before_anything_is_built(kind):
    for embed_size, kernel_size in ((255, 2), (6560, 3), (512, 1)):
        with pytest.raises(InputError) as error:
            make(kind, embed_size, kernel_size=kernel_size)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("kernels", KERNELS)
def test_the_way_of_a_head_says_how_many_images_a_tile_of_evaluation_holds(kernels):
    head = make("a")
    head.backend = Backend(kernels)
    tile = head.images_per_tile(36, 5000, torch.device("cpu"))
    assert tile == 32 if kernels == "plain" else 32 <= tile <= 5000
