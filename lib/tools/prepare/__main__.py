"""`python -m lib.tools.prepare captions | regions | cxc | own | check`: from public sources, or one's own images and
captions, to the layout that is read."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from lib.command_line import Parser, not_negative, script
from lib.datasets import DATA_SETS
from lib.tools.prepare.check import check_data
from lib.tools.prepare.cxc import prepare_cxc
from lib.tools.prepare.karpathy import prepare_captions
from lib.tools.prepare.keys import KEY_KINDS
from lib.tools.prepare.own import prepare_own
from lib.tools.prepare.regions import prepare_regions
from lib.tools.prepare.rows import Settings
from lib.tools.prepare.sources import FORMATS


def build_parser() -> argparse.ArgumentParser:
    """The five commands and their options."""
    parser = Parser(prog="python -m lib.tools.prepare", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    captions = commands.add_parser(
        "captions", help="captions, ids, image paths from dataset_coco.json / _flickr30k.json"
    )
    captions.add_argument("source", type=Path, help="Karpathy's dataset_coco.json or dataset_flickr30k.json")
    captions.add_argument("data_path", type=Path, help="folder of the data set, made when it is missing")
    captions.add_argument("--data_name", choices=DATA_SETS, required=True)
    captions.add_argument("--overwrite", action="store_true", help="replace files that hold something else")
    _add_regions(commands)
    cxc = commands.add_parser("cxc", help="cxc_annots/ from the official CSV files of Crisscrossed Captions")
    cxc.add_argument("--csv", type=Path, required=True, help="folder of sts_test.csv, sis_test.csv, sits_test.csv")
    cxc.add_argument("--data_path", type=Path, required=True, help="the COCO folder, after `captions`")
    cxc.add_argument("--overwrite", action="store_true", help="replace files that hold something else")
    _add_own(commands)
    check = commands.add_parser("check", help="what is there, whether it fits together, what is missing")
    check.add_argument("data_path", type=Path)
    check.add_argument("--data_name", choices=DATA_SETS, required=True)
    return parser


def _add_regions(commands) -> None:
    regions = commands.add_parser("regions", help="region features from TSV files or .npz files")
    regions.add_argument(
        "sources", type=Path, nargs="+", metavar="SOURCE", help="a .tsv or .npz file, or a folder of them"
    )
    regions.add_argument("--data_path", type=Path, required=True, help="the data set's folder, after `captions`")
    regions.add_argument("--data_name", choices=DATA_SETS, required=True)
    regions.add_argument("--split", nargs="+", help="splits to write in one pass (default: all that have ids)")
    regions.add_argument("--format", choices=FORMATS, help="default: told by suffix and number of columns")
    regions.add_argument("--dtype", choices=("float16", "float32"), default="float32", help="of the features")
    regions.add_argument(
        "--boxes", type=_positive, default=36, help="boxes kept per image, the first ones (default 36)"
    )
    regions.add_argument("--img_dim", type=_positive, default=2048, help="size of a feature (default 2048)")
    regions.add_argument(
        "--fewer", choices=("pad", "error"), default="pad", help="images with fewer boxes: mask or stop"
    )
    regions.add_argument(
        "--keys", choices=KEY_KINDS, default="auto", help="a source's keys are ids or image file names"
    )
    regions.add_argument("--overwrite", action="store_true", help="write finished files again")
    regions.add_argument("--restart", action="store_true", help="throw away what an interrupted run has written")


def _add_own(commands) -> None:
    own = commands.add_parser("own", help="your own images: a folder, and a file of lines image<TAB>caption")
    own.add_argument("--images", type=Path, required=True, help="folder of the image files")
    own.add_argument("--captions", type=Path, required=True, help="lines `path under --images`, a tab, `caption`")
    own.add_argument("--data_path", type=Path, required=True, help="folder of the data set, made when it is missing")
    own.add_argument("--data_name", choices=("f30k",), default="f30k", help="read as f30k: dev to choose, test to test")
    own.add_argument("--dev", type=_positive, help="images that choose the epoch (default: a tenth, at most 1000)")
    own.add_argument("--test", type=_positive, help="images to evaluate on (default: a tenth, at most 1000)")
    own.add_argument("--seed", type=not_negative(int), default=0, help="of the draw of dev and test (default 0)")
    own.add_argument("--overwrite", action="store_true", help="replace files that hold something else")


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number above 0")
    return int(text)


@script
def main(argv: list[str] | None = None) -> int:
    """Run one command; returns its exit code (`check`: 1 when training or evaluation could not run)."""
    args = build_parser().parse_args(argv)
    if args.command == "captions":
        prepare_captions(args.source, args.data_path, args.data_name, args.overwrite)
    elif args.command == "regions":
        prepare_regions(
            args.sources,
            args.data_path,
            args.data_name,
            args.split,
            file_format=args.format,
            settings=Settings(args.boxes, args.img_dim, args.dtype),
            fewer=args.fewer,
            keys=args.keys,
            overwrite=args.overwrite,
            restart=args.restart,
        )
    elif args.command == "cxc":
        prepare_cxc(args.csv, args.data_path, args.overwrite)
    elif args.command == "own":
        prepare_own(
            args.images, args.captions, args.data_path, args.data_name, args.dev, args.test, args.seed, args.overwrite
        )
    else:
        return check_data(args.data_path, args.data_name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
