"""The ESL heads against the slow reference and the golden values."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lib.alignment import tiled, tiles
from lib.fragments import Fragments
from lib.similarity import esl_a, esl_h
from lib.similarity.aggregators import level_sizes
from tests import reference
from tests.conftest import SHARED, needs_shared

MAKE = {"a": esl_a, "h": esl_h}
CALCULATOR = "sims.calculator_1."


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


def build(kind: str, parameters: dict, dtype=torch.float64, embed_size: int = 256, **switches):
    """A head of ours holding the reference's parameters."""
    head = MAKE[kind](embed_size, **switches).to(dtype)
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
    head = build("a", parameters, torch.float32, normalize_images=False, normalize_captions=False)
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
    head = MAKE[kind](256)

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
    head = MAKE[kind](256)
    images, captions = ragged(2, 3, 256, [3, 3], torch.float32), ragged(2, 3, 256, [3, 2], torch.float32)
    images.features[0, 1] = 0
    captions.features[1, 0] = 0
    images.features.requires_grad_(), captions.features.requires_grad_()
    score(head, images, captions).sum().backward()
    for gradient in (images.features.grad, captions.features.grad, *(p.grad for p in head.parameters())):
        assert gradient.isfinite().all()


@pytest.mark.parametrize("memory", [1, 1 << 14, 1 << 20, None])
@pytest.mark.parametrize("threshold", [1 << 28, 0])
def test_tile_sizes_change_nothing(memory, threshold, monkeypatch):
    monkeypatch.setattr(tiled, "MOST_SAVED", threshold)
    parameters = reference.random_esl_parameters("a", 256, seed=1)
    head = build("a", parameters)
    images, captions = ragged(70, 3, 256, seed=2), ragged(9, 5, 256, seed=3)
    images.features.requires_grad_()
    expected = score(head, images, captions)
    expected.square().sum().backward()
    gradient, images.features.grad = images.features.grad, None
    head.score_memory = memory
    found = score(head, images, captions)
    found.square().sum().backward()
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(images.features.grad, gradient, rtol=1e-9, atol=1e-12)
    with torch.no_grad():
        torch.testing.assert_close(score(head, images, captions), expected.detach(), rtol=1e-12, atol=1e-12)


def test_a_gpu_block_of_mixed_lengths_gives_the_same_as_equal_lengths(monkeypatch):
    parameters = reference.random_esl_parameters("h", 256, seed=1)
    head = build("h", parameters)
    images, captions = ragged(5, 4, 256, seed=2), ragged(12, 9, 256, seed=3)
    captions.features.requires_grad_()
    expected = score(head, images, captions)
    expected.square().sum().backward()
    gradient, captions.features.grad = captions.features.grad, None
    original = tiles.budget
    monkeypatch.setattr(tiles, "budget", lambda *args: original(*args)._replace(spread=1.25))
    found = score(head, images, captions)
    found.square().sum().backward()
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(captions.features.grad, gradient, rtol=1e-9, atol=1e-12)


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


def test_non_contiguous_input_gives_the_same_scores():
    head = esl_a(256)
    images, captions = ragged(4, 3, 256, [3] * 4, torch.float32), ragged(5, 4, 256, [4] * 5, torch.float32)
    prepared = head.prepare_images(images), head.prepare_captions(captions)
    expected = head.score(*prepared)
    for part in (0, 1):
        moved = Fragments(prepared[part].features.transpose(0, 1).contiguous().transpose(0, 1), prepared[part].mask)
        found = head.score(*(moved if i == part else p for i, p in enumerate(prepared)))
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


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


def test_level_sizes_of_the_paper_and_their_limit():
    assert level_sizes(512, 2) == [512, 256, 128, 64, 32, 16, 8, 4, 2]
    assert sum(level_sizes(512, 2)) == 1022
    assert level_sizes(300, 2) == [300, 150, 75, 37, 18, 9, 4, 2, 1]
    with pytest.raises(ValueError, match="at least 256"):
        level_sizes(255, 2)


def test_all_entries_that_tie_with_the_second_largest_stay():
    head = esl_a(256)
    with torch.no_grad():
        head.image_aggregator.weights[6][:] = torch.tensor([[1.0, 1.0, -2.0, 1.0], [3.0, -1.0, 2.0, 0.5]])
    kept = head.image_aggregator.sparse_matrix(7) != 0
    assert kept.tolist() == [[True, True, False, True], [True, False, True, False]]


def test_the_product_of_onednn_gives_the_same_scores(monkeypatch):
    head = esl_a(256)
    images, captions = (ragged(n, 4, 256, dtype=torch.float32, seed=n) for n in (5, 6))
    prepared = head.prepare_images(images), head.prepare_captions(captions)
    with torch.no_grad():
        expected = head.score(*prepared)
        monkeypatch.setattr(tiles, "LARGE_PRODUCT", 0)
        monkeypatch.setattr(tiles, "onednn_is_faster", lambda: True)
        torch.testing.assert_close(head.score(*prepared), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("cells", [49, 256])
def test_grids_of_49_to_256_cells_score_like_the_reference(cells):
    parameters = reference.random_esl_parameters("h", 256, seed=1)
    head = build("h", parameters)
    images, captions = ragged(2, cells, 256, [cells, cells - 5], seed=2), ragged(2, 5, 256, [5, 3], seed=3)
    expected = reference.esl_scores(items(images), items(captions), parameters, "h")
    torch.testing.assert_close(score(head, images, captions), expected, rtol=0, atol=1e-9 * float(expected.abs().max()))
