"""The annotation files of Crisscrossed Captions (CxC), made from its official CSVs and the caption ids of `testall`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from lib.errors import InputError
from lib.evaluation.cxc_csv import COLUMNS, RatedPair, csv_kind, read_pairs
from lib.tools.prepare.ids import read_gallery
from lib.tools.prepare.outputs import as_json, as_lines, write_new

POSITIVE = 3.0  # SITS: a caption and an image rated 3 or more belong together
ORIGINAL = 5.0  # stands for the rating of an image's own caption that nobody rated
WHERE_TO_GET = "the official repository google-research-datasets/Crisscrossed-Captions"


def prepare_cxc(csv_folder: Path, data_path: Path, overwrite: bool = False, say: Callable[[str], None] = print) -> None:
    """Write `cxc_annots/`: `cxc_it.json`, `cxc_i2i.json`, `cxc_t2t.json`, `testall_ids.txt`, `testall_capids.txt`.

    Raises InputError when a CSV is missing or broken, and when `testall` pairs captions and images otherwise than CxC.
    """
    image_of = read_gallery(data_path)
    csvs = find_csvs(csv_folder)
    sits = list(read_pairs(csvs["sits"], "sits"))
    check_gallery(image_of, sits, csvs["sits"])
    t2i, i2t = image_text_positives(image_of, sits)
    i2i = rated_items(read_pairs(csvs["sis"], "sis"), image_of.values())
    t2t = rated_items(read_pairs(csvs["sts"], "sts"), image_of)
    folder = data_path / "cxc_annots"
    files = {
        folder / "testall_ids.txt": as_lines(image_of.values()),
        folder / "testall_capids.txt": as_lines(image_of),
        folder / "cxc_it.json": as_json({"t2i": t2i, "i2t": i2t}),
        folder / "cxc_i2i.json": as_json(i2i),
        folder / "cxc_t2t.json": as_json(t2t),
    }
    written = write_new(files, overwrite)
    say(f"gallery: {len(set(image_of.values())):,} images, {len(image_of):,} captions")
    say(f"images and captions: {_entries(t2i):,} positive pairs, {len(t2i):,} captions, {len(i2t):,} images")
    say(f"images: {_entries(i2i):,} ratings; captions: {_entries(t2t):,} ratings (each counted from both ends)")
    say(f"wrote {len(written)} files to {folder}; {len(files) - len(written)} held the same already")


def find_csvs(folder: Path) -> dict[str, Path]:
    """`sis`, `sts`, `sits` → the CSV of that kind in `folder`, told by its header.

    Raises InputError when one is missing or there are two of a kind (`*_test.csv` are preferred).
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; expected the CSV files of {WHERE_TO_GET}")
    paths = sorted(folder.glob("*_test.csv")) or sorted(folder.glob("*.csv"))
    found: dict[str, Path] = {}
    for path in paths:
        kind = csv_kind(path)
        if kind in found:
            raise InputError(f"{folder}: {found[kind].name} and {path.name} both hold {kind.upper()} ratings; keep one")
        found[kind] = path
    if missing := [f"{kind}_test.csv" for kind in COLUMNS if kind not in found]:
        raise InputError(f"{folder}: {', '.join(missing)} missing; get it from {WHERE_TO_GET}")
    return found


def check_gallery(image_of: dict[int, int], sits: list[RatedPair], path: Path) -> None:
    """Raises InputError when CxC calls a pair original and our ids give that caption to another image, and when the
    file rates none of our captions.
    """
    rated = 0
    for caption, image, _, method in sits:
        if method == "c2i_original" and caption in image_of:
            rated += 1
            if image_of[caption] != image:
                raise InputError(
                    f"{path}: caption {caption} belongs to image {image}, in testall to image {image_of[caption]}; "
                    "testall_ids.txt and testall_capids.txt don't fit together, run `prepare captions` again"
                )
    if not rated:
        raise InputError(
            f"{path}: rates none of the {len(image_of):,} captions of testall; is it the file of the test set?"
        )


def image_text_positives(
    image_of: dict[int, int], sits: Iterable[RatedPair]
) -> tuple[dict[int, list], dict[int, list]]:
    """Caption → [[image, rating], …] and image → [[caption, rating], …] of pairs rated 3 or more and original pairs."""
    ratings = {(caption, image): score for caption, image, score, _ in sits}
    positives = {pair: ratings.get(pair, ORIGINAL) for pair in image_of.items()}  # originals first, in gallery order
    positives |= {pair: score for pair, score in ratings.items() if score >= POSITIVE}
    images_of: dict[int, list] = {}
    captions_of: dict[int, list] = {}
    for (caption, image), score in positives.items():
        images_of.setdefault(caption, []).append([image, score])
        captions_of.setdefault(image, []).append([caption, score])
    return images_of, captions_of


def rated_items(pairs: Iterable[RatedPair], gallery: Iterable[int]) -> dict[int, list]:
    """Item → [[other item, rating], …], every rating from both its ends; items of the gallery come first, rated or not.

    CxC rates some pairs of images twice, as (a, b) and as (b, a), with two results: both are listed, and the pair is
    positive when either rating is.
    """
    others: dict[int, list] = {item: [] for item in gallery}
    for one, other, score, _ in pairs:
        others.setdefault(one, []).append([other, score])
        others.setdefault(other, []).append([one, score])
    return others


def _entries(mapping: dict[int, list]) -> int:
    return sum(map(len, mapping.values()))
