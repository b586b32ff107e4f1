"""Puts the sample data where the real data lies: features, captions, ids, boxes, images, id mapping, CxC annotations.

The rows of train files stand for one image each; those of dev, test and testall are repeated for each caption, as in
the released files, unless `one_row_per_image`. Every image has its own random stream (seed, data set, part, number), so
a larger data set begins with the pictures, captions and features of the smaller one.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from lib.datasets import DATA_SETS
from lib.errors import InputError
from lib.files import atomic_write, write_json
from lib.tools.sample.bert import write_bert
from lib.tools.sample.captions import CAPTIONS_PER_IMAGE, mentions_of, vocabulary, write_captions
from lib.tools.sample.drawing import draw_scene
from lib.tools.sample.features import REGIONS, region_features, scene_boxes
from lib.tools.sample.relatedness import write_annotations
from lib.tools.sample.scenes import random_scene

FOLDS = 5
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

    def __post_init__(self):
        for name in ("images", "dev_images", "test_images", "img_dim"):
            if getattr(self, name) < 1:
                raise InputError(f"--{name} is {getattr(self, name)}, expected 1 or more")
        if self.seed < 0:
            raise InputError(f"--seed is {self.seed}, expected 0 or more")
        if self.testall_images is not None and (self.testall_images < FOLDS or self.testall_images % FOLDS):
            raise InputError(f"--testall_images is {self.testall_images}, expected a multiple of {FOLDS} (equal folds)")

    def parts(self, dataset: str) -> dict[str, int]:
        """How many images are drawn for which split; coco's test is cut from testall."""
        if dataset == "coco":
            testall = self.testall_images or FOLDS * self.test_images
            return {"train": self.images, "dev": self.dev_images, "testall": testall}
        return {"train": self.images, "dev": self.dev_images, "test": self.test_images}

    def rows_per_image(self, split: str) -> int:
        """How often the row of an image stands in the files of a split."""
        return 1 if split == "train" or self.one_row_per_image else CAPTIONS_PER_IMAGE


@dataclass
class _Drawn:
    """What the images and captions of one part say, in order; features and boxes are on disk already."""

    scenes: list[Counter] = field(default_factory=list)
    captions: list[str] = field(default_factory=list)
    mentions: list[Counter] = field(default_factory=list)


def write_sample(out: str | Path, config: SampleConfig, datasets: Sequence[str] = tuple(DATA_SETS)) -> None:
    """Write `out`/coco and `out`/f30k (or what `datasets` names) and `out`/bert.

    Raises InputError, before anything is drawn, when one of them holds other files or can't be written.
    """
    out = Path(out)
    for name in (*datasets, "bert"):
        _claim_folder(out / name, config)
    for dataset in datasets:
        _write_dataset(out / dataset, dataset, config)
    write_bert(out / "bert", vocabulary(), config.seed)


def _claim_folder(folder: Path, config: SampleConfig) -> None:
    """Leave a marker with the settings in `folder`, unless it holds files of somebody else."""
    if folder.is_dir() and any(folder.iterdir()) and not (folder / _MARKER).is_file():
        raise InputError(
            f"{folder}: holds files that are not sample data and would be overwritten; name another folder"
        )
    write_json(folder / _MARKER, {"made_by": "python -m lib.tools.sample", **asdict(config)})


def _write_dataset(folder: Path, dataset: str, config: SampleConfig) -> None:
    parts = config.parts(dataset)
    ids = _image_ids(dataset, sum(parts.values()), config.seed)
    mapping: dict[str, str] = {}
    with tqdm(total=len(ids), desc=f"drawing {dataset}", unit="image", disable=None) as bar:
        for number, (split, count) in enumerate(parts.items()):
            here, ids = ids[:count], ids[count:]
            files = [_file_name(dataset, split, image_id) for image_id in here]
            mapping.update(zip(map(str, here), files, strict=True))
            paths = [folder / DATA_SETS[dataset].images / file for file in files]
            stream = (config.seed, list(DATA_SETS).index(dataset), number)
            drawn = _write_split(folder / "precomp", split, here, paths, stream, config, bar)
            if split == "testall":
                _copy_first_fold(folder / "precomp", count // FOLDS, config.rows_per_image(split))
                caption_ids = _distinct(_LARGEST_COCO_CAPTION, len(drawn.captions), (config.seed, 2))
                write_annotations(folder / "cxc_annots", here, caption_ids, drawn.scenes, drawn.mentions)
    write_json(folder / "id_mapping.json", mapping)


def _write_split(
    folder: Path, split: str, ids: list[int], paths: list[Path], stream: tuple, config: SampleConfig, bar: tqdm
) -> _Drawn:
    """Draw the images of a split and write everything about them; features go to disk image by image."""
    repeat = config.rows_per_image(split)
    drawn = _Drawn()
    with ExitStack() as stack:
        features, boxes = (
            np.lib.format.open_memmap(
                stack.enter_context(atomic_write(folder / f"{split}_{kind}.npy")),
                "w+",
                np.float32,
                (len(ids) * repeat, REGIONS, size),
            )
            for kind, size in (("ims", config.img_dim), ("boxes", 4))
        )
        for number, path in enumerate(paths):
            rng = np.random.default_rng((*stream, number))
            scene = random_scene(rng)
            jpeg = io.BytesIO()
            draw_scene(scene, rng).save(jpeg, "JPEG", quality=90)
            with atomic_write(path) as temporary:
                temporary.write_bytes(jpeg.getvalue())
            rows = slice(number * repeat, (number + 1) * repeat)
            boxes[rows] = here = scene_boxes(scene, rng)
            features[rows] = region_features(Image.open(jpeg), here, config.img_dim)
            captions = write_captions(scene, rng)
            drawn.scenes.append(mentions_of(scene))
            drawn.captions += [caption.text for caption in captions]
            drawn.mentions += [caption.mentions for caption in captions]
            bar.update()
        features.flush()
        boxes.flush()
    _write_lines(folder / f"{split}_ids.txt", np.repeat(ids, repeat))
    _write_lines(folder / f"{split}_caps.txt", drawn.captions)
    return drawn


def _copy_first_fold(folder: Path, images: int, repeat: int) -> None:
    """Write the files of coco's test: the first `images` images of testall."""
    for kind in ("ims", "boxes"):
        with atomic_write(folder / f"test_{kind}.npy") as temporary, open(temporary, "wb") as file:
            np.save(file, np.load(folder / f"testall_{kind}.npy", mmap_mode="r")[: images * repeat])
    for kind, lines in (("ids", images * repeat), ("caps", images * CAPTIONS_PER_IMAGE)):
        text = (folder / f"testall_{kind}.txt").read_text(encoding="utf-8")
        _write_lines(folder / f"test_{kind}.txt", text.splitlines()[:lines])


def _write_lines(path: Path, lines) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def _image_ids(dataset: str, count: int, seed: int) -> list[int]:
    """Distinct numbers: scattered as COCO's are, or 0, 1, 2, ... as for Flickr30K."""
    return list(range(count)) if dataset == "f30k" else _distinct(_LARGEST_COCO_IMAGE, count, (seed, 1))


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
