"""A split opened for the encoders of a model: regions or raw images, and its captions as tokens."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from lib.core.errors import InputError
from lib.datasets.images import RawImages
from lib.datasets.inputs import InputSpec, RegionImages, open_inputs
from lib.datasets.tokenisers import WordPiece, load_tokenizer
from lib.files.images import ImageLimits

IDS = [30, 10, 20]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Three images of two captions each, as region features and as image files; image i holds i everywhere."""
    root = tmp_path_factory.mktemp("data")
    for folder in ("precomp", "images"):
        (root / folder).mkdir()
    np.save(root / "precomp" / "dev_ims.npy", np.arange(3, dtype=np.float32)[:, None, None] * np.ones((1, 2, 4), "f4"))
    (root / "precomp" / "dev_caps.txt").write_text("a dog\nred dog\na red dog\ndog\nred\na\n")
    (root / "precomp" / "dev_ids.txt").write_text("".join(f"{image_id}\n" for image_id in IDS))
    (root / "id_mapping.json").write_text(json.dumps({str(image_id): f"{image_id}.png" for image_id in IDS}))
    for i, image_id in enumerate(IDS):
        Image.new("RGB", (5, 4), (i, i, i)).save(root / "images" / f"{image_id}.png")
    (root / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "dog"]) + "\n")
    return root


@pytest.fixture(scope="module")
def tokeniser(root):
    return WordPiece(load_tokenizer(root), {"vocab_size": 20, "max_position_embeddings": 20})


def brightness(image, rng):
    """A transform without randomness: the first pixel."""
    return torch.full((3, 2, 2), float(image[0, 0, 0]))


@pytest.fixture
def raw(tokeniser):
    return InputSpec(tokeniser, transform=brightness)


@pytest.mark.parametrize("data_name", ["birds", "coco", "f30k"])
def test_region_features_and_captions_of_a_split_are_opened_together(root, tokeniser, data_name):
    inputs = open_inputs(root, data_name, "dev", InputSpec(tokeniser, img_dim=4))
    assert isinstance(inputs.images, RegionImages) and len(inputs.images) == inputs.split.n_images == 3
    assert [inputs.images(i).features.unique().tolist() for i in range(3)] == [[0], [1], [2]]
    assert inputs.split.image_of_caption.tolist() == [0, 0, 1, 1, 2, 2]
    assert inputs.captions.ids(2).tolist() == [2, 5, 6, 7, 3] and len(inputs.captions) == 6


@pytest.mark.parametrize("data_name", ["birds", "coco", "f30k"])
def test_raw_images_are_found_through_the_ids_of_the_split(root, raw, data_name):
    inputs = open_inputs(root, data_name, "dev", raw)
    assert isinstance(inputs.images, RawImages) and inputs.split.features is None
    assert [inputs.images(i)[0, 0, 0].item() for i in range(3)] == [0, 1, 2]
    assert len(inputs.captions) == 6


def test_a_limit_keeps_the_first_images_and_asks_for_no_others(root, raw, tokeniser, tmp_path):
    regions = open_inputs(root, "birds", "dev", InputSpec(tokeniser, img_dim=4), limit=2)
    assert (len(regions.images), len(regions.captions), regions.split.limited) == (2, 4, True)
    (tmp_path / "images").mkdir()
    (tmp_path / "precomp").symlink_to(root / "precomp")
    (tmp_path / "id_mapping.json").symlink_to(root / "id_mapping.json")
    for image_id in IDS[:2]:
        (tmp_path / "images" / f"{image_id}.png").hardlink_to(root / "images" / f"{image_id}.png")
    assert len(open_inputs(tmp_path, "birds", "dev", raw, limit=2).images) == 2
    with pytest.raises(InputError, match=r"1 image files \(20.png\) of 3 missing"):
        open_inputs(tmp_path, "birds", "dev", raw)


def test_the_limits_of_images_hold_for_those_of_a_split(root, raw, tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "precomp").symlink_to(root / "precomp")
    (tmp_path / "id_mapping.json").write_text(json.dumps({i: str(root / "images" / f"{i}.png") for i in IDS}))
    with pytest.raises(InputError, match="3 image files .* of 3: outside of .*--allow_outside_images"):
        open_inputs(tmp_path, "birds", "dev", raw)
    opened = open_inputs(tmp_path, "birds", "dev", raw, image_limits=ImageLimits(max_pixels=20, outside=True))
    assert opened.images(2)[0, 0, 0] == 2
    opened = open_inputs(tmp_path, "birds", "dev", raw, image_limits=ImageLimits(max_pixels=19, outside=True))
    with pytest.raises(InputError, match="more than 19 pixels"):
        opened.images(2)


def test_features_of_another_size_are_refused_when_the_split_is_opened(root, tokeniser):
    with pytest.raises(InputError, match="found features of size 4, expected --img_dim 8"):
        open_inputs(root, "birds", "dev", InputSpec(tokeniser, img_dim=8))


def test_raw_images_without_a_mapping_or_folder_are_refused_when_the_split_is_opened(root, raw, tmp_path):
    (tmp_path / "precomp").symlink_to(root / "precomp")
    with pytest.raises(InputError, match="no folder of raw images"):
        open_inputs(tmp_path, "birds", "dev", raw)
    (tmp_path / "images").mkdir()
    with pytest.raises(InputError, match="id_mapping.json: no such file"):
        open_inputs(tmp_path, "birds", "dev", raw)
