"""`check`: reports for every split what is there, whether it fits together, what is missing and where to get it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

import numpy as np
from tqdm import tqdm

from lib.core.errors import InputError
from lib.datasets import DATA_SETS, data_set
from lib.datasets.images import ImageFolder
from lib.datasets.layout import image_folder, precomp_folder, read_id_mapping
from lib.evaluation.cxc.annotations import CSV_FILES, GALLERY_FILES, JSON_FILES
from lib.files.feature_rows import INTERRUPTED
from lib.files.images import DEFAULT_LIMITS, ImageLimits
from lib.files.reading import read_lines
from lib.tools.prepare.inspection import RAW, REGIONS, SplitReport, inspect_split

CAPTIONS, CXC, WEIGHTS = "captions", "CxC annotations", "weights of the detector backbone"
PUBLISHED = {
    CAPTIONS: "`prepare captions` makes them from Karpathy's splits (dataset_coco.json, dataset_flickr30k.json)",
    REGIONS: "Kaggle data set kuanghueilee/scan-features of the SCAN authors; or `prepare regions`",
    WEIGHTS: "linked in the README of VSE-infinity (woodfrog/vse_infty)",
}
SOURCES = {
    "coco": {
        **PUBLISHED,
        RAW: "COCO 2014 train and val images, cocodataset.org, as train2014/ and val2014/",
        CXC: "`prepare cxc` makes them from the CSV files of google-research-datasets/Crisscrossed-Captions",
    },
    "f30k": {**PUBLISHED, RAW: "the Flickr30K images, from its authors after a request form"},
}
OWN_SOURCES = {
    CAPTIONS: "`prepare own` makes them from a folder of images and a file of captions",
    REGIONS: "`python -m lib.tools.extract` makes them from the images",
    RAW: "your images, or a link to their folder such as `prepare own` makes",
}


def check_data(data_path: Path, data_name: str, limits: ImageLimits = DEFAULT_LIMITS) -> int:
    """Print the state of a data set; returns 1 when training or evaluation could not run on it, else 0.

    Training needs `train` and `dev`, evaluation the split that eval.py takes, as region features or as raw images.
    Raises InputError when `data_path` is no folder.
    """
    data_set(data_name)
    if not data_path.is_dir():
        raise InputError(f"{data_path}: no such folder; expected the data set's folder, such as data/{data_name}")
    try:
        where, problems = image_folder(data_path, data_name), []
        images = ImageFolder(where, read_id_mapping(data_path), limits=limits)
    except InputError as error:
        images, problems = None, [f"{RAW}: {error}"]
    names = tqdm(_split_names(data_path, data_name), "check", disable=None)
    reports = {name: inspect_split(data_path, data_name, name, images) for name in names}
    for report in reports.values():
        print(f"{report.name}:", *_describe(report, images), sep="\n  ")
    problems += [*_errors(reports), *_warnings(reports, data_path), *_missing(reports, data_path, data_name)]
    if problems:
        print("", *problems, sep="\n")
    return _verdict(reports, data_name)


def _split_names(data_path: Path, data_name: str) -> list[str]:
    """The splits of the data set, then the others that are there."""
    try:
        present = sorted(precomp_folder(data_path, data_name).glob("*_caps.txt"))
    except InputError:
        present = []
    names = (path.name.removesuffix("_caps.txt") for path in present)
    return list(dict.fromkeys((*data_set(data_name).splits, *names)))


def _describe(report: SplitReport, images: ImageFolder | None) -> Iterator[str]:
    if report.split is None:
        yield "does not fit together, see below" if report.files else "no captions file"
        return
    split, files = report.split, report.split.files
    counts = np.bincount(split.image_of_caption)  # (N,)
    per_image = f"{counts.min()} to {counts.max()}" if counts.min() < counts.max() else f"{counts.max()}"
    yield f"{split.n_images:,} images, {split.n_captions:,} captions, {per_image} per image"
    if (in_file := len(read_lines(files.captions))) > split.n_captions:
        yield f"{in_file:,} captions in the file; the first {split.n_captions:,} are used"
    if (features := split.features) is not None:
        size = tqdm.format_sizeof(features.path.stat().st_size, "B")
        beside = (f", {kind}" for kind in ("boxes", "mask") if getattr(files, kind))
        yield f"features {features.shape} {features.dtype}, {size}{''.join(beside)}"
    for word, index in (("first", 0), ("last", -1)):
        image_id = int(split.image_ids[split.image_of_caption[index]])
        path = f" ({images.names.get(image_id, 'not in id_mapping.json')})" if images is not None else ""
        yield f"{word} caption: {split.captions[index]!r} of image {image_id}{path}"
    for line in report.warnings:
        yield f"warning: {line}"


def _errors(reports: dict[str, SplitReport]) -> list[str]:
    """Each error once, with the splits and ways that it concerns."""
    concerned = defaultdict(list)
    for name, report in reports.items():
        for way, error in report.errors.items():
            concerned[error].append(f"{name} as {way}")
    return [f"error: {', '.join(places)}: {error}" for error, places in concerned.items()]


def _warnings(reports: dict[str, SplitReport], data_path: Path) -> Iterator[str]:
    """What is odd about the splits together, and features that are not finished."""
    splits = {name: report.split for name, report in reports.items() if report.split and report.split.files.ids}
    ids = {name: split.image_ids.tolist() for name, split in splits.items()}
    for one, other in combinations(ids, 2):
        common = set(ids[one]) & set(ids[other])
        if {one, other} == {"test", "testall"}:
            if ids["test"] != ids["testall"][: len(ids["test"])]:
                yield "warning: the images of test are not the first ones of testall"
        elif common:
            yield f"warning: {len(common):,} images are in {one} and in {other}, first {min(common)}"
    for path in sorted(data_path.glob(f"*/{INTERRUPTED}")):
        yield f"warning: {path}: a run that writes features was interrupted; run it again to continue where it stopped"


def _missing(reports: dict[str, SplitReport], data_path: Path, data_name: str) -> list[str]:
    """What is not there, with its source; own data, which has its images, needs no features unless a split has them."""
    row, sources = data_set(data_name), SOURCES.get(data_name, OWN_SOURCES)
    standard = [reports[name] for name in row.splits]
    texts = [f"{report.name}_caps.txt, {report.name}_ids.txt" for report in standard if not report.files]
    features = [f"{report.name}_ims.npy" for report in standard if not (report.files and report.files.features)]
    if sources is OWN_SOURCES and len(features) == len(standard):
        features = []
    weights = data_path.absolute().parent / "weights" / "original_updown_backbone.pth"
    has_images = any((data_path / each.images).is_dir() for each in (row, *DATA_SETS.values()))
    absent = {
        CAPTIONS: texts + ["id_mapping.json"] * (not (data_path / "id_mapping.json").is_file()),
        REGIONS: features,
        RAW: [data_path / row.images] * (not has_images),
        CXC: [data_path / "cxc_annots"] * (not _has_cxc(data_path / "cxc_annots")),
        WEIGHTS: [weights] * (not weights.is_file()),
    }
    named = {what: ", ".join(map(str, absent[what])) for what in sources}
    return [f"missing: {names} ({what}): {sources[what]}" for what, names in named.items() if names]


def _has_cxc(folder: Path) -> bool:
    forms = ([*GALLERY_FILES, *JSON_FILES], [*GALLERY_FILES, *CSV_FILES.values()])
    return any(all((folder / name).is_file() for name in form) for form in forms)


def _verdict(reports: dict[str, SplitReport], data_name: str) -> int:
    print()
    possible = True
    for task, names in (("training", ("train", "dev")), ("evaluation", (data_set(data_name).evaluated,))):
        ways = [way for way in (REGIONS, RAW) if all(way in reports[name].ways for name in names)]
        how = f"can run on {' and on '.join(ways)}" if ways else "cannot run"
        print(f"{task} ({' and '.join(names)}): {how}")
        possible = possible and bool(ways)
    return 0 if possible else 1
