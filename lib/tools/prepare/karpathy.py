"""Captions, ids and image paths from Karpathy's `dataset_coco.json` and `dataset_flickr30k.json`."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from tqdm import tqdm

from lib.datasets.layout import precomp_folder
from lib.errors import InputError
from lib.files import read_json
from lib.tools.prepare.outputs import as_json, as_lines, write_new

CAPTIONS_PER_IMAGE = 5
COCO_DEV, COCO_TEST, COCO_TESTALL = 1000, 1000, 5000
_DATASET_NAMES = {"coco": "coco", "f30k": "flickr30k"}
_SPLIT_NAMES = {"coco": ("train", "restval", "val", "test"), "f30k": ("train", "val", "test")}
_REAL_SIZES = {
    "coco": {"train": 113287, "dev": 1000, "testall": 5000, "test": 1000},
    "f30k": {"train": 29000, "dev": 1014, "test": 1000},
}


@dataclass(frozen=True)
class Image:
    """One image of Karpathy's file: its id, its path under the image folder, its split and its first captions."""

    id: int
    path: str
    split: str
    captions: tuple[str, ...]
    caption_ids: tuple[int, ...]


def prepare_captions(
    source: Path, data_path: Path, data_name: str, overwrite: bool = False, say: Callable[[str], None] = print
) -> None:
    """Write `{split}_caps.txt`, `{split}_ids.txt` (one line per caption), `id_mapping.json`, `testall_capids.txt`.

    Raises InputError for a file that isn't Karpathy's, and before anything is replaced unless `overwrite`.
    """
    images = read_karpathy(source, data_name)
    splits = choose_splits(images, data_name)
    folder = _target_folder(data_path, data_name)
    files = {data_path / "id_mapping.json": as_json({image.id: image.path for image in images})}
    for split, chosen in splits.items():
        files[folder / f"{split}_caps.txt"] = as_lines(caption for image in chosen for caption in image.captions)
        files[folder / f"{split}_ids.txt"] = as_lines(image.id for image in chosen for _ in image.captions)
    if "testall" in splits:
        capids = [caption_id for image in splits["testall"] for caption_id in image.caption_ids]
        files[folder / "testall_capids.txt"] = as_lines(capids)
    written = write_new(files, overwrite)
    for split, chosen in splits.items():
        real = _REAL_SIZES[data_name][split]
        note = "" if len(chosen) == real else f" (the published split has {real:,})"
        say(f"{split}: {len(chosen):,} images{note}, {sum(len(image.captions) for image in chosen):,} captions")
    say(f"wrote {len(written)} files under {data_path}; {len(files) - len(written)} held the same already")
    for split in splits:
        features = folder / f"{split}_ims.npy"
        if folder / f"{split}_ids.txt" in written and features.exists():
            say(f"warning: {features} may have been made for other ids; run `prepare regions --overwrite` again")


def read_karpathy(source: Path, data_name: str) -> list[Image]:
    """Read and validate every image of Karpathy's file, in file order.

    COCO ids are `cocoid`, Flickr30K ids are `imgid`. Captions are the `raw` sentences (cased, with punctuation) on one
    line with single spaces; Karpathy's `tokens` are lower-cased and lack punctuation. Raises InputError naming the
    image for missing keys, repeated ids, empty captions, unknown splits.
    """
    content = read_json(source)
    entries = content.get("images") if isinstance(content, dict) else None
    if not isinstance(entries, list) or not entries:
        raise InputError(f'{source}: has no list "images"; expected dataset_coco.json or dataset_flickr30k.json')
    named = content.get("dataset")
    if named is not None and named != _DATASET_NAMES[data_name]:
        raise InputError(f"{source}: holds the data set {named!r}, but --data_name is {data_name}")
    images, place_of_id = [], {}
    for place, entry in enumerate(tqdm(entries, desc="captions", unit=" images", disable=None)):
        where = f"{source}, images[{place}]"
        image = _read_image(entry, where, data_name)
        if image.id in place_of_id:
            first = place_of_id[image.id]
            raise InputError(f"{where}: id {image.id} is that of images[{first}] already; ids must be unique")
        place_of_id[image.id] = place
        images.append(image)
    _require_unique_caption_ids(source, images)
    return images


def choose_splits(images: list[Image], data_name: str) -> dict[str, list[Image]]:
    """Split → its images in file order; splits without images are left out.

    COCO: train = train + restval, dev = the first 1,000 of val, testall = the first 5,000 of test and test = the first
    1,000 of those. Flickr30K: train, dev (its val) and test.
    """
    named = {name: [image for image in images if image.split == name] for name in _SPLIT_NAMES[data_name]}
    if data_name == "coco":
        testall = named["test"][:COCO_TESTALL]
        splits = {
            "train": [image for image in images if image.split in ("train", "restval")],
            "dev": named["val"][:COCO_DEV],
            "test": testall[:COCO_TEST],
            "testall": testall,
        }
    else:
        splits = {"train": named["train"], "dev": named["val"], "test": named["test"]}
    return {split: chosen for split, chosen in splits.items() if chosen}


def _read_image(entry, where: str, data_name: str) -> Image:
    number = _number(entry, "cocoid" if data_name == "coco" else "imgid", where)
    split = _text(entry, "split", where)
    if split not in _SPLIT_NAMES[data_name]:
        raise InputError(f"{where}: split is {split!r}, expected one of {', '.join(_SPLIT_NAMES[data_name])}")
    folder = _text(entry, "filepath", where) if data_name == "coco" else ""
    path = PurePosixPath(folder, _text(entry, "filename", where))
    if path.is_absolute() or ".." in path.parts:
        raise InputError(f"{where}: image path {str(path)!r} leaves the image folder; expected a path inside it")
    sentences = entry.get("sentences")
    if not isinstance(sentences, list) or not sentences:
        raise InputError(f'{where}: image {number} has no list "sentences"; an image needs at least one caption')
    captions, caption_ids = [], []
    for index, sentence in enumerate(sentences[:CAPTIONS_PER_IMAGE]):
        sentence_where = f"{where}: image {number}, sentences[{index}]"
        caption = one_line(_text(sentence, "raw", sentence_where))
        if not caption:
            raise InputError(f"{sentence_where}: is empty; remove the sentence or write its text")
        captions.append(caption)
        caption_ids.append(_number(sentence, "sentid", sentence_where))
    return Image(number, str(path), split, tuple(captions), tuple(caption_ids))


def _target_folder(data_path: Path, data_name: str) -> Path:
    try:
        return precomp_folder(data_path, data_name)
    except InputError:  # a new data set
        return data_path / "precomp"


def one_line(text: str) -> str:
    """The text on one line: every run of white space, line breaks and control characters is one space."""
    return " ".join(re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ufeff]", " ", text).split())


def _require_unique_caption_ids(source: Path, images: list[Image]) -> None:
    image_of: dict[int, int] = {}
    for image in images:
        for caption_id in image.caption_ids:
            if caption_id in image_of:
                both = f"image {image_of[caption_id]} and image {image.id}"
                raise InputError(f"{source}: sentid {caption_id} is in {both}; caption ids must be unique")
            image_of[caption_id] = image.id


def _text(entry, key: str, where: str) -> str:
    value = entry.get(key) if isinstance(entry, dict) else None
    if not isinstance(value, str):
        raise InputError(f'{where}: has no text under "{key}"; expected Karpathy\'s format')
    return value


def _number(entry, key: str, where: str) -> int:
    value = entry.get(key) if isinstance(entry, dict) else None
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        expected = "is this the Flickr30K file (--data_name f30k)?" if key == "cocoid" else "expected Karpathy's format"
        raise InputError(f'{where}: has no whole number under "{key}"; {expected}')
    return value
