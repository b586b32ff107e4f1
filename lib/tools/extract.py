"""Grid features of images as a features file, so that a slow backbone runs once: `python -m lib.tools.extract`.

Letters: N images, B images of a batch, R grid cells, H and W side lengths in pixels or cells.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import default_collate
from tqdm import tqdm

from lib.command_line import Parser, not_negative, positive, script
from lib.datasets import PLAIN_NAME
from lib.datasets.captions import read_captions
from lib.datasets.images import ImageFolder, RawImages, find_images
from lib.datasets.layout import find_split, image_folder, read_id_mapping
from lib.datasets.loaders import InOrder, Loader
from lib.datasets.splits import image_rows
from lib.distributed import collected, first, gather_objects, joined, own_devices, rank, size
from lib.encoders.backbones import SOURCES, build_backbone
from lib.encoders.grid import check_grid, grid_transform
from lib.encoders.transforms import input_size
from lib.errors import InputError
from lib.files import atomic_write, read_ids, read_json
from lib.precision import PRECISIONS, encoding, set_precision
from lib.tools.feature_rows import FeatureRows

DTYPES = ("float16", "float32")


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
    if first():
        rows.resume()
    finished, done = gather_objects((rows.finished, len(images) - len(rows.missing())))[0]
    if finished:
        return rows.path
    images.check()
    raw = RawImages(images, grid_transform(dataclasses.asdict(plan)))
    places = range(done, len(images))
    batches = [places[start : start + plan.batch_size] for start in range(0, len(places), plan.batch_size)]
    settings = {"batch_sampler": batches[rank() :: size()], "pin_memory": plan.device.type == "cuda"}
    loader = Loader(InOrder(raw), default_collate, plan.workers, **settings)
    hidden = None if first() else True
    bar = tqdm(total=len(images), initial=done, desc=f"extract {split}", unit="images", disable=hidden)
    with rows, bar:
        own = iter(loader)
        for start in range(0, len(batches), size()):
            together = batches[start : start + size()]  # a batch for each process, or at the end for some
            cells = None
            if rank() < len(together):
                cells = _cells(backbone, next(own), plan)  # (B, R, channels)
                ids = images.ids[together[rank()].start : together[rank()].stop]
                if not np.isfinite(cells).all():
                    found = f"features beyond {plan.dtype} or NaN"
                    raise InputError(f"image ids {ids[0]} … {ids[-1]}: {found}; try --dtype float32")
            for places, found in zip(together, collected(cells, list(map(len, together))), strict=first()):
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


# --- Command line -----------------------------------------------------------------------------------------------------


@script
def main(argv: list[str] | None = None) -> Path:
    """Parse, find the images, build the backbone, extract; return the path of the features file."""
    args = _parse(argv)
    with joined(args.device):
        return _extract_split(args)


def _extract_split(args: argparse.Namespace) -> Path:
    images, texts = _data_set(args) if args.data_path else _loose_images(args)
    texts = {Path(args.out, name): text for name, text in texts.items()}
    _check_out(args, texts)
    images.check()
    torch.manual_seed(0)  # the random weights of the tiny backbone are the same in every run
    device = own_devices(args.device)[0]
    precision = args.precision if device.type == "cuda" else "float32"
    set_precision(precision)
    backbone = build_backbone(args.backbone_source, args.backbone_path)
    depends = {"weights": weights_digest(backbone), "precision": precision}
    for path, text in texts.items():
        if first() and not path.exists():
            with atomic_write(path) as temporary:
                temporary.write_bytes(text)
    chosen = {name: getattr(args, name) for name in ("input_scale_factor", "pool", "dtype", "batch_size", "workers")}
    plan = Plan(args.backbone_source, **chosen, depends=depends, device=device, precision=precision)
    path = extract(backbone.to(device).eval(), images, args.out, args.split, plan)
    if not first():
        return path
    shape = np.load(path, mmap_mode="r", allow_pickle=False).shape
    print(f"{path}: {shape[0]} images, {shape[1]} cells each, {shape[2]} channels, {args.dtype}")
    return path


def _check_out(args: argparse.Namespace, texts: dict[Path, bytes]) -> None:
    """InputError where --out holds files of other features or other texts."""
    for kind in ("mask", "boxes"):
        if Path(args.out, f"{args.split}_{kind}.npy").exists():
            raise InputError(
                f"{args.out}: holds {args.split}_{kind}.npy of other features; name another --out or --split"
            )
    for path, text in texts.items():
        if path.exists() and path.read_bytes() != text:
            raise InputError(f"{path}: already there with other content; name another --out or --split")


def _data_set(args: argparse.Namespace) -> tuple[ImageFolder, dict[str, bytes]]:
    """The images of a data set's split, and its captions and ids files, which belong beside the features."""
    files = find_split(args.data_path, args.data_name, args.split, need_features=False)
    ids = None if files.ids is None else read_ids(files.ids)
    where = str(files.captions.with_name(f"{args.split}_*"))
    image_ids = image_rows(None, len(read_captions(files.captions)), ids, where=where).image_ids
    folder = args.images or image_folder(args.data_path, args.data_name)
    images = ImageFolder(folder, read_id_mapping(args.data_path), image_ids)
    return images, {path.name: path.read_bytes() for path in (files.captions, files.ids)}


def _loose_images(args: argparse.Namespace) -> tuple[ImageFolder, dict[str, bytes]]:
    """The images that --ids and --id_mapping name, or else all under --images, numbered in the order of their names."""
    texts = {}
    if args.id_mapping:
        names = read_json(args.id_mapping)
        if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
            raise InputError(f'{args.id_mapping}: expected one JSON object {{"<image id>": "path under --images", …}}')
    else:
        names = dict(enumerate(find_images(args.images)))
        texts[f"{args.split}_id_mapping.json"] = f"{json.dumps(names, indent=1)}\n".encode()
    ids = dict.fromkeys(read_ids(args.ids).tolist()) if args.ids else None
    images = ImageFolder(args.images, names, ids)
    texts[f"{args.split}_ids.txt"] = "".join(f"{image_id}\n" for image_id in images.ids).encode()
    return images, texts


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(
        prog="python -m lib.tools.extract",
        description="Write grid features in the layout of region features, so that a backbone runs once per image. "
        "The images are those of a data set's split (--data_path --data_name --split; captions and ids are copied "
        "beside the features), those that --ids and --id_mapping name under --images, or all under --images. A run "
        "that was stopped goes on when started again with the same options.",
    )
    add = parser.add_argument
    add("--out", required=True, help="folder for {split}_ims.npy and its texts; usually <new data_path>/precomp")
    add("--backbone_source", choices=SOURCES, required=True, help="'tiny' has random weights, for tests alone")
    add("--backbone_path", help="local weight file; the detector needs one, the others download theirs")
    add("--data_path", help="data set folder, e.g. data/f30k")
    add("--data_name", metavar="NAME", help="which data set that is: coco, f30k, or the name of your own")
    add("--split", help="split of the data set, or a name for the images of --images (there by default: all)")
    add("--images", help="folder of the images; by default that of the data set")
    add("--ids", help="file with one integer image id a line; needs --id_mapping")
    add("--id_mapping", help='JSON file {"<image id>": "path under --images"}')
    add("--input_scale_factor", type=float, default=2.0, help="side of the images over 256; default %(default)s")
    add("--pool", type=positive(int), help="average the feature map down to this many cells a side")
    add("--dtype", choices=DTYPES, default="float16", help="of the features file; default %(default)s")
    add("--precision", choices=PRECISIONS, default="float32", help="of the computation on a GPU; default %(default)s")
    add("--batch_size", type=positive(int), default=32, help="images a batch; default %(default)s")
    add("--workers", type=not_negative(int), default=4, help="processes that decode images; default %(default)s")
    add("--device", help="cpu, cuda, cuda:1, …; by default the GPU where there is one")
    args = parser.parse_args(argv)
    if bool(args.data_path) != bool(args.data_name):
        raise InputError("--data_path and --data_name belong together; give both or neither")
    if args.data_path and (not args.split or args.ids or args.id_mapping):
        raise InputError("with --data_path, --split names the images; --ids and --id_mapping come from the data set")
    if not args.data_path and not args.images:
        raise InputError("no images: give --images, or --data_path, --data_name and --split")
    if args.ids and not args.id_mapping:
        raise InputError("--ids needs --id_mapping, which says where each image lies")
    args.split = args.split or "all"
    if not PLAIN_NAME.fullmatch(args.split):
        raise InputError(f"--split {args.split!r}: expected a plain name of letters, digits, '_', '-' and '.'")
    check_grid(0, vars(args))
    return args


if __name__ == "__main__":
    main()
