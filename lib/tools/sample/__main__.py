"""Command line of the sample data set: `python -m lib.tools.sample OUT --images N --seed S`."""

from __future__ import annotations

from pathlib import Path

from lib.console.parser import Parser
from lib.console.script import script
from lib.datasets import DATA_SETS
from lib.tools.sample.writing import SampleConfig, write_sample


@script
def main(argv: list[str] | None = None) -> None:
    """Draw the sample data sets and write the tiny BERT and CLIP."""
    parser = Parser(
        prog="python -m lib.tools.sample",
        description="Draw scenes of coloured shapes with captions, boxes and region features into OUT/coco and "
        "OUT/f30k, and write a tiny BERT and a tiny CLIP for them into OUT/bert and OUT/clip. The same settings write "
        "the same bytes.",
    )

    def add_number(name: str, text: str) -> None:
        parser.add_argument(f"--{name}", type=int, default=getattr(SampleConfig, name), help=text)

    parser.add_argument("out", type=Path, metavar="OUT", help="output folder")
    add_number("images", "training images")
    add_number("dev_images", "images of dev")
    add_number("test_images", "images of test")
    first = "images of coco's testall, whose first fifth is coco's test (default: 5 times test_images)"
    add_number("testall_images", first)
    parser.add_argument(
        "--datasets", nargs="+", default=tuple(DATA_SETS), choices=DATA_SETS, help="data sets to draw (default: both)"
    )
    add_number("img_dim", "size of a region feature; real ones have 2048")
    add_number("seed", "seed of every random draw")
    parser.add_argument(
        "--one_row_per_image",
        action="store_true",
        help="write features of dev, test and testall once per image, not once per caption as the released files do",
    )
    parser.add_argument(
        "--coco_test_ids",
        action="store_true",
        help="coco's 5000 images of testall and their captions get the ids of COCO's test, for --evaluate_eccv",
    )
    args = vars(parser.parse_args(argv))
    out, datasets = args.pop("out"), args.pop("datasets")
    config = SampleConfig(**args)
    write_sample(out, config, datasets)
    for dataset in datasets:
        sizes = ", ".join(f"{split} {count}" for split, count in config.parts(dataset).items())
        print(f"{out / dataset}: {sizes} images")
    print(f"{out / 'bert'}: a tiny BERT for their captions")
    print(f"{out / 'clip'}: a tiny CLIP for their images and captions")


if __name__ == "__main__":
    main()
