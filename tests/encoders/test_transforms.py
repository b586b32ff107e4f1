"""lib.encoders.transforms: the resize against PyTorch and OpenCV, crops, flips and normalisation against plain
arithmetic."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from lib.datasets.images import ImageFolder, RawImages
from lib.encoders.transforms import (
    CLIP_MEANS,
    CLIP_STDS,
    ClipTransform,
    SquareTransform,
    bgr_minus_mean,
    imagenet_normalize,
    input_size,
    random_crop,
    resize,
)
from lib.files.images import read_image
from tests.conftest import SHARED, needs_shared

pytestmark = pytest.mark.usefixtures("single_thread")

BGR_MEANS = np.array([102.9801, 115.9465, 122.7717])
RGB_MEANS = np.array([0.485, 0.456, 0.406])
RGB_STDS = np.array([0.229, 0.224, 0.225])
NORMALIZATIONS = [bgr_minus_mean, imagenet_normalize]
SHAPES = [(480, 640), (427, 640), (500, 375), (333, 500), (31, 47), (512, 512), (1, 1), (601, 2)]


def _noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


class Scripted:
    """A random generator whose draws are given: crop ratio, top, left, flip."""

    def __init__(self, ratio: float, top: int, left: int, flip: float):
        self.ratio, self.flip, self.offsets, self.bounds = ratio, flip, [top, left], []

    def uniform(self, low, high):
        self.bounds.append((low, high))
        return self.ratio

    def integers(self, high, endpoint):
        assert endpoint
        self.bounds.append(high)
        return self.offsets.pop(0)

    def random(self):
        return self.flip


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", [256, 512])
def test_resize_equals_interpolate_without_antialiasing_at_input_scale_factors_1_and_2(shape, size):
    image = _noise(*shape)
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None].float()
    expected = F.interpolate(pixels, size=(size, size), mode="bilinear", align_corners=False, antialias=False)[0]
    torch.testing.assert_close(resize(image, size), expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", [64, 333, 384, 512])
def test_resize_is_exact_for_every_size(shape, size):
    image = _noise(*shape)
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None].double()
    expected = F.interpolate(pixels, size=(size, size), mode="bilinear", align_corners=False, antialias=False)[0]
    torch.testing.assert_close(resize(image, size).double(), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", [64, 333, 384, 512])
def test_resize_equals_opencv(shape, size):
    cv2 = pytest.importorskip("cv2")
    image = _noise(*shape)
    expected = cv2.resize(image.astype(np.float32), (size, size), interpolation=cv2.INTER_LINEAR)
    np.testing.assert_allclose(resize(image, size).permute(1, 2, 0), expected, rtol=0, atol=1e-3)


def test_resize_uses_half_pixel_centres():
    image = np.zeros((1, 2, 3), dtype=np.uint8)
    image[0, 1] = 100
    assert resize(image, 4)[0, 0].tolist() == [0, 25, 75, 100]


def test_detector_images_are_bgr_minus_means_in_the_range_0_to_255():
    image = _noise(64, 64)
    output = SquareTransform(64, bgr_minus_mean)(image)
    np.testing.assert_allclose(output.permute(1, 2, 0), image[:, :, ::-1] - BGR_MEANS, rtol=0, atol=1e-4)
    assert output.dtype == torch.float32 and output.is_contiguous()


def test_other_images_are_rgb_with_imagenet_mean_and_deviation():
    image = _noise(64, 64)
    output = SquareTransform(64, imagenet_normalize)(image)
    np.testing.assert_allclose(output.permute(1, 2, 0), (image / 255 - RGB_MEANS) / RGB_STDS, rtol=0, atol=1e-5)
    assert output.dtype == torch.float32 and output.is_contiguous()


@pytest.mark.parametrize("normalize", NORMALIZATIONS)
def test_training_image_is_the_crop_resized_then_flipped(normalize):
    image, transform = _noise(100, 200), SquareTransform(64, normalize)
    rng = Scripted(ratio=0.75, top=25, left=10, flip=0.49)
    crop = np.ascontiguousarray(image[25:100, 10:160])
    torch.testing.assert_close(transform(image, rng), transform(crop).flip(-1))
    assert rng.bounds == [(0.6, 1.0), 25, 50]


def test_training_image_is_not_flipped_in_the_other_half_of_the_draws():
    image, transform = _noise(100, 200), SquareTransform(64, imagenet_normalize)
    rng = Scripted(ratio=1.0, top=0, left=0, flip=0.5)
    torch.testing.assert_close(transform(image, rng), transform(image))
    assert rng.bounds == [(0.6, 1.0), 0, 0]


def test_height_and_width_are_cropped_by_the_same_ratio_between_06_and_1():
    image = np.stack(np.broadcast_arrays(*np.ogrid[:1000, :2000], 0), axis=2)  # each pixel holds its row and column
    rng = np.random.default_rng(0)
    seen = [random_crop(image, rng) for _ in range(300)]
    heights, widths = np.array([crop.shape[:2] for crop in seen]).T
    assert np.abs(widths - 2 * heights).max() <= 1
    assert 600 <= heights.min() < 620 and 980 < heights.max() <= 1000
    tops, lefts = np.array([crop[0, 0, :2] for crop in seen]).T
    assert tops.min() == 0 and lefts.min() < 20  # positions spread over all that fits
    relative = tops[heights < 990] / (1000 - heights[heights < 990])
    assert abs(relative.mean() - 0.5) < 0.05 and relative.max() > 0.95


def test_about_half_of_the_training_images_are_flipped():
    image, transform = np.zeros((10, 10, 3), dtype=np.uint8), SquareTransform(8, imagenet_normalize)
    image[:, 5:] = 255
    rng = np.random.default_rng(0)
    flipped = [bool((transform(image, rng)[0, 0].diff() < 0).any()) for _ in range(400)]
    assert 0.4 < np.mean(flipped) < 0.6


def test_the_same_seed_gives_the_same_training_image_and_evaluation_draws_nothing():
    image, transform = _noise(50, 60), SquareTransform(64, imagenet_normalize)
    first, again, other = (transform(image, np.random.default_rng(seed)) for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(transform(image), transform(image))


@pytest.mark.parametrize("normalize", NORMALIZATIONS)
def test_transforms_leave_the_image_as_it_is(normalize):
    image, transform = _noise(64, 64), SquareTransform(64, normalize)
    before = image.copy()
    transform(image)
    transform(image, np.random.default_rng(0))
    assert np.array_equal(image, before)


@pytest.mark.parametrize("shape", [(1, 1), (1, 50), (3, 2)])
def test_images_of_a_few_pixels_can_be_cropped(shape):
    transform = SquareTransform(64, bgr_minus_mean)
    assert transform(_noise(*shape), np.random.default_rng(0)).shape == (3, 64, 64)


@pytest.mark.parametrize(
    ("factor", "size"),
    [(1, 256), (2.0, 512), (0.25, 64), (1.75, 448), (2.2, 563), (0.9, 230), (1.1, 281), (0.998, 255)],
)
def test_input_size_is_256_times_the_factor_rounded_down(factor, size):
    assert input_size(factor) == size


# ---- CLIP ----


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
    assert torch.allclose(pixels[:, 0, 0], (0.2 - torch.tensor(CLIP_MEANS)) / torch.tensor(CLIP_STDS))


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
