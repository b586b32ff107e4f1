"""Writes the sample data where real data would be: features, captions, ids, boxes, images, id mapping, CxC annotations.

The rows of train files stand for one image each; those of dev, test and testall are repeated for each caption, as in
the released files, unless `one_row_per_image`. Every image has its own random stream (seed, data set, part, number), so
a larger data set begins with the pictures, captions and features of the smaller one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.lib.format import open_memmap
from PIL import Image
from tqdm import tqdm

from lib.core.errors import InputError
from lib.datasets import DATA_SETS
from lib.evaluation.eccv import coco_test_gallery
from lib.files.writing import atomic_write, write_json
from lib.tools.sample.bert import write_bert
from lib.tools.sample.clip import write_clip
from lib.tools.sample.pictures import REGIONS, draw_scene, region_features, scene_boxes
from lib.tools.sample.relatedness import annotations
from lib.tools.sample.scenes import CAPTIONS_PER_IMAGE, mentions_of, random_scene, vocabulary, write_captions

FOLDS, COCO_TEST_IMAGES = 5, 5000
_MARKER = "sample.json"
_LARGEST_COCO_IMAGE, _LARGEST_COCO_CAPTION = 581_929, 829_717


@dataclass(frozen=True)
class SampleConfig:
    """How large the data set is, in images per split. coco's `testall` holds five folds, the first of them is `test`.

    Raises InputError for sizes that make no data set.
    """

    images: int = 1000
    dev_images: int = 100
    test_images: int = 200
    testall_images: int | None = None  # None: 5 * test_images
    img_dim: int = 256
    seed: int = 0
    one_row_per_image: bool = False
    coco_test_ids: bool = False  # coco's testall carries the ids of COCO's test images and captions

    def __post_init__(self):
        for name, lowest in (("images", 1), ("dev_images", 1), ("test_images", 1), ("img_dim", 1), ("seed", 0)):
            if getattr(self, name) < lowest:
                raise InputError(f"--{name} is {getattr(self, name)}, expected {lowest} or more")
        if self.testall_images is not None and (self.testall_images < FOLDS or self.testall_images % FOLDS):
            raise InputError(f"--testall_images is {self.testall_images}, expected a multiple of {FOLDS} (equal folds)")
        if self.coco_test_ids and self.parts("coco")["testall"] != COCO_TEST_IMAGES:
            raise InputError(f"--coco_test_ids needs --testall_images {COCO_TEST_IMAGES}, as many as COCO's test has")

    def parts(self, dataset: str) -> dict[str, int]:
        """How many images are drawn for which split; coco's test is cut from testall."""
        parts = {"train": self.images, "dev": self.dev_images}
        if dataset == "coco":
            return parts | {"testall": self.testall_images or FOLDS * self.test_images}
        return parts | {"test": self.test_images}


def write_sample(out: str | Path, config: SampleConfig, datasets: Sequence[str] = tuple(DATA_SETS)) -> None:
    """Write `out`/coco and `out`/f30k (or what `datasets` names), `out`/bert and `out`/clip.

    Raises InputError, before anything is drawn, when one of them holds other files or can't be written.
    """
    out = Path(out)
    for folder in (out / name for name in (*datasets, "bert", "clip")):
        if folder.is_dir() and any(folder.iterdir()) and not (folder / _MARKER).is_file():
            raise InputError(
                f"{folder}: holds files that are not sample data and would be overwritten; name another folder"
            )
        write_json(folder / _MARKER, {"made_by": "python -m lib.tools.sample", **asdict(config)})
    for dataset in datasets:
        _write_dataset(out / dataset, dataset, config)
    write_bert(out / "bert", vocabulary(), config.seed)
    write_clip(out / "clip", vocabulary(), config.seed)


def _write_dataset(folder: Path, dataset: str, config: SampleConfig) -> None:
    files: dict[int, str] = {}
    for number, (split, here) in enumerate(_image_ids(dataset, config).items()):
        files |= {image_id: _file_name(dataset, split, image_id) for image_id in here}
        stream = (config.seed, list(DATA_SETS).index(dataset), number)
        scenes, captions = _write_split(folder, dataset, split, here, stream, config)
        if split == "testall":
            _write_split(folder, dataset, "test", here[: len(here) // FOLDS], stream, config)  # the same pictures again
            caption_ids = _caption_ids(len(captions), config)
            for name, lines in annotations(here, caption_ids, scenes, captions).items():
                _write_lines(folder / "cxc_annots" / name, lines)
    write_json(folder / "id_mapping.json", files)


def _image_ids(dataset: str, config: SampleConfig) -> dict[str, list[int]]:
    """The ids of each split's images, which no other split has."""
    parts = config.parts(dataset)
    total = sum(parts.values())
    ids = list(range(total)) if dataset == "f30k" else _distinct(_LARGEST_COCO_IMAGE, total, (config.seed, 1))
    if dataset == "coco" and config.coco_test_ids:
        test = coco_test_gallery().image_ids.tolist()
        known = set(test)
        others = [number for number in ids if number not in known]
        ids = others[: total - len(test)] + test  # testall comes last
    left = iter(ids)
    return {split: list(islice(left, count)) for split, count in parts.items()}


def _caption_ids(count: int, config: SampleConfig) -> list[int]:
    """The ids of the captions of coco's testall."""
    if config.coco_test_ids:
        return coco_test_gallery().caption_ids.tolist()
    return _distinct(_LARGEST_COCO_CAPTION, count, (config.seed, 2))


def _write_split(
    folder: Path, dataset: str, split: str, ids: list[int], stream: tuple, config: SampleConfig
) -> tuple[list[Counter], list[Counter]]:
    """Write the images of a split and everything about them; returns what each scene and each caption mentions."""
    repeat = 1 if split == "train" or config.one_row_per_image else CAPTIONS_PER_IMAGE
    prefix = f"{folder}/precomp/{split}"
    scenes, captions = [], []
    with atomic_write(f"{prefix}_ims.npy") as ims_file, atomic_write(f"{prefix}_boxes.npy") as boxes_file:
        features = open_memmap(ims_file, "w+", np.float32, (len(ids) * repeat, REGIONS, config.img_dim))
        boxes = open_memmap(boxes_file, "w+", np.float32, (len(ids) * repeat, REGIONS, 4))
        for number, image_id in enumerate(tqdm(ids, f"drawing {dataset} {split}", unit="image", disable=None)):
            rng = np.random.default_rng((*stream, number))
            scene = random_scene(rng)
            path = folder / DATA_SETS[dataset].images / _file_name(dataset, split, image_id)
            with atomic_write(path) as temporary:
                draw_scene(scene, rng).save(temporary, "JPEG", quality=90)
            rows = slice(number * repeat, (number + 1) * repeat)
            boxes[rows] = proposed = scene_boxes(scene, rng)
            with Image.open(path) as image:
                features[rows] = region_features(image, proposed, config.img_dim)
            scenes.append(mentions_of(scene))
            captions += write_captions(scene, rng).items()
    _write_lines(f"{prefix}_ids.txt", np.repeat(ids, repeat))
    _write_lines(f"{prefix}_caps.txt", [text for text, _ in captions])
    return scenes, [mentions for _, mentions in captions]


def _write_lines(path: str | Path, lines: Iterable) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def _distinct(largest: int, count: int, seed: tuple[int, int]) -> list[int]:
    """`count` different numbers from 1 to `largest`."""
    if count > largest:
        raise InputError(f"{count} images or captions were asked for; there are ids for at most {largest}")
    return (1 + np.random.default_rng(seed).choice(largest, size=count, replace=False)).tolist()


def _file_name(dataset: str, split: str, image_id: int) -> str:
    if dataset == "f30k":
        return f"{1_000_000_000 + 7919 * image_id}.jpg"
    year = "train2014" if split == "train" else "val2014"
    return f"{year}/COCO_{year}_{image_id:012d}.jpg"
