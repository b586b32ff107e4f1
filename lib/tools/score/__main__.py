"""Score captions against one image or a few, and draw which words matched which regions: `python -m lib.tools.score`.

A checkpoint that was trained on raw images takes image files (--image), one that was trained on region features the
features of the image's regions (--features). The scores are those of eval.py.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from lib.commands.flags import add_image_arguments, add_path_arguments
from lib.console.parser import Parser, existing
from lib.console.script import script
from lib.core.config import PRECISIONS
from lib.core.errors import InputError
from lib.core.values import positive
from lib.datasets.captions import read_captions
from lib.inference.pictures.picture import FORMS


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(prog="python -m lib.tools.score", description=__doc__)
    add = parser.add_argument
    add("--model_path", required=True, type=existing, metavar="FILE", help="checkpoint: our own or a released one")
    add("--caption", action="append", default=[], metavar="TEXT", help="a caption; may be given more than once")
    add("--captions_file", type=Path, metavar="FILE", help="more captions, one per line")
    add("--image", action="append", default=[], type=Path, metavar="FILE",
        help="an image file; may be given more than once. With --features: the image behind --picture (default: that "
        "of --row by the split's ids and id_mapping.json)")  # fmt: skip
    add("--features", type=Path, metavar="FILE",
        help="region checkpoint: features (R, img_dim) of an image, or (N, R, img_dim) with --row")  # fmt: skip
    add("--row", action="append", type=int, help="row of --features, from 0; may be given more than once")
    add("--top", type=positive(int), help="print only the best N captions of each image")
    add("--picture", type=Path, metavar="FILE", help="ESL: draw which words of a caption matched which regions, as "
        f"{', '.join(FORMS)}")  # fmt: skip
    add("--picture_caption", type=positive(int), help="draw the N-th caption (default: the best one)")
    words = "in the picture; content: no function words, punctuation, [CLS] and [SEP]"
    add("--words", choices=("all", "content"), default="all", help=words)
    add("--no_subtitle", action="store_true", help="a picture without the line of score, image and model")
    add("--dpi", type=positive(float), default=200, help="dots per inch of a .png")
    add("--width", type=positive(float), help="of the picture, in inches (default: about 14)")
    add("--boxes", metavar="FILE|grid",
        help="for --picture: the boxes of --features, (R, 4) or (N, R, 4), x1 y1 x2 y2 in pixels of --image; or 'grid' "
        "where the regions are grid cells (default: {split}_boxes.npy beside {split}_ims.npy)")  # fmt: skip
    add("--device", help="cpu, cuda or cuda:N (default: the GPU where there is one)")
    add("--precision", choices=PRECISIONS, default="float32", help="as in eval.py")
    add_image_arguments(parser)
    add_path_arguments(parser, evaluation=True)
    return parser.parse_args(argv)


def given_captions(args: argparse.Namespace) -> list[str]:
    """The captions of --caption, then those of --captions_file; InputError for none or an empty one."""
    captions = [" ".join(caption.split()) for caption in args.caption]
    for number, caption in enumerate(captions, start=1):
        if not caption:
            raise InputError(f"--caption number {number} is empty; give it some words")
    if args.captions_file:
        captions += read_captions(args.captions_file)
    if not captions:
        raise InputError('no captions: give --caption "…" or --captions_file FILE')
    return captions


@script
def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    captions = given_captions(args)
    from lib.tools.score.scoring import score_captions

    score_captions(args, captions)


if __name__ == "__main__":
    main()
