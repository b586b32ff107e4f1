"""Grid features of images, row by row into a features file: what `python -m lib.tools.extract` does.

Letters: N images, B images of a batch, R grid cells, H and W side lengths in pixels or cells.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import default_collate
from tqdm import tqdm

from lib.core.errors import InputError
from lib.core.precision import encoding, set_precision
from lib.datasets.images import ImageFolder, RawImages
from lib.datasets.loaders import InOrder, Loader
from lib.distributed.launch import is_main, joined, own_devices, rank, world_size
from lib.distributed.messages import gather_objects, gather_to_main
from lib.encoders.backbones import build_backbone
from lib.encoders.grid import grid_transform
from lib.encoders.transforms import input_size
from lib.files.feature_rows import FeatureRows
from lib.files.writing import atomic_write, check_writable


@dataclasses.dataclass(frozen=True)
class Plan:
    """What features are like, and the means to compute them; `depends` are further settings that they depend on."""

    backbone_source: str
    input_scale_factor: float = 2.0
    pool: int | None = None  # cells a side, averaged; None: all
    dtype: str = "float16"
    depends: dict = dataclasses.field(default_factory=dict)
    batch_size: int = 32
    workers: int = 0
    device: torch.device = torch.device("cpu")
    precision: str = "float32"

    def settings(self, images: ImageFolder) -> dict:
        """All that the features of these images depend on."""
        names = "".join(f"{image_id}\t{images.names.get(image_id)}\n" for image_id in images.ids)
        return {
            "backbone_source": self.backbone_source,
            "input_size": input_size(self.input_scale_factor),
            "pool": self.pool,
            "dtype": self.dtype,
            "images": len(images),
            "names": hashlib.sha256(names.encode()).hexdigest(),
            **self.depends,
        }


def extract(backbone: Callable[[Tensor], Tensor], images: ImageFolder, out: str | Path, split: str, plan: Plan) -> Path:
    """Write `{split}_ims.npy` (N, R, channels), one row per image of `images`, cells row by row; return its path.

    `backbone` maps transformed images (B, 3, S, S) to feature maps (B, channels, H, W). A run that ended early goes on
    where it stood. Several processes share the batches; the first of them writes. Raises InputError when the file is
    there with other settings, or for a missing or broken image; rows already written are kept.
    """
    rows = FeatureRows(Path(out), split, images.ids, plan.settings(images), "name another --out or --split")
    if is_main():
        rows.resume()
    finished, done = gather_objects((rows.finished, len(images) - len(rows.missing())))[0]
    if finished:
        return rows.path
    images.check()
    raw = RawImages(images, grid_transform(dataclasses.asdict(plan)))
    places = range(done, len(images))
    batches = [places[start : start + plan.batch_size] for start in range(0, len(places), plan.batch_size)]
    settings = {"batch_sampler": batches[rank() :: world_size()], "pin_memory": plan.device.type == "cuda"}
    loader = Loader(InOrder(raw), default_collate, plan.workers, **settings)
    hidden = None if is_main() else True
    bar = tqdm(total=len(images), initial=done, desc=f"extract {split}", unit="images", disable=hidden)
    with rows, bar:
        own = iter(loader)
        for start in range(0, len(batches), world_size()):
            together = batches[start : start + world_size()]  # a batch for each process, or at the end for some
            cells = None
            if rank() < len(together):
                cells = _cells(backbone, next(own), plan)  # (B, R, channels)
                ids = images.ids[together[rank()].start : together[rank()].stop]
                if not np.isfinite(cells).all():
                    found = f"features beyond {plan.dtype} or NaN"
                    raise InputError(f"image ids {ids[0]} … {ids[-1]}: {found}; try --dtype float32")
            for places, found in zip(together, gather_to_main(cells, list(map(len, together))), strict=is_main()):
                if not rows.kinds:
                    rows.create(ims=(plan.dtype, found.shape[1:]))
                for place, features in zip(places, found, strict=True):
                    rows.write(images.ids[place], ims=features)
                bar.update(len(found))
    return rows.path


@torch.inference_mode()
def _cells(backbone: Callable[[Tensor], Tensor], images: Tensor, plan: Plan) -> np.ndarray:
    """Features (B, R, channels) of images (B, 3, S, S), cells row by row as the grid encoder has them."""
    with encoding(plan.precision, plan.device):
        features = backbone(images.to(plan.device, non_blocking=True)).float()  # (B, channels, H, W)
    if plan.pool is not None:
        height, width = features.shape[2:]
        if plan.pool > min(height, width):
            raise InputError(f"--pool {plan.pool}: the feature map has only {height} × {width} cells")
        features = torch.nn.functional.adaptive_avg_pool2d(features, plan.pool)  # (B, channels, pool, pool)
    return features.flatten(2).transpose(1, 2).to(getattr(torch, plan.dtype)).cpu().numpy()  # (B, R, channels)


def weights_digest(backbone: torch.nn.Module) -> str:
    """SHA-256 of a module's parameters and buffers, wherever they came from."""
    digest = hashlib.sha256()
    for key, value in sorted(backbone.state_dict().items()):
        digest.update(key.encode())
        digest.update(value.detach().cpu().contiguous().numpy().data)
    return digest.hexdigest()


def extract_images(args: argparse.Namespace, images: ImageFolder, texts: dict[Path, bytes]) -> Path:
    """Extract as the flags say, write the texts that belong beside the features; return the path of the features."""
    with joined(args.device):
        return _extract_images(args, images, texts)


def _extract_images(args: argparse.Namespace, images: ImageFolder, texts: dict[Path, bytes]) -> Path:
    torch.manual_seed(0)  # the random weights of the tiny backbone are the same in every run
    device = own_devices(args.device)[0]
    precision = args.precision if device.type == "cuda" else "float32"
    set_precision(precision)
    backbone = build_backbone(args.backbone_source, args.backbone_path)
    depends = {"weights": weights_digest(backbone), "precision": precision}
    check_writable(args.out, "--out")
    for path, text in texts.items():
        if is_main() and not path.exists():
            with atomic_write(path) as temporary:
                temporary.write_bytes(text)
    chosen = {name: getattr(args, name) for name in ("input_scale_factor", "pool", "dtype", "batch_size", "workers")}
    plan = Plan(args.backbone_source, **chosen, depends=depends, device=device, precision=precision)
    path = extract(backbone.to(device).eval(), images, args.out, args.split, plan)
    if not is_main():
        return path
    shape = np.load(path, mmap_mode="r", allow_pickle=False).shape
    print(f"{path}: {shape[0]} images, {shape[1]} cells each, {shape[2]} channels, {args.dtype}")
    return path
