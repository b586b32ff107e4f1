"""`python -m lib.tools.prepare captions | regions | cxc | own | vocab | check`: from public sources, or one's own
images and captions, to the layout that is read."""

from __future__ import annotations

import argparse
import sys
from dataclasses import fields
from pathlib import Path

from lib.commands.flags import OUTSIDE_IMAGES, add_image_arguments
from lib.console.parser import Parser
from lib.console.script import script
from lib.core.values import not_negative, positive
from lib.datasets import DATA_NAME, DATA_SETS
from lib.files.images import ImageLimits
from lib.tools.prepare.check import check_data
from lib.tools.prepare.cxc import prepare_cxc
from lib.tools.prepare.ids import KEY_KINDS
from lib.tools.prepare.karpathy import TEXTS, prepare_captions
from lib.tools.prepare.outputs import Target
from lib.tools.prepare.own import prepare_own
from lib.tools.prepare.regions import Options, prepare_regions
from lib.tools.prepare.sources import FORMATS, find_files
from lib.tools.prepare.vocab import THRESHOLD, prepare_vocab


def build_parser() -> argparse.ArgumentParser:
    """The six commands and their options."""
    parser = Parser(prog="python -m lib.tools.prepare", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    replacing = Parser(add_help=False)
    replacing.add_argument("--overwrite", action="store_true", help="replace what is there already")

    text = "captions, ids, image paths from dataset_coco.json / _flickr30k.json"
    add = commands.add_parser("captions", help=text, parents=[replacing]).add_argument
    add("source", type=Path, help="Karpathy's dataset_coco.json or dataset_flickr30k.json")
    add("data_path", type=Path, help="folder of the data set, created if missing")
    add("--data_name", choices=DATA_SETS, required=True, help="data set of the source")
    raw = "raw: as CLIP-based ESL reads them, Flickr30K's without full stops at either end"
    add("--text", choices=TEXTS, default="sentence", help=raw)

    text = "region features from TSV files or .npz files"
    add = commands.add_parser("regions", help=text, parents=[replacing]).add_argument
    add("sources", type=Path, nargs="+", metavar="SOURCE", help="a .tsv or .npz file, or a folder of them")
    add("--data_path", type=Path, metavar="DIR", required=True, help="the data set's folder, with its {split}_ids.txt")
    add("--data_name", required=True, help=DATA_NAME)
    add("--split", nargs="+", help="splits to write in one pass (default: all that have ids)")
    add("--format", choices=FORMATS, help="form of the sources (default: by suffix and number of columns)")
    add("--dtype", choices=("float16", "float32"), default="float32", help="type of the features")
    add("--boxes", type=positive(int), default=36, help="boxes kept per image, the first ones")
    add("--img_dim", type=positive(int), default=2048, help="size of a feature")
    add("--fewer", choices=("pad", "error"), default="pad", help="images with fewer boxes: mask or stop")
    add("--keys", choices=KEY_KINDS, default="auto", help="a source's keys are ids or image file names")
    add("--restart", action="store_true", help="throw away what an interrupted run has written")

    text = "cxc_annots/ from the official CSV files of Crisscrossed Captions"
    add = commands.add_parser("cxc", help=text, parents=[replacing]).add_argument
    add("--csv", type=Path, metavar="DIR", required=True, help="folder of sts_test.csv, sis_test.csv, sits_test.csv")
    add("--data_path", type=Path, metavar="DIR", required=True, help="the COCO folder, after `captions`")

    text = "your own images: a folder, and a file of lines image<TAB>caption or a CSV"
    own = commands.add_parser("own", help=text, parents=[replacing])
    add_image_arguments(own, outside=False)
    add = own.add_argument
    add("--images", type=Path, metavar="DIR", required=True, help="folder of the image files")
    add(
        "--captions",
        type=Path,
        required=True,
        help="lines `path under --images`, a tab, `caption`; or a .csv with columns image and caption",
    )
    add("--data_path", type=Path, metavar="DIR", required=True, help="folder of the data set, created if missing")
    add("--data_name", help="name of your data, not a published one (default: that of --data_path)")
    add("--dev", type=positive(int), help="images on which the epoch is chosen (default: a tenth, at most 1000)")
    add("--test", type=positive(int), help="images to evaluate on (default: a tenth, at most 1000)")
    add("--seed", type=not_negative(int), default=0, help="of the draw of dev and test")

    text = "the vocabulary of BiGRU models, from the captions of train and dev"
    add = commands.add_parser("vocab", help=text, parents=[replacing]).add_argument
    add("data_path", type=Path, help="folder of the data set, with its captions")
    add("--data_name", required=True, help=DATA_NAME)
    rare = "how often a word must occur to be included"
    add("--threshold", type=positive(int), default=THRESHOLD, help=rare)
    beside = "where it is written (default: vocab/<data_name>_precomp_vocab.json beside DATA_PATH)"
    add("--vocab_path", type=Path, help=beside)

    add = commands.add_parser("check", help="what is there, whether it fits together, what is missing").add_argument
    add("data_path", type=Path, help="folder of the data set")
    add("--data_name", required=True, help=DATA_NAME)
    add("--allow_outside_images", action="store_true", help=OUTSIDE_IMAGES)
    return parser


@script
def main(argv: list[str] | None = None) -> int:
    """Run one command; returns its exit code (`check`: 1 when training or evaluation could not run)."""
    args = build_parser().parse_args(argv)
    if args.command == "captions":
        prepare_captions(args.source, Target(args.data_path, args.data_name, args.overwrite), args.text)
    elif args.command == "regions":
        options = Options(**{field.name: getattr(args, field.name) for field in fields(Options)})
        target = Target(args.data_path, args.data_name, args.overwrite)
        prepare_regions(find_files(args.sources, args.format), target, args.split, options)
    elif args.command == "cxc":
        prepare_cxc(args.csv, Target(args.data_path, "coco", args.overwrite))
    elif args.command == "own":
        target = Target(args.data_path, args.data_name or args.data_path.absolute().name, args.overwrite)
        prepare_own(args.images, args.captions, target, args.dev, args.test, args.seed, ImageLimits(args.max_pixels))
    elif args.command == "vocab":
        prepare_vocab(Target(args.data_path, args.data_name, args.overwrite), args.vocab_path, args.threshold)
    else:
        return check_data(args.data_path, args.data_name, ImageLimits(outside=args.allow_outside_images))
    return 0


if __name__ == "__main__":
    sys.exit(main())
