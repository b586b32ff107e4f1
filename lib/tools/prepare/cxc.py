"""The annotation files of Crisscrossed Captions (CxC), made from its official CSVs and the ids of `testall`."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from lib.core.errors import InputError
from lib.datasets.layout import precomp_folder
from lib.evaluation.cxc.annotations import (
    CSV_FILES,
    GALLERY_FILES,
    JSON_FILES,
    GalleryIds,
    Listed,
    listed_in_csvs,
    read_csvs,
    read_gallery,
)
from lib.evaluation.cxc.csv_files import read_pairs
from lib.evaluation.eccv import coco_test_gallery, read_eccv
from lib.files.reading import read_ids
from lib.tools.prepare.outputs import Target, as_json, as_lines

WHERE_TO_GET = "the official repository google-research-datasets/Crisscrossed-Captions"


def prepare_cxc(csv_folder: Path, target: Target) -> None:
    """Write `cxc_annots/`: `cxc_it.json`, `cxc_i2i.json`, `cxc_t2t.json`, `testall_ids.txt`, `testall_capids.txt`.

    Raises InputError when a CSV is missing or broken, and when `testall` pairs captions and images otherwise than CxC.
    """
    gallery = find_gallery(target.data_path)
    if missing := [name for name in CSV_FILES.values() if not (csv_folder / name).is_file()]:
        raise InputError(f"{csv_folder}: {', '.join(missing)} missing; get it from {WHERE_TO_GET}")
    check_gallery(gallery, csv_folder / CSV_FILES["sits"])
    i2t, t2i, i2i, t2t = map(by_query, listed_in_csvs(read_csvs(csv_folder), gallery))
    ids = gallery.image_ids[gallery.image_of_caption], gallery.caption_ids  # (C,), (C,)
    texts = [*map(as_lines, ids), *map(as_json, ({"t2i": t2i, "i2t": i2t}, i2i, t2t))]
    names = (*GALLERY_FILES, *JSON_FILES)
    target.write({target.data_path / "cxc_annots" / name: text for name, text in zip(names, texts, strict=True)})
    for task, lists in (("captions to images", t2i), ("images", i2i), ("captions", t2t)):
        print(f"{task}: {sum(map(len, lists.values())):,} pairs of {len(lists):,} queries")


def find_gallery(data_path: Path) -> GalleryIds:
    """The gallery of COCO `testall`, from `precomp/`, from `cxc_annots/`, or else the ids in the package eccv-caption.

    Raises InputError where `precomp/testall_ids.txt` lists other images than the package, or in another order.
    """
    folders = [precomp_folder(data_path, "coco"), data_path / "cxc_annots"]
    for folder in folders:
        if (folder / GALLERY_FILES[1]).is_file():
            return read_gallery(folder)
    print(f"{folders[0] / GALLERY_FILES[1]}: missing; the ids of testall's captions are those of eccv-caption")
    images = folders[0] / GALLERY_FILES[0]
    if not images.is_file():
        return coco_test_gallery()
    ids = read_ids(images)
    return read_eccv([], ids[np.flatnonzero(np.diff(ids, prepend=-1))]).gallery


def check_gallery(gallery: GalleryIds, sits: Path) -> None:
    """Raises InputError when CxC knows a caption of ours as that of another image, and when it knows none of them."""
    image_ids = gallery.image_ids[gallery.image_of_caption].tolist()  # C
    image_of = dict(zip(gallery.caption_ids.tolist(), image_ids, strict=True))
    original = {pair.id1: pair.id2 for pair in read_pairs(sits, "sits") if pair.method == "c2i_original"}
    known = original.keys() & image_of.keys()
    if not known:
        raise InputError(
            f"{sits}: rates none of the {len(image_of):,} captions of testall; is it that of the test set?"
        )
    if wrong := [caption for caption in known if original[caption] != image_of[caption]]:
        caption = min(wrong)
        raise InputError(
            f"{sits}: caption {caption} belongs to image {original[caption]}, in testall to image {image_of[caption]}; "
            f"{' and '.join(GALLERY_FILES)} don't fit together, run `prepare captions` again"
        )


def by_query(listed: Listed) -> dict[int, list]:
    """Query → [[item, rating], …]; the queries of the gallery come first, rated or not."""
    lists: dict[int, list] = {query: [] for query in listed.keys.tolist()}
    for query, item, rating in zip(listed.query.tolist(), listed.item.tolist(), listed.rating.tolist(), strict=True):
        lists.setdefault(query, []).append([item, rating])
    return lists
