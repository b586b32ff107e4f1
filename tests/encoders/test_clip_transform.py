"""CLIP's transform: where it cuts and resizes, in which form of the file, and the released pixels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from lib.datasets.images import ImageFolder, RawImages
from lib.encoders.clip_transform import MEANS, STDS, ClipTransform
from lib.files.images import read_image
from tests.conftest import SHARED, needs_shared


def test_the_shorter_side_is_resized_and_the_centre_cut_with_ties_to_even():
    ramp = np.arange(15, dtype=np.uint8)
    wide = Image.fromarray(np.broadcast_to(ramp, (8, 15)).copy()).convert("RGB")  # no resize: offset round(3.5) = 4
    seen = ClipTransform(8).decode(wide)
    assert seen.shape == (8, 8, 3) and seen[0, :, 0].tolist() == list(range(4, 12))
    assert ClipTransform(8).decode(wide.rotate(90, expand=True)).shape == (8, 8, 3)
    assert ClipTransform(10).decode(wide).shape == (10, 10, 3)  # 10 x int(18.75), offset round(4.0)


def test_training_and_evaluation_see_the_same_normalised_pixels():
    transform, image = ClipTransform(4), np.full((4, 4, 3), 51, np.uint8)
    pixels = transform(image)
    assert torch.equal(pixels, transform(image, np.random.default_rng(0)))
    assert pixels.dtype == torch.float32 and pixels.shape == (3, 4, 4)
    assert torch.allclose(pixels[:, 0, 0], (0.2 - torch.tensor(MEANS)) / torch.tensor(STDS))


def test_a_palette_is_resized_as_it_is_stored(tmp_path):
    picture = Image.new("P", (8, 8))
    picture.putpalette([0, 0, 0, 255, 255, 255])
    picture.putdata([x % 2 for _ in range(8) for x in range(8)])
    picture.save(tmp_path / "1.png")
    images = RawImages(ImageFolder(tmp_path, {1: "1.png"}), ClipTransform(4))
    seen = read_image(tmp_path / "1.png", decode=images.transform.decode)
    assert set(np.unique(seen)) <= {0, 255}  # nearest neighbour; RGB would have been blended to grey
    assert torch.equal(images(0), images.transform(seen))


def test_sixteen_bit_grey_keeps_its_high_byte(tmp_path):
    Image.fromarray(np.full((6, 9), 0x8012, np.uint16)).save(tmp_path / "deep.png")
    assert (read_image(tmp_path / "deep.png", decode=ClipTransform(4).decode) == 0x80).all()


@needs_shared
@pytest.mark.parametrize("name", ["rgb_landscape", "rgb_portrait", "rgb_small", "grey", "palette", "rgba"])
def test_pixels_are_those_of_the_released_transform(name):
    file = np.load(SHARED / "golden" / "clip_preprocess.npz")
    transform = ClipTransform(int(file["input_res"]))
    found = transform(
        read_image(SHARED / "golden" / "clip_preprocess" / f"{name}.png", decode=transform.decode)
    ).numpy()
    differences = np.abs(found - file[name])
    assert differences.max() <= 1e-6
