"""Encoding a split once and tiling its matrix: the same scores however the work is cut, on whatever it is done."""

from __future__ import annotations

import copy
import dataclasses
import functools

import numpy as np
import pytest
import torch

from lib.checkpoint import load_model, read_checkpoint
from lib.core.config import KERNELS
from lib.core.errors import InputError
from lib.core.fragments import Fragments, Tokens
from lib.datasets.inputs import Inputs
from lib.datasets.loaders import caption_batches, image_batches
from lib.distributed.runner import Runner
from lib.evaluation.metrics import retrieval_metrics
from lib.inference import scoring
from lib.inference.scoring import score_split
from lib.model import build_model
from lib.similarity.alignment import Backend, tiles
from lib.similarity.head import SimilarityHead
from tests import helpers
from tests.helpers import HEADS, IMG_DIM, open_sample, small_config

CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("single_thread")


@pytest.fixture(scope="module")
def dev(sample) -> Inputs:
    return open_sample(sample, "dev")


def runner_for(inputs: Inputs, similarity: str = "esl_a", devices: int = 1, **options) -> Runner:
    """Runs an untrained model that reads `inputs`; `options` are those of Runner."""
    torch.manual_seed(0)
    config = small_config(similarity, img_dim=IMG_DIM)
    texts = config.text_options | {"vocab_size": inputs.captions.tokeniser.vocab_size}
    model = build_model(dataclasses.replace(config, text_options=texts)).eval()
    return Runner(model, [CPU] * devices, **options)


def assert_close(found: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6 * abs(expected).max())


@pytest.mark.parametrize("similarity", HEADS)
def test_the_matrix_holds_the_models_score_of_every_image_and_caption(dev, similarity):
    runner = runner_for(dev, similarity)
    matrix = score_split(runner, dev).matrix
    assert matrix.dtype == np.float32 and matrix.shape == (10, 50)
    features, mask = dev.split.features.rows(dev.split.rows)
    for column in (0, 17, 49):
        with torch.no_grad():
            images = Fragments(torch.from_numpy(features), torch.from_numpy(mask))
            scores = runner.model(images, Tokens.padded([dev.captions.ids(column)]))  # alone: without any padding
        assert_close(matrix[:, column], scores[:, 0].numpy())


@pytest.mark.parametrize("similarity", HEADS)
def test_batch_size_workers_and_memory_do_not_change_the_matrix(dev, similarity):
    expected = score_split(runner_for(dev, similarity), dev).matrix
    for settings in ({"batch_size": 1}, {"batch_size": 3, "workers": 2}):
        assert_close(score_split(runner_for(dev, similarity), dev, **settings).matrix, expected)
    little = runner_for(dev, similarity, backend=Backend(memory=1 << 20))
    assert_close(score_split(little, dev, batch_size=7).matrix, expected)


def scored_tiles(monkeypatch, runner: Runner) -> list[tuple[SimilarityHead, int]]:
    """Which head scored a tile, and how many images it had, in a list that fills while a split is scored."""
    seen, kind = [], type(runner.model.similarity)
    score = kind.score

    def keep(head, images, captions):
        seen.append((head, images.count))
        return score(head, images, captions)

    monkeypatch.setattr(kind, "score", keep)
    return seen


@pytest.mark.parametrize("size", [1, 4, 9, 10])
def test_the_size_of_the_image_tiles_does_not_change_the_matrix(dev, monkeypatch, size):
    runner = runner_for(dev)
    expected = score_split(runner, dev).matrix
    monkeypatch.setattr(runner.model.similarity, "images_per_tile", lambda *_: size)
    seen = scored_tiles(monkeypatch, runner)
    assert_close(score_split(runner, dev, batch_size=3).matrix, expected)
    wanted = [size] * (10 // size) + [10 % size] * (10 % size > 0)
    assert [count for _, count in seen] == wanted * (len(seen) // len(wanted))  # once for each batch of captions


@pytest.mark.parametrize("similarity", HEADS)
def test_several_devices_share_the_images_and_give_the_same_matrix(dev, monkeypatch, similarity):
    expected = score_split(runner_for(dev, similarity), dev).matrix
    runner = runner_for(dev, similarity, devices=3)
    seen = scored_tiles(monkeypatch, runner)
    assert_close(score_split(runner, dev).matrix, expected)  # of each device a tile, whatever a tile may hold
    assert len({id(head) for head, _ in seen}) == 3
    monkeypatch.setattr(runner.model.similarity, "images_per_tile", lambda *_: 3)
    seen.clear()
    assert_close(score_split(runner, dev, batch_size=4).matrix, expected)
    assert {count for _, count in seen} == {3, 1} and len({id(head) for head, _ in seen}) == 3


@pytest.mark.parametrize("batch_size", [3, 128])
def test_each_image_and_each_caption_is_encoded_and_prepared_exactly_once(dev, monkeypatch, batch_size):
    runner = runner_for(dev)
    head = runner.model.similarity
    counted = {"encode_images": 0, "encode_captions": 0, "prepare_images": 0, "prepare_captions": 0, "score": 0}

    def count(owner, name: str, amount) -> None:
        function = getattr(owner, name)

        def counting(*arguments):
            counted[name] += amount(*arguments)
            return function(*arguments)

        monkeypatch.setattr(owner, name, counting)

    for name in ("encode_images", "encode_captions"):
        count(runner, name, lambda items: items.count)
    for name in ("prepare_images", "prepare_captions"):
        count(head, name, lambda items: items.count)
    count(head, "score", lambda images, captions: images.count * captions.count)
    score_split(runner, dev, batch_size)
    assert counted == {
        "encode_images": 10,
        "encode_captions": 50,
        "prepare_images": 10,
        "prepare_captions": 50,
        "score": 500,  # pairs
    }


@pytest.mark.parametrize("similarity", HEADS)
def test_regions_that_the_mask_file_rules_out_influence_no_score(sample, tmp_path, dev, similarity):
    precomp = helpers.copy_precomp(sample, tmp_path)
    features = np.load(precomp / "dev_ims.npy")
    mask = np.random.default_rng(0).random(features.shape[:2]) < 0.7
    mask = np.repeat(mask[::5], 5, axis=0)  # the rows of an image are repeated for each caption
    np.save(precomp / "dev_mask.npy", mask)
    (tmp_path / "bert").symlink_to(sample / "bert")
    matrices = []
    for filler in (0.0, 9.0):
        np.save(precomp / "dev_ims.npy", np.where(mask[..., None], features, np.float32(filler)))
        inputs = open_sample(tmp_path, "dev")
        matrices.append(score_split(runner_for(inputs, similarity), inputs).matrix)
    assert np.array_equal(*matrices)
    with_all = score_split(runner_for(dev, similarity), dev).matrix
    assert abs(with_all - matrices[0]).max() > 1e-3


@pytest.mark.parametrize("similarity", HEADS)
def test_item_vectors_are_unit_vectors_in_the_order_of_the_split(dev, similarity):
    runner = runner_for(dev, similarity)
    scores = score_split(runner, dev, batch_size=3, vectors=True)
    sizes = {"vse_infty": 256}.get(similarity, 511)
    assert scores.image_vectors.shape == (10, sizes) and scores.caption_vectors.shape == (50, sizes)
    for vectors in (scores.image_vectors, scores.caption_vectors):
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    head, alone = runner.model.similarity, Tokens.padded([dev.captions.ids(31)])
    with torch.no_grad():
        caption = head.embed_captions(runner.model.text_encoder(alone))
        image = head.embed_images(runner.model.image_encoder(Fragments(*(x[None] for x in dev.images(7)))))
    np.testing.assert_allclose(scores.caption_vectors[31], caption[0].numpy(), atol=1e-5)
    np.testing.assert_allclose(scores.image_vectors[7], image[0].numpy(), atol=1e-5)
    if similarity == "vse_infty":
        np.testing.assert_allclose(scores.image_vectors @ scores.caption_vectors.T, scores.matrix, atol=1e-5)
    without = score_split(runner, dev)
    assert without.image_vectors is None and without.caption_vectors is None


# ---- recalls of every way and of every precision ----


@pytest.fixture(scope="module")
def trained(sample, runs):
    """`trained(similarity)`: a model that learned something, the split it scores, and the scores in float64."""

    @functools.cache
    def prepared(similarity: str):
        inputs = open_sample(sample, "train")
        model = load_model(read_checkpoint(runs(similarity) / "model_best.pth")).eval()
        (images,), (captions,) = image_batches(inputs.images, 24), caption_batches(inputs.captions, 10_000)
        columns, tokens = captions
        with torch.no_grad():
            head = copy.deepcopy(model.similarity).double()
            regions, words = (
                Fragments(encoded.features.double(), encoded.mask)
                for encoded in (model.image_encoder(images), model.text_encoder(tokens))
            )
            scores = head.score(head.prepare_images(regions), head.prepare_captions(words)).numpy()
        exact = np.empty_like(scores)
        exact[:, columns] = scores
        return model, inputs, exact

    return prepared


def recalls(matrix: np.ndarray, inputs: Inputs) -> list[float]:
    figures = retrieval_metrics(np.ascontiguousarray(matrix, np.float32), inputs.split.image_of_caption)
    return [recall for side in (figures.i2t, figures.t2i) for recall in (side.r1, side.r5, side.r10)]


def one_dnn(patch) -> None:
    patch.setattr(tiles, "LARGE_PRODUCT", 0)
    patch.setattr(tiles, "onednn_is_faster", lambda: True)


def small_tiles(patch) -> None:
    patch.setattr(tiles, "image_tile", lambda *_: 5)


WAYS = {  # what is patched, how scores are computed, how many devices, how the work is cut
    "auto": (None, Backend(), 1, {}),
    "without kernels": (None, Backend("torch"), 1, {}),
    "by the definition": (None, Backend("plain"), 1, {}),
    "products of oneDNN": (one_dnn, Backend(), 1, {}),
    "little memory": (small_tiles, Backend(memory=1 << 20), 1, {}),
    "little memory without kernels": (small_tiles, Backend("torch", 1 << 20), 1, {}),
    "small batches": (None, Backend(), 1, {"batch_size": 3}),
    "three devices": (None, Backend(), 3, {}),
}


@pytest.mark.parametrize("name", WAYS)
@pytest.mark.parametrize("similarity", HEADS)
def test_every_way_of_scoring_gives_the_recalls_of_float64(trained, similarity, name, monkeypatch):
    model, inputs, exact = trained(similarity)
    patched, backend, devices, cut = WAYS[name]
    if patched:
        patched(monkeypatch)
    matrix = score_split(Runner(model, [CPU] * devices, backend=backend), inputs, **cut).matrix
    assert abs(matrix - exact).max() < 5e-6 * abs(exact).max()
    assert recalls(matrix, inputs) == recalls(exact, inputs)
    assert max(recalls(exact, inputs)) > 20


def test_every_choice_of_kernels_is_among_the_ways_that_are_compared_with_float64():
    assert {backend.kernels for _, backend, *_ in WAYS.values()} == set(KERNELS)


def test_tf32_is_float32_where_there_is_no_gpu(trained):
    model, inputs, _ = trained("esl_a")
    exact, tf32 = (score_split(Runner(model, [CPU], p, Backend()), inputs).matrix for p in ("float32", "tf32"))
    np.testing.assert_array_equal(tf32, exact)


BF16 = [(similarity, kernels) for similarity in ("esl_a", "esl_h") for kernels in KERNELS] + [("vse_infty", "auto")]


@pytest.mark.parametrize(("similarity", "kernels"), BF16)
def test_bf16_moves_no_score_by_more_than_a_hundredth_of_the_largest(trained, similarity, kernels):
    model, inputs, exact = trained(similarity)
    matrix = score_split(Runner(model, [CPU], "bf16", Backend(kernels)), inputs).matrix
    assert 0 < abs(matrix - exact).max() < 0.01 * abs(exact).max()


@pytest.mark.parametrize(("similarity", "kernels"), BF16)
def test_bf16_multiplies_in_bfloat16_and_keeps_scores_of_float32(trained, similarity, kernels, monkeypatch):
    """Scores rounded to bfloat16 would tie by the dozen, and every tie counts against the right item."""
    model, inputs, _ = trained(similarity)
    head, seen = model.similarity, []
    score = head.score

    def keep(images, captions):
        seen.append((images.units.dtype, captions.units.dtype))
        return score(images, captions)

    monkeypatch.setattr(head, "score", keep)
    matrix = torch.from_numpy(score_split(Runner(model, [CPU], "bf16", Backend(kernels)), inputs).matrix)
    assert set(seen) == {(torch.bfloat16, torch.bfloat16)}
    assert (matrix.bfloat16().float() != matrix).float().mean() > 0.9


# ---- what scoring leaves alone, and what it refuses ----


@pytest.mark.parametrize("trouble", ["less is free", "torch gets none"])
def test_a_matrix_that_does_not_fit_into_memory_is_refused_before_anything_is_encoded(dev, monkeypatch, trouble):
    def refused(*shape, **settings):
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(scoring, "encode_images", lambda *arguments: pytest.fail("encoding began"))
    monkeypatch.setattr(scoring, "free_memory", lambda: 1999 if trouble == "less is free" else None)
    runner = runner_for(dev)
    if trouble == "torch gets none":
        monkeypatch.setattr(scoring.torch, "empty", refused)
    with pytest.raises(InputError, match="the scores of 10 images and 50 captions take 0.0 GB, more than the .* free"):
        score_split(runner, dev)


def test_a_matrix_that_just_fits_is_scored(dev, monkeypatch):
    monkeypatch.setattr(scoring, "free_memory", lambda: 4 * 10 * 50)
    assert score_split(runner_for(dev), dev).matrix.shape == (10, 50)


def test_another_number_of_images_than_the_split_has_is_refused(dev, monkeypatch):
    monkeypatch.setattr(scoring, "image_batches", lambda *arguments: list(image_batches(*arguments))[:-1])
    with pytest.raises(InputError, match="8 images were read where 10 were expected"):
        score_split(runner_for(dev), dev, batch_size=4)


def test_scoring_keeps_no_graph_on_any_device_and_no_weight_changes(dev, monkeypatch):
    runner = runner_for(dev, devices=3)
    before = copy.deepcopy(runner.model.state_dict())
    kind, graphs = type(runner.model.similarity), []
    score = kind.score

    def keep(head, images, captions):
        scores = score(head, images, captions)
        graphs.extend(part.requires_grad for part in (images.units, captions.units, scores))
        return scores

    monkeypatch.setattr(kind, "score", keep)
    score_split(runner, dev)
    assert graphs and not any(graphs)
    assert all(torch.equal(value, before[name]) for name, value in runner.model.state_dict().items())


@pytest.mark.parametrize("training", [True, False])
def test_the_model_scores_without_dropout_and_keeps_its_mode(dev, monkeypatch, training):
    runner = runner_for(dev)
    expected = score_split(runner, dev).matrix
    runner.model.train(training)
    np.testing.assert_array_equal(score_split(runner, dev).matrix, expected)
    assert all(module.training is training for module in runner.model.modules())
    monkeypatch.setattr(runner, "encode_captions", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        score_split(runner, dev)
    assert all(module.training is training for module in runner.model.modules())
