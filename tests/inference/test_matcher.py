"""The Matcher: eval.py's scores for every kind of model, items encoded once, attention, refusals in one line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lib import Encoded, load
from lib.checkpoint import save_checkpoint
from lib.core.config import ModelConfig
from lib.core.errors import InputError
from lib.datasets.inputs import open_inputs
from lib.files.images import read_image
from lib.inference.matcher import Matcher
from lib.inference.scoring import score_split
from lib.model import build_model
from tests.helpers import IMG_DIM

pytestmark = pytest.mark.usefixtures("single_thread")
REGIONS = {"img_dim": IMG_DIM}
CONFIGS = {
    "regions": ModelConfig("esl_a", "regions", embed_size=256, image_options=REGIONS),
    "grid": ModelConfig(
        "esl_a", "grid", embed_size=256, image_options={"backbone_source": "tiny", "input_scale_factor": 0.25}
    ),
    "pooled": ModelConfig("vse_infty", "regions", embed_size=256, image_options=REGIONS),
}


@pytest.fixture(scope="module")
def paths(sample, tmp_path_factory) -> dict[str, Path]:
    """Untrained checkpoints of a region model, a grid model and one with a pooled head."""
    root = tmp_path_factory.mktemp("matcher")
    for name, config in CONFIGS.items():
        torch.manual_seed(1)
        save_checkpoint(root / f"{name}.pth", build_model(config, {"bert_path": sample / "bert"}))
    return {name: root / f"{name}.pth" for name in CONFIGS}


@pytest.fixture(scope="module")
def matchers(sample, paths) -> dict[str, Matcher]:
    return {name: load(path, bert_path=sample / "bert", device="cpu") for name, path in paths.items()}


def split_of(sample: Path, matcher: Matcher):
    """The test split as a model reads it, its images as a user hands them over, and its captions."""
    inputs = open_inputs(sample / "f30k", "f30k", "test", matcher.spec)
    if matcher.spec.transform:
        images = [inputs.images.folder.path(row) for row in range(len(inputs.images))]
    else:
        images = inputs.split.features.rows(inputs.split.rows)[0]  # (N, R, D)
    return inputs, images, inputs.split.captions


@pytest.mark.parametrize("name", CONFIGS)
def test_the_scores_are_those_of_eval_encoded_or_not(sample, matchers, tmp_path, name):
    matcher = matchers[name]
    inputs, images, captions = split_of(sample, matcher)
    expected = score_split(matcher.runner, inputs).matrix
    scores = matcher.similarity(images, captions)
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-6)
    expected = score_split(matcher.runner, inputs, batch_size=3).matrix
    encoded = matcher.encode_images(images, batch_size=3), matcher.encode_captions(captions, batch_size=3)
    np.testing.assert_allclose(matcher.similarity(*encoded), expected, rtol=0, atol=1e-6)
    assert [*map(len, encoded)] == [10, 50]
    for kind, items in zip(("images", "captions"), encoded, strict=True):
        items[3:5].save(tmp_path / f"{kind}.pt")
    read = [Encoded.load(tmp_path / f"{kind}.pt") for kind in ("images", "captions")]
    np.testing.assert_allclose(matcher.similarity(*read), expected[3:5, 3:5], rtol=0, atol=1e-6)
    pair = matcher.similarity(encoded[0][-1], encoded[1][4])
    np.testing.assert_allclose(pair, expected[-1:, 4:5], rtol=0, atol=1e-6)


def test_images_come_as_files_as_pil_images_and_as_pixels(sample, matchers):
    matcher = matchers["grid"]
    _, (path, *_), captions = split_of(sample, matcher)
    expected = matcher.similarity(str(path), captions)
    for image in (Image.open(path), read_image(path), [path]):
        np.testing.assert_array_equal(matcher.similarity(image, captions), expected)


def test_images_may_have_different_numbers_of_regions(sample, matchers):
    for name in ("regions", "pooled"):
        _, features, captions = split_of(sample, matchers[name])
        alone = [
            matchers[name].similarity(features[0], captions),
            matchers[name].similarity(features[1, :20], captions),
        ]
        both = matchers[name].similarity([features[0], features[1, :20]], captions)
        np.testing.assert_allclose(both, np.concatenate(alone), rtol=0, atol=1e-6)


def test_attention_names_words_and_is_drawn(sample, matchers, tmp_path):
    caption = "A red Ball on the grass ."
    for name, count in (("regions", 36), ("grid", 4)):
        _, images, _ = split_of(sample, matchers[name])
        match = matchers[name].attention(images[0], caption)
        assert "Ball" in match.words and match.S.shape == (len(match.words), count)
        match.save(tmp_path / f"{name}.png")
        assert Image.open(tmp_path / f"{name}.png").width > 500
    with pytest.raises(InputError, match=r"match\.doc"):
        match.save(tmp_path / "match.doc")


def test_plain_clip_is_loaded_from_its_folder(sample):
    matcher = load(sample / "clip", device="cpu")
    inputs, images, captions = split_of(sample, matcher)
    np.testing.assert_allclose(
        matcher.similarity(images, captions), score_split(matcher.runner, inputs).matrix, rtol=0, atol=1e-6
    )


def test_the_wrong_thing_is_refused_in_one_line(sample, paths, matchers, tmp_path):
    regions, grid, pooled = (matchers[name] for name in ("regions", "grid", "pooled"))
    _, features, captions = split_of(sample, regions)
    _, (photo, *_), _ = split_of(sample, grid)
    images, texts = regions.encode_images(features[:2]), regions.encode_captions(captions[:2])
    nan = np.full((1, 36, IMG_DIM), np.nan, np.float32)
    (tmp_path / "empty").mkdir()
    torch.save({"a": torch.ones(1)}, tmp_path / "other.pt")
    refused = {
        "not type int": lambda: load(3),
        "empty: is a folder": lambda: load(tmp_path / "empty"),
        "none.pth": lambda: load(tmp_path / "none.pth"),
        "no-such-clip": lambda: load(tmp_path / "no-such-clip"),
        "'float1'": lambda: load(paths["grid"], precision="float1"),
        "none.jpg: no such image file": lambda: grid.similarity([photo, "none.jpg"], captions),
        r"not float32 \(10, 36, 32\)": lambda: grid.similarity(features, captions),
        "image files, .* not type int": lambda: grid.encode_images(3),
        r"\(N, R, 32\).*not type str": lambda: regions.encode_images("a.jpg"),
        "image number 1 is type str": lambda: regions.encode_images(["a.jpg"]),
        r"image number 1 is torch.float32 \(36, 31\)": lambda: regions.encode_images(features[:, :, 1:]),
        "NaN": lambda: regions.encode_images(nan),
        "captions .* not type int": lambda: regions.encode_captions(3),
        "caption number 2: .* not type int": lambda: regions.encode_captions(["a", 3]),
        "number 1: ' '": lambda: regions.encode_captions(" "),
        "encoded captions where images": lambda: regions.similarity(texts, images),
        "another model": lambda: pooled.similarity(images, captions),
        "encoded images": lambda: regions.attention(images, "A ball"),
        "one image and one caption": lambda: regions.attention(features[:2], "A ball"),
        "vse_infty": lambda: pooled.attention(features[0], "A ball"),
        "other.pt": lambda: Encoded.load(tmp_path / "other.pt"),
    }  # fmt: skip
    for message, call in refused.items():
        with pytest.raises(InputError, match=message) as error:
            call()
        assert "\n" not in str(error.value)
