"""Encoding a split once and tiling its matrix: the same scores however the work is cut."""

from __future__ import annotations

import copy
import functools

import numpy as np
import pytest
import torch

from lib.checkpoint import load_model, read_checkpoint
from lib.datasets.loaders import caption_batches, image_batches
from lib.errors import InputError
from lib.evaluation import scoring
from lib.evaluation.metrics import retrieval_metrics
from lib.fragments import Fragments
from lib.model import build_model
from lib.parallel import Runner
from lib.training.engine import score_split
from tests import helpers
from tests.helpers import HEADS, IMG_DIM, open_sample, small_config

CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("single_thread")


@pytest.fixture(scope="module")
def dev(sample):
    return open_sample(sample, "dev")


def runner_for(tokenized, similarity: str = "esl_a", devices: int = 1) -> Runner:
    torch.manual_seed(0)
    bert = small_config().bert | {"vocab_size": tokenized.vocab_size}
    model = build_model(small_config(similarity, img_dim=IMG_DIM, bert=bert)).eval()
    return Runner(model, [CPU] * devices)


def assert_close(found: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6 * abs(expected).max())


@pytest.mark.parametrize("similarity", HEADS)
def test_the_matrix_holds_the_models_score_of_every_image_and_caption(dev, similarity):
    split, tokenized = dev
    runner = runner_for(tokenized, similarity)
    matrix = score_split(runner, split, tokenized).matrix
    assert matrix.dtype == np.float32 and matrix.shape == (10, 50)
    features, mask = split.features.rows(split.rows)
    for column in (0, 17, 49):
        with torch.no_grad():
            images = Fragments(torch.from_numpy(features), torch.from_numpy(mask))
            scores = runner.model(images, torch.from_numpy(tokenized.ids(column))[None])  # alone: without any padding
        assert_close(matrix[:, column], scores[:, 0].numpy())


@pytest.mark.parametrize("similarity", HEADS)
def test_batch_size_workers_and_memory_do_not_change_the_matrix(dev, similarity):
    split, tokenized = dev
    runner = runner_for(tokenized, similarity)
    expected = score_split(runner, split, tokenized).matrix
    for settings in ({"batch_size": 1}, {"batch_size": 3, "workers": 2}, {"batch_size": 7, "score_memory": 1}):
        assert_close(score_split(runner, split, tokenized, **settings).matrix, expected)


@pytest.mark.parametrize("size", [1, 4, 9, 10])
def test_the_size_of_the_image_tiles_does_not_change_the_matrix(dev, monkeypatch, size):
    split, tokenized = dev
    runner = runner_for(tokenized)
    expected = score_split(runner, split, tokenized).matrix
    monkeypatch.setattr(scoring.tiles, "image_tile", lambda *_: size)
    images = scoring.encode_images(runner, image_batches(split, 3), 10)
    assert [len(chunk.mask) for chunk in images.chunks] == [size] * (10 // size) + [10 % size] * (10 % size > 0)
    captions = scoring.encode_captions(runner, caption_batches(tokenized, 100), 50)
    assert_close(scoring.similarity_matrix(runner, images, captions), expected)


@pytest.mark.parametrize("similarity", HEADS)
def test_several_devices_share_the_images_and_give_the_same_matrix(dev, monkeypatch, similarity):
    split, tokenized = dev
    expected = score_split(runner_for(tokenized, similarity), split, tokenized).matrix
    monkeypatch.setattr(scoring.tiles, "image_tile", lambda *_: 3)
    runner = runner_for(tokenized, similarity)
    images = scoring.encode_images(runner, image_batches(split, 4), 10)
    captions = scoring.encode_captions(runner, caption_batches(tokenized, 200), 50)
    runner.devices = [CPU] * 3
    assert_close(scoring.similarity_matrix(runner, images, captions), expected)


@pytest.mark.parametrize("batch_size", [3, 128])
def test_each_image_and_each_caption_is_encoded_and_prepared_exactly_once(dev, monkeypatch, batch_size):
    split, tokenized = dev
    runner = runner_for(tokenized)
    counted = {"encode_images": 0, "encode_captions": 0, "prepare_images": 0, "prepare_captions": 0, "pairs": 0}

    def count(owner, name: str, key: str, amount) -> None:
        function = getattr(owner, name)

        def counting(*arguments):
            counted[key] += amount(*arguments)
            return function(*arguments)

        monkeypatch.setattr(owner, name, counting)

    head = runner.model.similarity
    count(runner, "encode_images", "encode_images", lambda images: len(images.mask))
    count(runner, "encode_captions", "encode_captions", len)
    count(head, "prepare_images", "prepare_images", lambda images: len(images.mask))
    count(head, "prepare_captions", "prepare_captions", lambda captions: len(captions.mask))
    count(head, "score", "pairs", lambda images, captions: len(images.mask) * len(captions.mask))
    score_split(runner, split, tokenized, batch_size)
    assert counted == {
        "encode_images": 10,
        "encode_captions": 50,
        "prepare_images": 10,
        "prepare_captions": 50,
        "pairs": 500,
    }


@pytest.mark.parametrize("similarity", HEADS)
def test_regions_that_the_mask_file_rules_out_influence_no_score(sample, tmp_path, similarity):
    precomp = helpers.copy_precomp(sample, tmp_path)
    features = np.load(precomp / "dev_ims.npy")
    mask = np.random.default_rng(0).random(features.shape[:2]) < 0.7
    mask = np.repeat(mask[::5], 5, axis=0)  # the rows of an image are repeated for each caption
    np.save(precomp / "dev_mask.npy", mask)
    (tmp_path / "bert").symlink_to(sample / "bert")
    matrices = []
    for filler in (0.0, 9.0):
        np.save(precomp / "dev_ims.npy", np.where(mask[..., None], features, np.float32(filler)))
        split, tokenized = open_sample(tmp_path, "dev")
        matrices.append(score_split(runner_for(tokenized, similarity), split, tokenized).matrix)
    assert np.array_equal(*matrices)
    with_all = score_split(runner_for(tokenized, similarity), open_sample(sample, "dev")[0], tokenized).matrix
    assert abs(with_all - matrices[0]).max() > 1e-3


@pytest.mark.parametrize("similarity", HEADS)
def test_item_vectors_are_unit_vectors_in_the_order_of_the_split(dev, similarity):
    split, tokenized = dev
    runner = runner_for(tokenized, similarity)
    scores = score_split(runner, split, tokenized, batch_size=3, vectors=True)
    sizes = {"vse_infty": 256}.get(similarity, 511)
    assert scores.image_vectors.shape == (10, sizes) and scores.caption_vectors.shape == (50, sizes)
    for vectors in (scores.image_vectors, scores.caption_vectors):
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    token_ids = torch.from_numpy(tokenized.ids(31))[None]
    with torch.no_grad():
        expected = runner.model.similarity.embed_captions(runner.model.text_encoder(token_ids))
    np.testing.assert_allclose(scores.caption_vectors[31], expected[0].numpy(), atol=1e-5)
    if similarity == "vse_infty":
        np.testing.assert_allclose(scores.image_vectors @ scores.caption_vectors.T, scores.matrix, atol=1e-5)
    assert score_split(runner, split, tokenized).image_vectors is None


@pytest.fixture(scope="module")
def trained(sample, runs):
    """`trained(similarity)`: a model that learned something, the split it scores, and the scores in float64."""

    @functools.cache
    def prepared(similarity: str):
        split, tokenized = open_sample(sample, "train")
        runner = Runner(load_model(read_checkpoint(runs(similarity) / "model_best.pth")), [CPU])
        images = list(image_batches(split, 24))
        with torch.no_grad():
            sides = [runner.model.eval().image_encoder(images[0])]
            columns, tokens = zip(*caption_batches(tokenized, 10_000), strict=True)
            sides.append(runner.model.text_encoder(tokens[0]))
            head = copy.deepcopy(runner.model.similarity).double()
            images, captions = (Fragments(side.features.double(), side.mask) for side in sides)
            scores = head.score(head.prepare_images(images), head.prepare_captions(captions)).numpy()
        exact = np.empty_like(scores)
        exact[:, np.asarray(columns[0])] = scores
        return runner, split, tokenized, exact

    return prepared


def recalls(matrix: np.ndarray, split) -> list[float]:
    figures = retrieval_metrics(np.ascontiguousarray(matrix, np.float32), split.image_of_caption)
    return [recall for side in (figures.i2t, figures.t2i) for recall in (side.r1, side.r5, side.r10)]


def one_dnn(patch) -> dict:
    patch.setattr(scoring.tiles, "LARGE_PRODUCT", 0)
    patch.setattr(scoring.tiles, "onednn_is_faster", lambda: True)
    return {}


def no_kernels(patch) -> dict:
    patch.setenv("ESL_NO_KERNELS", "1")
    return {}


def little_memory(patch) -> dict:
    patch.setattr(scoring.tiles, "image_tile", lambda *_: 5)
    return {"score_memory": 1}


@pytest.mark.parametrize(
    "path", [lambda patch: {}, no_kernels, one_dnn, little_memory, lambda patch: {"batch_size": 3}]
)
@pytest.mark.parametrize("similarity", HEADS)
def test_every_way_of_scoring_gives_the_recalls_of_float64(trained, similarity, path, monkeypatch):
    runner, split, tokenized, exact = trained(similarity)
    matrix = score_split(runner, split, tokenized, **path(monkeypatch)).matrix
    assert abs(matrix - exact).max() < 5e-6 * abs(exact).max()
    assert recalls(matrix, split) == recalls(exact, split)
    assert max(recalls(exact, split)) > 20


@pytest.mark.parametrize("similarity", HEADS)
def test_bf16_moves_no_recall_by_more_than_one_query(trained, similarity):
    runner, split, tokenized, exact = trained(similarity)
    matrix = score_split(runner, split, tokenized, precision="bf16").matrix
    assert 0 < abs(matrix - exact).max() < 0.02 * abs(exact).max()
    one = [100 / len(exact)] * 3 + [100 / exact.shape[1]] * 3  # of each direction's queries
    moved = np.abs(np.subtract(recalls(matrix, split), recalls(exact, split)))
    assert (moved <= np.add(one, 1e-9)).all(), moved


def test_another_number_of_images_than_the_split_has_is_refused(dev):
    split, tokenized = dev
    with pytest.raises(InputError, match="10 images were read where 11 were expected"):
        scoring.encode_images(runner_for(tokenized), image_batches(split, 4), 11)


def test_scoring_keeps_no_graph_and_no_weight_changes(dev):
    split, tokenized = dev
    runner = runner_for(tokenized)
    before = copy.deepcopy(runner.model.state_dict())
    images = scoring.encode_images(runner, image_batches(split, 4), 10)
    assert not any(chunk.features.requires_grad for chunk in images.chunks)
    assert all(torch.equal(value, before[name]) for name, value in runner.model.state_dict().items())


def test_an_unknown_precision_is_refused():
    with pytest.raises(InputError, match="--precision is 'fp8', expected one of float32, tf32, bf16"):
        scoring.set_precision("fp8")


def test_float32_means_float32_on_a_gpu_and_the_others_allow_tf32():
    try:
        for precision, allowed in (("float32", False), ("tf32", True), ("bf16", True)):
            scoring.set_precision(precision)
            assert torch.backends.cuda.matmul.allow_tf32 is torch.backends.cudnn.allow_tf32 is allowed
    finally:
        scoring.set_precision("float32")
