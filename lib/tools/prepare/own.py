"""Captions, ids and image paths of one's own data: a folder of images, and lines `image<TAB>caption` or a CSV file."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

import numpy as np
from tqdm import tqdm

from lib.core.errors import InputError, shown
from lib.datasets import DATA_SETS, data_set
from lib.datasets.captions import read_captions
from lib.datasets.images import ImageFolder, find_images
from lib.files.images import DEFAULT_LIMITS, ImageLimits, open_image
from lib.files.reading import read_lines
from lib.files.writing import check_writable
from lib.tools.prepare.outputs import Image, Target, one_line

IMAGE_COLUMNS, CAPTION_COLUMNS = ("image", "image_name", "file_name", "filename"), ("caption", "comment")
FEW = 50  # images of dev below which an epoch is chosen by chance, and of test below which recalls say little
LARGEST_DEFAULT = 1000  # images of dev and of test, where no number is given: a tenth of all, at most these


def prepare_own(
    images: Path,
    captions: Path,
    target: Target,
    dev: int | None = None,
    test: int | None = None,
    seed: int = 0,
    limits: ImageLimits = DEFAULT_LIMITS,
) -> None:
    """Write the captions, ids and image paths of the splits that `draw_splits` draws, and a link to `images`.

    Ids number the images in the order in which the captions file names them first. Raises InputError for the name of a
    published data set, a bad line, a missing or unreadable image, and before anything is replaced that mustn't be.
    """
    path, name = target.data_path, target.data_name
    if data_set(name) in DATA_SETS.values():
        raise InputError(f"--data_name {name}: is a published data set; give your own data another name")
    link = path / data_set(name).images
    captions_of = read_pairs(captions, images)
    check_writable(path, "--data_path")  # before all images are looked at
    check_readable(images, captions_of, limits)
    numbered = [Image(number, name, captions_of[name]) for number, name in enumerate(captions_of)]
    splits = draw_splits(len(numbered), dev, test, seed)
    _link(link, images)
    target.write_splits(numbered, {split: [numbered[number] for number in chosen] for split, chosen in splits.items()})
    print(f"{link} -> {images.resolve()}")
    if unused := len(set(find_images(images)) - captions_of.keys()):
        print(f"note: {unused:,} image files under {images} have no caption and are left out")
    for split, use in (("dev", "choose an epoch by"), ("test", "report recalls on")):
        if len(splits[split]) < FEW:
            print(f"note: {split} has {len(splits[split])} images, too few to {use} (one of them moves a recall by "
                  f"{100 / len(splits[split]):.1f}); --{split} N takes more")  # fmt: skip
    print(f"from now on: train.py --data_path {path} --data_name {name}, eval.py --data_path {path} --dataset {name}")


def read_pairs(captions: Path, images: Path) -> dict[str, list[str]]:
    """Path under `images` → its captions, in the order of the file; the lines of an image may stand anywhere.

    `name.jpg#0` (the token file of Flickr30K) means name.jpg where no file is called so. Raises InputError with the
    line number for a line without a tab or caption, a path that leaves the folder, and an image that is not there.
    """
    if not images.is_dir():
        raise InputError(f"{images}: no such folder; --images names the folder of the images")
    captions_of: dict[str, list[str]] = {}
    known: dict[str, str] = {}
    rows = _csv_rows(captions) if captions.suffix.lower() == ".csv" else _tab_rows(captions)
    for where, name, text in tqdm(rows, desc="captions", unit=" lines", disable=None):
        caption = one_line(text)
        if not caption or not name:
            found = shown(f"{name}\t{text}".strip(), 60)
            raise InputError(
                f"{where}: {found!r}; expected an image, a tab and its caption (.csv: both columns filled)"
            )
        if name not in known:
            known[name] = _image_name(name, images, where)
        captions_of.setdefault(known[name], []).append(caption)
    return captions_of


def _tab_rows(captions: Path) -> Iterator[tuple[str, str, str]]:
    """Where it stands, image and caption of each line."""
    for number, line in enumerate(read_captions(captions), start=1):
        name, _, text = line.partition("\t")
        yield f"{captions}, line {number}", name.strip(), text


def _csv_rows(captions: Path) -> Iterator[tuple[str, str, str]]:
    """Where it stands, image and caption of each row of a CSV file, whose header names both columns."""
    lines = [f"{line}\n" for line in read_lines(captions)]
    header = lines[0].strip()
    rows = csv.DictReader(lines, delimiter=max(",;|\t", key=header.count), skipinitialspace=True, restval="")
    columns = {name.strip().lower(): name for name in rows.fieldnames or () if name}
    image, caption = (
        next((columns[n] for n in names if n in columns), None) for names in (IMAGE_COLUMNS, CAPTION_COLUMNS)
    )
    if image is None or caption is None:
        raise InputError(
            f"{captions}, line 1: the header is {shown(header)!r}, expected columns named image and caption"
        )
    try:
        for row in rows:
            yield f"{captions}, line {rows.line_num}", (row[image] or "").strip(), row[caption] or ""
    except csv.Error as error:
        raise InputError(f"{captions}, line {rows.line_num}: no readable CSV ({error})") from None


def check_readable(images: Path, names: Iterable[str], limits: ImageLimits) -> None:
    """Open every image far enough to know its kind and size; InputError that names the first one that is refused."""
    ImageFolder(images, dict(enumerate(names)), limits=limits).check()
    for name in tqdm(names, desc="images", unit=" images", disable=None):
        with open_image(images / name, limits=limits):
            pass


def draw_splits(n_images: int, dev: int | None, test: int | None, seed: int) -> dict[str, list[int]]:
    """Split → its images, ascending; InputError when no image would be left to train on."""
    tenth = min(LARGEST_DEFAULT, max(1, n_images // 10))
    dev, test = dev or tenth, test or tenth
    if dev + test >= n_images:
        raise InputError(f"--dev {dev} and --test {test} leave none of {n_images} images to train on; lower them")
    order = np.random.default_rng(seed).permutation(n_images)
    parts = {"train": order[dev + test :], "dev": order[:dev], "test": order[dev : dev + test]}
    return {split: sorted(part.tolist()) for split, part in parts.items()}


def _image_name(name: str, images: Path, where: str) -> str:
    """The image's path under the folder; InputError when it is not there."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise InputError(f"{where}: image {name!r} leaves the folder; expected a path under {images}")
    for found in (name, re.sub(r"#\d+$", "", name)):
        if (images / found).is_file():
            return str(PurePosixPath(found))
    raise InputError(f"{where}: no image file {images / name}; expected a path under {images}, a tab and a caption")


def _link(link: Path, images: Path) -> None:
    if link.is_symlink() or link.exists():
        if link.resolve() == images.resolve():
            return
        raise InputError(f"{link}: there already, and not the folder {images}; remove it or name another --data_path")
    try:
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(images.resolve(), target_is_directory=True)
    except OSError as error:
        raise InputError(f"{link}: no link to {images} could be made ({error.strerror}); copy them there") from None
