"""Grid features of images as a features file, so that a slow backbone runs once: `python -m lib.tools.extract`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from lib.commands.flags import add_image_arguments, add_workers, image_limits
from lib.console.parser import Parser
from lib.console.script import script
from lib.core.config import PRECISIONS
from lib.core.errors import InputError
from lib.core.values import positive
from lib.datasets import PLAIN_NAME
from lib.datasets.captions import read_captions
from lib.datasets.images import ImageFolder, find_images
from lib.datasets.layout import find_split, image_folder, read_id_mapping
from lib.datasets.splits import image_rows
from lib.encoders import SCALE, SOURCES
from lib.files.reading import read_ids, read_json

DTYPES = ("float16", "float32")


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(
        prog="python -m lib.tools.extract",
        description="Write grid features in the layout of region features, so that a backbone runs once per image. "
        "The images are those of a data set's split (--data_path --data_name --split; captions and ids are copied "
        "beside the features), those that --ids and --id_mapping name under --images, or all under --images. A run "
        "that was stopped goes on when started again with the same options.",
    )
    add = parser.add_argument
    folder = "folder for {split}_ims.npy and its texts; usually <new data_path>/precomp"
    add("--out", metavar="DIR", required=True, help=folder)
    add("--backbone_source", choices=SOURCES, required=True, help="whose weights; tiny has random ones, to try things")
    add("--backbone_path", metavar="FILE", help="local weight file; the detector needs one, the others download theirs")
    add("--data_path", metavar="DIR", help="data set folder, e.g. data/f30k")
    add("--data_name", help="which data set that is: coco, f30k, or the name of your own")
    add("--split", help="split of the data set, or a name for the images of --images (default: all, for those)")
    add("--images", metavar="DIR", help="folder of the images (default: that of the data set)")
    add("--ids", metavar="FILE", help="file with one integer image id per line; needs --id_mapping")
    add("--id_mapping", metavar="FILE", help='JSON file {"<image id>": "path under --images"}')
    add("--input_scale_factor", type=SCALE, default=2.0, help="side of the images over 256")
    add("--pool", type=positive(int), help="average the feature map down to this many cells per side")
    add("--dtype", choices=DTYPES, default="float16", help="type of the features")
    add("--precision", choices=PRECISIONS, default="float32", help="of the products on a GPU")
    add("--batch_size", type=positive(int), default=32, help="images of a batch")
    add_workers(add)
    add("--device", help="cpu, cuda or cuda:N (default: the GPU where there is one)")
    add_image_arguments(parser)
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
    return args


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
    images = ImageFolder(folder, read_id_mapping(args.data_path), image_ids, image_limits(args))
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
    images = ImageFolder(args.images, names, ids, image_limits(args))
    texts[f"{args.split}_ids.txt"] = "".join(f"{image_id}\n" for image_id in images.ids).encode()
    return images, texts


@script
def main(argv: list[str] | None = None) -> Path:
    """Parse, find the images, build the backbone, extract; return the path of the features file."""
    args = parse(argv)
    images, texts = _data_set(args) if args.data_path else _loose_images(args)
    texts = {Path(args.out, name): text for name, text in texts.items()}
    _check_out(args, texts)
    images.check()
    from lib.tools.extract.extraction import extract_images

    return extract_images(args, images, texts)


if __name__ == "__main__":
    main()
