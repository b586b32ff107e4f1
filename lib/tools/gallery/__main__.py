"""Show which queries failed and how: `python -m lib.tools.gallery RESULTS [OTHER] --data_path DIR --out DIR`.

Writes OUT/index.html with thumbnails beside it: worst failures by rank and by margin and a random sample, in both
directions. With a second matrix also the queries that only one of the two gets right. It needs no server.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from lib.commands.flags import add_image_arguments, add_path_arguments, image_limits
from lib.console.parser import Parser
from lib.console.script import script
from lib.core.errors import InputError
from lib.core.values import not_negative, positive
from lib.datasets.images import ImageFolder
from lib.datasets.layout import image_folder, read_id_mapping
from lib.datasets.splits import Split
from lib.evaluation.matrices.together import Saved, Setting, open_items, open_saved
from lib.evaluation.queries import BEST, DIRECTIONS, answer_folds
from lib.files.writing import atomic_write, check_target
from lib.tools.gallery.page import Gallery, Model, page, shown_images
from lib.tools.gallery.selection import sections
from lib.tools.queries import MATRIX, add_data_flags

SIDE = 240  # pixels of the longer side of a thumbnail


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(prog="python -m lib.tools.gallery", description=__doc__)
    add = parser.add_argument
    add("matrices", nargs="+", type=Path, metavar="RESULTS", help=f"{MATRIX}; a second one is shown beside it")
    add("--out", type=Path, required=True, metavar="DIR", help="folder of the page")
    add_data_flags(add)
    add("--count", type=positive(int), default=24, help="queries of a section")
    add("--best", type=positive(int), default=5, help=f"items of a query, at most {BEST}")
    add("--seed", type=not_negative(int), default=0, help="of the random sample")
    query = "a query to show first: i2t:3 is image 3, t2i:17 caption 17, from 0; may be given more than once"
    add("--query", action="append", default=[], metavar="WAY:N", help=query)
    pictures = "ESL: word-region pictures of the first N queries of each direction, with the right and the wrong item"
    add("--pictures", type=not_negative(int), default=0, help=pictures)
    model = "for --pictures: the checkpoint (default: the one that the first matrix's JSON names, beside the matrix)"
    add("--model_path", type=Path, metavar="FILE", help=model)
    add("--device", help="for --pictures: cpu, cuda or cuda:N (default: the GPU where there is one)")
    add_image_arguments(parser)
    add_path_arguments(parser, evaluation=True)
    args = parser.parse_args(argv)
    if len(args.matrices) > 2:
        raise InputError("a gallery shows one matrix, or two beside each other; give no more")
    return args


@script
def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    target = check_target(args.out / "index.html", "--out")
    saved, setting = open_saved(args.matrices, args.dataset, args.split)
    args.data_path = args.data_path or f"data/{setting.dataset}"
    split, items = open_items(args.data_path, setting, saved[0].shapes)
    attention = None
    if args.pictures:
        from lib.tools.gallery.attention import Attention  # imports torch, for which the rest need not wait

        attention = Attention(args, saved[0], setting)
    names = short_names(saved)
    models = [
        Model(name, about(each), answer_folds(each.folds, items.image_of_caption))
        for name, each in zip(names, saved, strict=True)
    ]
    chosen = chosen_queries(args.query, {"i2t": split.n_images, "t2i": split.n_captions})
    found = {
        direction: sections(
            [model.answers[direction] for model in models], names, args.count, args.seed, chosen[direction]
        )
        for direction in DIRECTIONS
    }
    title = f"{setting.dataset} {setting.split_name}: {split.n_images} images, {split.n_captions} captions"
    gallery = Gallery(title, models, items, found, min(args.best, BEST), {}, {})
    gallery = gallery._replace(thumbnails=write_thumbnails(args, setting, split, shown_images(gallery)))
    if attention:
        gallery = gallery._replace(pictures=attention.write(args.out, gallery, args.pictures))
    with atomic_write(target) as temporary:
        temporary.write_text(page(gallery), encoding="utf-8")
    print(f"gallery: {target}")


def short_names(saved: list[Saved]) -> list[str]:
    """The files' names, or where these are the same their folders', or whole paths."""
    paths = [each.path.absolute() for each in saved]
    for names in ([path.name for path in paths], [path.parent.name for path in paths]):
        if len(set(names)) == len(names):
            return names
    return list(map(str, paths))


def about(saved: Saved) -> str:
    """What the JSON file beside a matrix says of its model."""
    info = saved.info or {}
    known = [str(info[key]) for key in ("model", "checkpoint", "checkpoint_hash") if info.get(key)]
    if info.get("chosen_on"):
        known.append(f"epoch chosen on {info['chosen_on']}")
    return ", ".join(known)


def chosen_queries(given: Iterable[str], counts: dict[str, int]) -> dict[str, list[int]]:
    """The numbers of --query by direction; InputError for one that is not there."""
    chosen: dict[str, list[int]] = {direction: [] for direction in counts}
    for text in given:
        direction, _, number = text.partition(":")
        if direction not in counts or not number.isdecimal() or int(number) >= counts[direction]:
            ranges = " or ".join(f"{way}:0 to {way}:{count - 1}" for way, count in counts.items())
            raise InputError(f"--query {text}: expected {ranges}")
        chosen[direction].append(int(number))
    return chosen


def write_thumbnails(args: argparse.Namespace, setting: Setting, split: Split, images: list[int]) -> dict[int, str]:
    """Small JPEG files of images under OUT/images; those that can't be read are left out, which is said once."""
    try:
        place, names = image_folder(args.data_path, setting.dataset), read_id_mapping(args.data_path)
        folder = ImageFolder(place, names, split.image_ids, image_limits(args))
    except InputError as error:
        print(f"note: the page has no images ({error})")
        return {}
    written, missing = {}, []
    for image in tqdm(images, "thumbnails", unit="image", disable=None, leave=False):
        try:
            small = Image.fromarray(folder.read(image))
        except InputError as error:
            missing.append(str(error))
            continue
        small.thumbnail((SIDE, SIDE))
        written[image] = f"images/{image}.jpg"
        with atomic_write(args.out / written[image]) as temporary:
            small.save(temporary, "JPEG", quality=85)
    if missing:
        print(f"note: {len(missing)} images are not shown ({missing[0]})")
    return written


if __name__ == "__main__":
    main()
