"""Captions, ids and image paths of one's own data: a folder of images and a file of lines `image<TAB>caption`."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image
from tqdm import tqdm

from lib.datasets import data_set
from lib.datasets.captions import read_captions
from lib.datasets.images import find_images
from lib.datasets.layout import precomp_folder
from lib.errors import InputError
from lib.tools.prepare.karpathy import one_line
from lib.tools.prepare.outputs import as_json, as_lines, write_new

LARGEST_DEFAULT = 1000  # images of dev and of test, where no number is given: a tenth of all, at most these


def prepare_own(
    images: Path,
    captions: Path,
    data_path: Path,
    data_name: str = "f30k",
    dev: int | None = None,
    test: int | None = None,
    seed: int = 0,
    overwrite: bool = False,
    say: Callable[[str], None] = print,
) -> None:
    """Write `{split}_caps.txt`, `{split}_ids.txt` (one line per caption), `id_mapping.json` and a link to `images`.

    Ids number the images in the order in which the captions file names them first; `dev` and `test` images are drawn
    with `seed`, the rest is train. Raises InputError for a bad line, a missing or unreadable image, and before
    anything is replaced unless `overwrite`.
    """
    captions_of = read_pairs(captions, images)
    check_readable(images, captions_of)
    splits = draw_splits(len(captions_of), dev, test, seed)
    folder = _target_folder(data_path, data_name)
    names = list(captions_of)
    files = {data_path / "id_mapping.json": as_json(dict(enumerate(names)))}
    for split, chosen in splits.items():
        files[folder / f"{split}_caps.txt"] = as_lines(text for image in chosen for text in captions_of[names[image]])
        files[folder / f"{split}_ids.txt"] = as_lines(image for image in chosen for _ in captions_of[names[image]])
    link = data_path / data_set(data_name).images
    _check_link(link, images)
    written = write_new(files, overwrite)
    _link(link, images)
    for split, chosen in splits.items():
        say(f"{split}: {len(chosen):,} images, {sum(len(captions_of[names[image]]) for image in chosen):,} captions")
    say(f"wrote {len(written)} files under {data_path}; {len(files) - len(written)} held the same already")
    say(f"{link} -> {images.resolve()}")
    unused = len(set(find_images(images)) - set(names))
    if unused:
        say(f"note: {unused:,} image files under {images} have no caption and are left out")
    for split in splits:
        if folder / f"{split}_ids.txt" in written and (folder / f"{split}_ims.npy").exists():
            say(f"warning: {folder / f'{split}_ims.npy'} was made for other ids; remove it and extract again")


def read_pairs(captions: Path, images: Path) -> dict[str, list[str]]:
    """Path under `images` → its captions, in the order of the file; the lines of an image may stand anywhere.

    `name.jpg#0` (the token file of Flickr30K) means name.jpg where no file is called so. Raises InputError with the
    line number for a line without a tab or caption, a path that leaves the folder, and an image that is not there.
    """
    if not images.is_dir():
        raise InputError(f"{images}: no such folder; --images names the folder of the images")
    captions_of: dict[str, list[str]] = {}
    known: dict[str, str] = {}
    for number, line in enumerate(tqdm(read_captions(captions), desc="captions", unit=" lines", disable=None), start=1):
        name, tab, text = line.partition("\t")
        caption = one_line(text)
        if not tab or not caption or not name.strip():
            raise InputError(f"{captions}, line {number}: {line[:60]!r}; expected an image, a tab and its caption")
        if name not in known:
            known[name] = _image_name(name.strip(), images, f"{captions}, line {number}")
        captions_of.setdefault(known[name], []).append(caption)
    return captions_of


def check_readable(images: Path, names) -> None:
    """Open every image far enough to know its kind and size; InputError that names the first that is none."""
    for name in tqdm(names, desc="images", unit=" images", disable=None):
        try:
            with Image.open(images / name):
                pass
        except Exception as error:  # decoders raise anything
            reason = " ".join(str(error).split()) or type(error).__name__
            raise InputError(f"{images / name}: no readable image ({reason}); replace it or drop its lines") from None


def draw_splits(n_images: int, dev: int | None, test: int | None, seed: int) -> dict[str, list[int]]:
    """Split → its images, ascending; InputError when no image would be left to train on."""
    tenth = min(LARGEST_DEFAULT, max(1, n_images // 10))
    dev, test = tenth if dev is None else dev, tenth if test is None else test
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


def _target_folder(data_path: Path, data_name: str) -> Path:
    try:
        return precomp_folder(data_path, data_name)
    except InputError:  # a new data set
        return data_path / "precomp"


def _check_link(link: Path, images: Path) -> None:
    if (link.exists() or link.is_symlink()) and link.resolve() != images.resolve():
        raise InputError(f"{link}: there already, and not the folder {images}; remove it or name another --data_path")


def _link(link: Path, images: Path) -> None:
    if link.exists():
        return
    try:
        link.symlink_to(images.resolve(), target_is_directory=True)
    except OSError as error:
        raise InputError(f"{link}: no link to {images} could be made ({error.strerror}); copy them there") from None
