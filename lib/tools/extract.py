"""Grid features of images as a features file, so that a slow backbone runs once: `python -m lib.tools.extract`.

Letters: N images, B images of a batch, R grid cells, H and W side lengths in pixels or cells.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate
from tqdm import tqdm

from lib.command_line import Parser, script
from lib.datasets.captions import read_captions
from lib.datasets.images import ImageFolder, find_images
from lib.datasets.layout import find_split, image_folder, read_id_mapping
from lib.datasets.loaders import Loader
from lib.datasets.splits import image_rows
from lib.datasets.transforms import eval_transform, input_size
from lib.errors import InputError
from lib.files import atomic_write, read_ids, read_json
from lib.tools.feature_rows import FeatureRows

DTYPES = ("float16", "float32")


def extract(
    backbone: Callable[[Tensor], Tensor],
    images: ImageFolder,
    out: str | Path,
    split: str,
    source: str,
    size: int,
    dtype: str = "float16",
    pool: int | None = None,
    batch_size: int = 32,
    workers: int = 0,
    device: str | torch.device = "cpu",
    settings: dict | None = None,
) -> Path:
    """Write `{split}_ims.npy` (N, R, channels), one row per image of `images`, cells row by row; return its path.

    `backbone` maps images (B, 3, size, size), transformed for `source`, to feature maps (B, channels, H, W); `pool`
    averages them down to pool × pool cells. A run that ended early goes on where it stood. `settings` holds whatever
    else the features depend on. Raises InputError when the file is there with other settings, or for a missing or
    broken image; rows already written are kept.
    """
    names = "".join(f"{image_id}\t{images.names.get(image_id)}\n" for image_id in images.ids)
    settings = {
        "backbone_source": source,
        "input_size": size,
        "pool": pool,
        "dtype": dtype,
        "images": len(images),
        "names": hashlib.sha256(names.encode()).hexdigest(),
        **(settings or {}),
    }
    rows = FeatureRows(Path(out) / f"{split}_ims.npy", settings)
    if rows.complete:
        return rows.path
    images.check()
    remaining = _Transformed(images, range(rows.done, len(images)), size, source)
    pinned = torch.device(device).type == "cuda"
    loader = Loader(remaining, default_collate, workers, batch_size=batch_size, pin_memory=pinned)
    with rows, tqdm(total=len(images), initial=rows.done, desc=f"extract {split}", unit="images", disable=None) as bar:
        for batch in loader:
            with torch.inference_mode():
                cells = _cells(backbone(batch.to(device, non_blocking=True)), pool).to(getattr(torch, dtype))
            if not cells.isfinite().all():
                ids = images.ids[rows.done : rows.done + len(batch)]
                raise InputError(f"image ids {ids[0]} … {ids[-1]}: features beyond {dtype} or NaN; try --dtype float32")
            rows.append(cells.cpu().numpy())
            bar.update(len(batch))
    return rows.path


def _cells(features: Tensor, pool: int | None) -> Tensor:
    """Feature maps (B, channels, H, W) → (B, R, channels), cells row by row as the grid encoder has them."""
    if pool is not None:
        if pool > min(features.shape[2:]):
            raise InputError(f"--pool {pool}: the feature map has only {features.shape[2]} × {features.shape[3]} cells")
        features = torch.nn.functional.adaptive_avg_pool2d(features, pool)  # (B, channels, pool, pool)
    return features.flatten(2).transpose(1, 2)  # (B, R, channels)


class _Transformed(Dataset):
    """The images of some rows as the backbone takes them, (3, size, size) each."""

    def __init__(self, images: ImageFolder, rows: range, size: int, source: str):
        self.images, self.rows, self.size, self.source = images, rows, size, source

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Tensor:
        return eval_transform(self.images.read(self.rows[index]), self.size, self.source)


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
    from lib.encoders.backbones import PRECISIONS, SOURCES, build_backbone  # here: data sets don't depend on encoders

    args = _parse(argv, SOURCES, PRECISIONS)
    images, texts = _data_set(args) if args.data_path else _loose_images(args)
    out = Path(args.out)
    for kind in ("mask", "boxes"):
        if (out / f"{args.split}_{kind}.npy").exists():
            raise InputError(f"{out}: holds {args.split}_{kind}.npy of other features; name another --out or --split")
    texts = {out / name: text for name, text in texts.items()}
    for path, text in texts.items():
        if path.exists() and path.read_bytes() != text:
            raise InputError(f"{path}: already there with other content; name another --out or --split")
    images.check()
    torch.manual_seed(0)  # the random weights of the tiny backbone are the same in every run
    device = _device(args.device)
    backbone = build_backbone(args.backbone_source, args.backbone_path, precision=args.precision)
    precision = args.precision if device.type == "cuda" else "float32"
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision != "float32"
    settings = {"weights": weights_digest(backbone), "precision": precision}
    for path, text in texts.items():
        if not path.exists():
            with atomic_write(path) as temporary:
                temporary.write_bytes(text)
    path = extract(
        backbone.to(device).eval(),
        images,
        out,
        args.split,
        source=args.backbone_source,
        size=input_size(args.input_scale_factor),
        dtype=args.dtype,
        pool=args.pool,
        batch_size=args.batch_size,
        workers=args.workers,
        device=device,
        settings=settings,
    )
    shape = np.load(path, mmap_mode="r", allow_pickle=False).shape
    print(f"{path}: {shape[0]} images, {shape[1]} cells each, {shape[2]} channels, {args.dtype}")
    return path


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


def _parse(argv: list[str] | None, sources: tuple[str, ...], precisions: tuple[str, ...]) -> argparse.Namespace:
    parser = Parser(
        prog="python -m lib.tools.extract",
        description="Write grid features in the layout of region features, so that a backbone runs once per image. "
        "The images are those of a data set's split (--data_path --data_name --split; captions and ids are copied "
        "beside the features), those that --ids and --id_mapping name under --images, or all under --images. A run "
        "that was stopped goes on when started again with the same options.",
    )
    add = parser.add_argument
    add("--out", required=True, help="folder for {split}_ims.npy and its texts; usually <new data_path>/precomp")
    add("--backbone_source", choices=sources, required=True, help="'tiny' has random weights, for tests alone")
    add("--backbone_path", help="local weight file; the detector needs one, the others download theirs")
    add("--data_path", help="data set folder, e.g. data/f30k")
    add("--data_name", metavar="NAME", help="which data set that is: coco, f30k, or the name of your own")
    add("--split", help="split of the data set, or a name for the images of --images (there by default: all)")
    add("--images", help="folder of the images; by default that of the data set")
    add("--ids", help="file with one integer image id a line; needs --id_mapping")
    add("--id_mapping", help='JSON file {"<image id>": "path under --images"}')
    add("--input_scale_factor", type=float, default=2.0, help="side of the images over 256; default %(default)s")
    add("--pool", type=int, help="average the feature map down to this many cells a side")
    add("--dtype", choices=DTYPES, default="float16", help="of the features file; default %(default)s")
    add("--precision", choices=precisions, default="float32", help="of the computation on a GPU; default %(default)s")
    add("--batch_size", type=int, default=32, help="images a batch; default %(default)s")
    add("--workers", type=int, default=4, help="processes that decode images; default %(default)s")
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
    if not re.fullmatch(r"\w[\w.-]*", args.split):
        raise InputError(f"--split {args.split!r}: expected a plain name of letters, digits, '_', '-' and '.'")
    for name, least in (("batch_size", 1), ("workers", 0), ("pool", 1)):
        if getattr(args, name) is not None and getattr(args, name) < least:
            raise InputError(f"--{name} {getattr(args, name)}: expected at least {least}")
    if not 0 < input_size(args.input_scale_factor):
        raise InputError(f"--input_scale_factor {args.input_scale_factor}: expected a positive number")
    return args


def _device(name: str | None) -> torch.device:
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"--device {name}: not available ({str(error).splitlines()[0]})") from None
    return device


if __name__ == "__main__":
    main()
