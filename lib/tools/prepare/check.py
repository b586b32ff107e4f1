"""`check`: says for every split what is there, whether it fits together, what is missing and where to get it."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from pathlib import Path

from tqdm import tqdm

from lib.datasets import data_set
from lib.datasets.layout import precomp_folder
from lib.errors import InputError
from lib.tools.prepare.inspection import Images, SplitReport, find_images, inspect_split

SOURCES = {
    "captions": "`prepare captions` makes them from Karpathy's splits (dataset_coco.json, dataset_flickr30k.json)",
    "features": "Kaggle data set kuanghueilee/scan-features of the SCAN authors; or `prepare regions`",
    "images": {
        "coco": "COCO 2014 train and val images, cocodataset.org, as train2014/ and val2014/",
        "f30k": "the Flickr30K images, from its authors after a request form",
    },
    "cxc": "`prepare cxc` makes them from the CSV files of google-research-datasets/Crisscrossed-Captions",
    "weights": "linked in the README of VSE-infinity (woodfrog/vse_infty)",
}
CXC_JSON = ("cxc_it.json", "cxc_i2i.json", "cxc_t2t.json", "testall_ids.txt", "testall_capids.txt")
CXC_CSV = ("sts_test.csv", "sis_test.csv", "sits_test.csv")
WEIGHTS = "original_updown_backbone.pth"


def check_data(data_path: Path, data_name: str, say: Callable[[str], None] = print) -> int:
    """Print the state of a data set; returns 1 when training or evaluation could not run on it, else 0.

    Training needs `train` and `dev`, evaluation `test` (COCO: `testall`), as region features or as raw images. Raises
    InputError when `data_path` is no folder.
    """
    data_set(data_name)
    if not data_path.is_dir():
        raise InputError(f"{data_path}: no such folder; expected the data set's folder, such as data/{data_name}")
    images = find_images(data_path, data_name)
    names = _split_names(data_path, data_name)
    reports = {name: inspect_split(data_path, data_name, name, images) for name in tqdm(names, "check", disable=None)}
    for line in _table(reports.values()):
        say(line)
    for report in reports.values():
        _describe(report, images, say)
    say("")
    for line in images.errors:
        say(f"raw images: {line}")
    for line in _across(reports, data_name, data_path):
        say(f"warning: {line}")
    for line in _missing(reports, images, data_path, data_name):
        say(f"missing: {line}")
    return _verdict(reports, data_name, say)


def _split_names(data_path: Path, data_name: str) -> list[str]:
    names = list(_standard(data_name))
    try:
        present = precomp_folder(data_path, data_name).glob("*_caps.txt")
    except InputError:
        return names
    return names + sorted({path.name.removesuffix("_caps.txt") for path in present} - set(names))


def _table(reports) -> list[str]:
    rows = [("split", "images", "captions", "per image", "features", "dtype", "size", "boxes", "mask", "image files")]
    rows += [_row(report) for report in reports]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _row(report: SplitReport) -> tuple[str, ...]:
    images = per_image = "-"
    if report.split is not None:
        images = f"{report.split.n_images:,}"
        fewest, most = report.captions_per_image
        per_image = str(most) if fewest == most else f"{fewest} to {most}"
    captions = "-" if report.captions is None else f"{report.captions:,}"
    shape, dtype, size = ("-",) * 3
    if report.features is not None:
        shape, dtype, size = str(report.features[0]), report.features[1], human_size(report.features[2])
    found = "-" if report.images_found is None else "{:,} of {:,}".format(*report.images_found)
    yes = {True: "yes", False: "-"}
    return report.name, images, captions, per_image, shape, dtype, size, yes[report.boxes], yes[report.mask], found


def human_size(size: float) -> str:
    """Bytes for people: 8.6 GB."""
    units = ["B", "kB", "MB", "GB", "TB"]
    while size >= 1000 and len(units) > 1:
        size, units = size / 1000, units[1:]
    return f"{size:.0f} B" if units[0] == "B" else f"{size:.1f} {units[0]}"


def _describe(report: SplitReport, images: Images, say: Callable[[str], None]) -> None:
    if not report.there:
        return
    say("")
    say(f"{report.name}:")
    for line in report.examples:
        say(f"  {line}")
    for line in report.text_errors + report.region_errors:
        say(f"  error: {line}")
    for line in report.image_errors:
        if line not in images.errors:
            say(f"  raw images: {line}")
    for line in report.warnings:
        say(f"  warning: {line}")


def _across(reports: dict[str, SplitReport], data_name: str, data_path: Path) -> list[str]:
    lines = []
    ids = {
        name: report.split.image_ids.tolist()
        for name, report in reports.items()
        if report.split is not None and report.split.files.ids is not None
    }
    for one, other in combinations(ids, 2):
        common = set(ids[one]) & set(ids[other])
        if {one, other} == {"test", "testall"}:
            if ids["test"] != ids["testall"][: len(ids["test"])]:
                lines.append("the images of test are not the first ones of testall")
        elif common:
            lines.append(f"{len(common):,} images are in {one} and in {other}, first {min(common)}")
    for path in sorted(data_path.glob("*/*_regions.partial.json")):
        lines.append(f"{path}: `prepare regions` was interrupted; run it again, it goes on where it stopped")
    return lines


def _missing(reports: dict[str, SplitReport], images: Images, data_path: Path, data_name: str) -> list[str]:
    absent = [reports[name] for name in _standard(data_name)]
    texts = [f"{report.name}_caps.txt, {report.name}_ids.txt" for report in absent if not report.there]
    if images.mapping is None:
        texts.append("id_mapping.json")
    features = [f"{report.name}_ims.npy" for report in absent if report.lacks_features]
    cxc = data_path / "cxc_annots"
    has_cxc = any(all((cxc / name).is_file() for name in names) for names in (CXC_JSON, CXC_CSV))
    weights = data_path.absolute().parent / "weights" / WEIGHTS
    wanted = [
        (texts, "captions", SOURCES["captions"]),
        (features, "region features", SOURCES["features"]),
        (
            [data_path / data_set(data_name).images] * (images.folder is None),
            "raw images",
            SOURCES["images"][data_name],
        ),
        ([cxc] * (data_name == "coco" and not has_cxc), "--evaluate_cxc", SOURCES["cxc"]),
        ([weights] * (not weights.is_file()), "weights of the detector backbone", SOURCES["weights"]),
    ]
    return [f"{', '.join(map(str, files))} ({purpose}): {source}" for files, purpose, source in wanted if files]


def _standard(data_name: str) -> tuple[str, ...]:
    return data_set(data_name).splits


def _verdict(reports: dict[str, SplitReport], data_name: str, say: Callable[[str], None]) -> int:
    needs = {"training": ("train", "dev"), "evaluation": ("testall" if data_name == "coco" else "test",)}
    say("")
    possible = True
    for task, names in needs.items():
        regions = all(reports[name].runs_on_regions for name in names)
        raw = all(reports[name].runs_on_images for name in names)
        ways = [way for way, runs in (("region features", regions), ("raw images", raw)) if runs]
        say(f"{task} ({' and '.join(names)}): " + (f"can run on {' and on '.join(ways)}" if ways else "cannot run"))
        possible = possible and bool(ways)
    return 0 if possible else 1
