"""lib.encoders.transforms: the resize against PyTorch and OpenCV, crops, flips and normalisation against plain
arithmetic."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lib.encoders.transforms import SquareTransform, bgr_minus_mean, imagenet_normalize, input_size, random_crop, resize

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
