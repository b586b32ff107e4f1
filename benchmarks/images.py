"""How many raw images a second one worker decodes and transforms: `python -m benchmarks.images [--images DIR]`.

Without a folder it draws photo-like JPEGs of the size that COCO and Flickr30K have. It also reports what Pillow's draft
mode (decoding at a half, a quarter, … of the resolution) would save and change: in the resized pixels, in grey levels.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import PIL
import torch
import torchvision
from PIL import Image, features
from torch.utils.data import DataLoader, Dataset

from lib.console.script import script
from lib.core.errors import InputError
from lib.datasets.images import ImageFolder, find_images
from lib.encoders.grid import grid_transform
from lib.encoders.transforms import SquareTransform, input_size, resize
from lib.files.images import read_image

SIZES = ((640, 480), (640, 427), (480, 640), (500, 375), (500, 333), (375, 500))  # of COCO and Flickr30K


def draw_photos(folder: Path, number: int) -> None:
    """Write `number` JPEGs with the spectrum of photos: noise at several scales, large scales strongest."""
    rng = np.random.default_rng(0)
    for index in range(number):
        width, height = SIZES[index % len(SIZES)]
        pixels = np.zeros((height, width, 3), np.float32)
        for scale, weight in ((80, 0.5), (20, 0.25), (5, 0.15), (1, 0.1)):
            noise = rng.integers(0, 256, (height // scale, width // scale, 3), dtype=np.uint8)
            pixels += weight * np.asarray(Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC))
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{index:04}.jpg", quality=92)


def milliseconds(function, paths: list[Path], repeats: int) -> float:
    """Median time of one call, over all paths and repeats, after one pass to warm up."""
    times = []
    for repeat in range(repeats + 1):
        for path in paths:
            start = time.perf_counter()
            function(path)
            if repeat:
                times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times)


class Training(Dataset):
    """The images as the training loader takes them, several times over."""

    def __init__(self, images: ImageFolder, transform: SquareTransform, repeats: int):
        self.images, self.transform, self.repeats = images, transform, repeats

    def __len__(self) -> int:
        return self.repeats * len(self.images)

    def __getitem__(self, index: int) -> torch.Tensor:
        image = self.images.read(index % len(self.images))
        return self.transform(image, np.random.default_rng(index))


def worker_rate(images: ImageFolder, transform: SquareTransform, repeats: int) -> float:
    """Images a second that one worker process hands over in batches of 32."""
    loader = DataLoader(Training(images, transform, repeats), batch_size=32, num_workers=1)
    batches = iter(loader)
    next(batches)
    start, number = time.perf_counter(), 0
    for batch in batches:
        number += len(batch)
    return number / (time.perf_counter() - start)


def read_draft(path: Path, size: int) -> np.ndarray:
    """Decode at the smallest resolution of at least `size` that the JPEG's frequencies give directly."""
    with Image.open(path) as image:
        image.draft("RGB", (size, size))
        return np.array(image.convert("RGB"))


@script
def main(argv: list[str] | None = None) -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.images", description=__doc__.split("\n")[0])
    parser.add_argument("--images", help="folder of real images; drawn ones otherwise")
    parser.add_argument("--number", type=int, default=36, help="images used; default %(default)s")
    parser.add_argument("--repeats", type=int, default=5, help="passes over them; default %(default)s")
    parser.add_argument("--input_scale_factor", type=float, default=2.0, help="default %(default)s")
    parser.add_argument("--backbone_source", default="detector", help="whose normalisation; default %(default)s")
    args = parser.parse_args(argv)
    if args.number * args.repeats <= 32:
        raise InputError("--number times --repeats must be more than one batch of 32")
    torch.set_num_threads(1)  # as in a loader worker
    size, source = input_size(args.input_scale_factor), args.backbone_source
    transform = grid_transform({"backbone_source": source, "input_scale_factor": args.input_scale_factor})
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(args.images or temporary)
        if not args.images:
            draw_photos(folder, args.number)
        names = find_images(folder)[: args.number]
        images = ImageFolder(folder, dict(enumerate(names)))
        paths = [images.path(row) for row in range(len(images))]
        decoded = {path: read_image(path) for path in paths}
        rng = np.random.default_rng(0)
        print(
            f"{platform.processor() or platform.machine()}, Pillow {PIL.__version__} "
            f"(libjpeg-turbo {features.version('libjpeg_turbo')}), PyTorch {torch.__version__}, "
            f"torchvision {torchvision.__version__}; {len(paths)} images, {size} × {size}, {source}"
        )
        rows = {
            "decode": milliseconds(read_image, paths, args.repeats),
            "resize alone": milliseconds(lambda path: resize(decoded[path], size), paths, args.repeats),
            "resize, normalise": milliseconds(lambda p: transform(decoded[p]), paths, args.repeats),
            "crop, resize, flip, normalise": milliseconds(
                lambda path: transform(decoded[path], rng), paths, args.repeats
            ),
        }
        rate = worker_rate(images, transform, args.repeats)
        for name, value in rows.items():
            print(f"{name:16} {value:6.2f} ms/image")
        print(f"one worker       {rate:6.0f} images/s (decode + train_transform)")
        report_draft(paths, decoded, size, args.repeats)


def report_draft(paths: list[Path], decoded: dict[Path, np.ndarray], size: int, repeats: int) -> None:
    """Print how often draft mode decodes at a lower resolution, what it saves and how far the resized pixels move."""
    for target in (size, size // 2):
        reduced = [path for path in paths if read_draft(path, target).shape != decoded[path].shape]
        line = (
            f"draft mode for {target} × {target}: {len(reduced)} of {len(paths)} images decoded at a lower resolution"
        )
        if reduced:
            moved = [(resize(decoded[p], target) - resize(read_draft(p, target), target)).abs() for p in reduced]
            plain = milliseconds(read_image, reduced, repeats)
            draft = milliseconds(lambda path, target=target: read_draft(path, target), reduced, repeats)
            line += (
                f"; {draft:.2f} instead of {plain:.2f} ms, pixels move by at most "
                f"{max(float(m.max()) for m in moved):.1f} grey levels, "
                f"{statistics.mean(float(m.mean()) for m in moved):.2f} on average"
            )
        print(line)


if __name__ == "__main__":
    main()
