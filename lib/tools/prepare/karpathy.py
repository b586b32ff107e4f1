"""Captions, ids and image paths from Karpathy's `dataset_coco.json` and `dataset_flickr30k.json`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from tqdm import tqdm

from lib.core.errors import InputError, shown
from lib.datasets import data_set
from lib.files.reading import read_json
from lib.tools.prepare.outputs import Image, Target, one_line

TEXTS = ("sentence", "raw")  # as written; as CLIP-based ESL reads it
FULL_STOPS = {"coco": "", "f30k": "."}  # which it takes away from both ends of a sentence
DATASET_NAMES = {"coco": "coco", "f30k": "flickr30k"}
SPLITS = {  # his names → ours
    "coco": {"train": "train", "restval": "train", "val": "dev", "test": "testall"},
    "f30k": {"train": "train", "val": "dev", "test": "test"},
}
PUBLISHED_SIZES = {
    "coco": {"train": 113287, "dev": 1000, "testall": 5000, "test": 1000},
    "f30k": {"train": 29000, "dev": 1014, "test": 1000},
}


def prepare_captions(source: Path, target: Target, text: str = "sentence") -> None:
    """Write the captions, ids and image paths of every split that has images; `text` is one of TEXTS.

    Raises InputError for a file that isn't Karpathy's, and before anything is replaced that mustn't be.
    """
    images = read_karpathy(source, target.data_name, text)
    splits = choose_splits(images, target.data_name)
    target.write_splits((image for image, _ in images), splits)
    for split, chosen in splits.items():
        if len(chosen) != (published := PUBLISHED_SIZES[target.data_name][split]):
            print(f"note: the published {split} has {published:,} images")


def read_karpathy(source: Path, data_name: str, text: str = "sentence") -> list[tuple[Image, str]]:
    """Every image of the file with our name of its split, in file order.

    COCO ids are `cocoid`, Flickr30K ids are `imgid`. Captions are the first `raw` sentences (cased, with punctuation)
    on one line; Karpathy's `tokens` are lower-cased and lack punctuation. Raises InputError naming the image for
    missing keys, repeated ids, empty captions, unknown splits.
    """
    content = read_json(source)
    entries = _get(content, "images", list, f"{source}")
    if content.get("dataset", DATASET_NAMES[data_name]) != DATASET_NAMES[data_name]:
        raise InputError(f"{source}: holds the data set {content['dataset']!r}, but --data_name is {data_name}")
    bar = tqdm(entries, desc="captions", unit=" images", disable=None)
    ends = FULL_STOPS[data_name] if text == "raw" else ""
    images = [_read_image(entry, f"{source}, images[{place}]", data_name, ends) for place, entry in enumerate(bar)]
    _require_unique(source, "id", ((image.id, f"images[{place}]") for place, (image, _) in enumerate(images)))
    owners = ((number, f"image {image.id}") for image, _ in images for number in image.caption_ids)
    _require_unique(source, "sentid", owners)
    return images


def choose_splits(images: list[tuple[Image, str]], data_name: str) -> dict[str, list[Image]]:
    """Split → its images in file order, all of train and the first of the others; splits without any are left out."""
    named = {split: [] for split in data_set(data_name).splits}
    for image, split in images:
        named[split].append(image)
    if data_name == "coco":
        named["test"] = named["testall"]
    sizes = PUBLISHED_SIZES[data_name] | {"train": None}
    return {split: chosen[: sizes[split]] for split, chosen in named.items() if chosen}


def _read_image(entry, where: str, data_name: str, ends: str) -> tuple[Image, str]:
    number = _get(entry, "cocoid" if data_name == "coco" else "imgid", int, where)
    split, splits = _get(entry, "split", str, where), SPLITS[data_name]
    if split not in splits:
        raise InputError(f"{where}: split is {shown(split)!r}, expected one of {', '.join(splits)}")
    folder = _get(entry, "filepath", str, where) if data_name == "coco" else ""
    path = PurePosixPath(folder, _get(entry, "filename", str, where))
    if path.is_absolute() or ".." in path.parts:
        raise InputError(f"{where}: image path {str(path)!r} leaves the image folder; expected a path inside it")
    captions, caption_ids = [], []
    sentences = _get(entry, "sentences", list, f"{where}: image {number}")
    for index, sentence in enumerate(sentences[: data_set(data_name).captions_per_image]):
        sentence_where = f"{where}: image {number}, sentences[{index}]"
        captions.append(one_line(_get(sentence, "raw", str, sentence_where).strip(ends or None)))
        if not captions[-1]:
            raise InputError(f"{sentence_where}: is empty; remove the sentence or write its text")
        caption_ids.append(_get(sentence, "sentid", int, sentence_where))
    return Image(number, str(path), captions, caption_ids), splits[split]


def _get(entry, key: str, kind: type, where: str):
    """The value of a key: a number that isn't negative, or a text or list that isn't empty."""
    value = entry.get(key) if isinstance(entry, dict) else None
    if type(value) is kind and (value >= 0 if kind is int else value):
        return value
    expected = {int: "whole number", str: "text", list: "list"}[kind]
    hint = "is this the Flickr30K file (--data_name f30k)?" if key == "cocoid" else "expected Karpathy's format"
    raise InputError(f'{where}: has no {expected} under "{key}"; {hint}')


def _require_unique(source: Path, name: str, owners: Iterable[tuple[int, str]]) -> None:
    owner_of: dict[int, str] = {}
    for number, owner in owners:
        if number in owner_of:
            raise InputError(f"{source}: {name} {number} is in {owner_of[number]} and in {owner}; it must be unique")
        owner_of[number] = owner
