"""Reading the annotations of Crisscrossed Captions (CxC, Parekh et al., EACL 2021), which grade COCO's 5K test images.

They are the JSON files `cxc_it.json`, `cxc_i2i.json`, `cxc_t2t.json`, or the official `sits_test.csv`, `sis_test.csv`,
`sts_test.csv` where a folder holds those instead. numpy alone.

Letters: N images, C captions, Q queries, P pairs.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lib.core.errors import InputError
from lib.evaluation.cxc.csv_files import RatedPair, read_pairs
from lib.evaluation.metrics import caption_owners
from lib.files.reading import read_ids, read_json

IMAGE_THRESHOLD = 2.5  # SIS ratings from here on are positives
CAPTION_THRESHOLD = 3.0  # STS and SITS ratings from here on are positives
ORIGINAL = 5.0  # stands for the rating of a caption with its own image where nobody rated them
JSON_FILES = ("cxc_it.json", "cxc_i2i.json", "cxc_t2t.json")
CSV_FILES = {"sts": "sts_test.csv", "sis": "sis_test.csv", "sits": "sits_test.csv"}
GALLERY_FILES = ("testall_ids.txt", "testall_capids.txt")


class GalleryIds(NamedTuple):
    """Ids of the images (N,) and captions (C,) in the order of the matrix, and the row of each caption's image (C,)."""

    image_ids: np.ndarray
    caption_ids: np.ndarray
    image_of_caption: np.ndarray


class Rated(NamedTuple):
    """Rated pairs: ids of both items (P,), (P,), in SITS caption then image, and the mean rating from 0 to 5 (P,)."""

    first: np.ndarray
    second: np.ndarray
    rating: np.ndarray


@dataclass(frozen=True)
class Positives:
    """Queries of one task and their positives, as row numbers of the gallery.

    `query` and `item` (P,) are distinct pairs sorted by query; `queries` (Q,) are all that count, pairs or none.
    """

    queries: np.ndarray
    query: np.ndarray
    item: np.ndarray


@dataclass(frozen=True)
class Annotations:
    """What CxC says about a gallery: ids in its order, positives per task, rated pairs for the correlation tasks."""

    image_ids: np.ndarray  # (N,)
    caption_ids: np.ndarray  # (C,)
    image_of_caption: np.ndarray  # (C,) row of each caption's own image
    positives: dict[str, Positives]  # i2t, t2i, i2i, t2t
    rated: dict[str, Rated] = field(default_factory=dict)  # sts, sis, sits, where all ratings are known


def read_annotations(
    folder: str | Path, image_ids: np.ndarray | None = None, caption_ids: np.ndarray | None = None
) -> Annotations:
    """Annotations of the gallery whose ids are given, or listed in `testall_ids.txt` and `testall_capids.txt` there.

    `image_ids` holds one id per image, or one per caption with each image's id repeated; `caption_ids` one per caption;
    both in the order of the matrix. Ratings of the correlation tasks come from the CSV files, else from JSON files that
    hold more than positives. Raises InputError naming the file that is missing or broken.
    """
    folder = Path(folder)
    has_csv = all((folder / name).is_file() for name in CSV_FILES.values())
    missing = [name for name in JSON_FILES if not (folder / name).is_file()]
    if missing and (not has_csv or len(missing) < len(JSON_FILES)):
        raise InputError(
            f"{folder}: {', '.join(missing)} missing; CxC needs {', '.join(JSON_FILES)}, "
            f"or instead of them the official {', '.join(CSV_FILES.values())}"
        )
    gallery = read_gallery(folder, image_ids, caption_ids)
    rated = read_csvs(folder) if has_csv else {}
    if missing:
        return _annotations(gallery, listed_in_csvs(rated, gallery), rated)
    listed = _listed_in_jsons(folder)
    if not has_csv:  # files that hold positives alone say nothing about correlation
        every = {"sis": (listed[2], IMAGE_THRESHOLD), "sts": (listed[3], CAPTION_THRESHOLD)}
        rated = {
            task: Rated(pairs.query, pairs.item, pairs.rating)
            for task, (pairs, threshold) in every.items()
            if (pairs.rating < threshold).any()
        }
    return _annotations(gallery, listed, rated)


def read_gallery(
    folder: Path, image_ids: np.ndarray | None = None, caption_ids: np.ndarray | None = None
) -> GalleryIds:
    """The gallery of the ids given, or else of those listed in `folder`; InputError when caption ids repeat."""
    image_ids = read_ids(folder / GALLERY_FILES[0]) if image_ids is None else np.asarray(image_ids)
    caption_ids = read_ids(folder / GALLERY_FILES[1]) if caption_ids is None else np.asarray(caption_ids)
    if len(np.unique(caption_ids)) != len(caption_ids):
        raise InputError(f"{folder}: caption ids repeat; expected {len(caption_ids)} distinct ones, one per caption")
    image_ids, image_of_caption = gallery_images(image_ids, len(caption_ids))
    return GalleryIds(image_ids, caption_ids, image_of_caption)


def gallery_images(image_ids: np.ndarray, n_captions: int) -> tuple[np.ndarray, np.ndarray]:
    """Distinct image ids in the order of the matrix's rows (N,), and the row of each caption's image (C,).

    `image_ids` has one entry per caption, or one per image where all have equally many captions.
    """
    if len(image_ids) == n_captions:
        distinct, first, owners = np.unique(image_ids, return_index=True, return_inverse=True)
        order = np.argsort(first)  # rows in order of first appearance
        row = np.empty_like(order)
        row[order] = np.arange(len(order))
        return distinct[order], row[owners]
    if len(np.unique(image_ids)) != len(image_ids):
        raise InputError(
            f"{len(image_ids)} image ids with repetitions for {n_captions} captions; expected one per caption or image"
        )
    return image_ids, caption_owners((len(image_ids), n_captions))


def read_csvs(folder: str | Path) -> dict[str, Rated]:
    """All ratings of the CSV files, in SITS caption before image; InputError naming file and line."""
    return {task: _rated(read_pairs(Path(folder) / name, task)) for task, name in CSV_FILES.items()}


def _rated(pairs: Iterable[RatedPair]) -> Rated:
    rows = [pair[:3] for pair in pairs]
    first, second, rating = zip(*rows, strict=True) if rows else ((), (), ())
    return Rated(np.array(first, np.int64), np.array(second, np.int64), np.array(rating, np.float64))


class Listed(NamedTuple):
    """Pairs as ids (P,), (P,) with ratings (P,), and the ids of all queries, those without a pair too."""

    query: np.ndarray
    item: np.ndarray
    rating: np.ndarray
    keys: np.ndarray


def _listed_in_jsons(folder: Path) -> tuple[Listed, ...]:
    """What the JSON files list for i2t, t2i, i2i, t2t."""
    it, i2i, t2t = (read_json(folder / name) for name in JSON_FILES)
    try:
        return _listed(it["i2t"]), _listed(it["t2i"]), _listed(i2i), _listed(t2t)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"{folder}: CxC JSON files of unknown form ({error}); expected {{id: [[id, score], ...]}}, "
            'in cxc_it.json under "i2t" and "t2i"; download or write them again'
        ) from None


def _listed(content: dict[str, list]) -> Listed:
    keys = np.array([int(key) for key in content], np.int64)
    pairs = [(item, rating) for items in content.values() for item, rating in items]
    query = np.repeat(keys, [len(items) for items in content.values()])
    item = np.array([int(item) for item, _ in pairs], np.int64)
    return Listed(query, item, np.array([rating for _, rating in pairs], np.float64), keys)


def listed_in_csvs(rated: dict[str, Rated], gallery: GalleryIds) -> tuple[Listed, ...]:
    """The same from CSV files: each caption with its own image, the other SITS pairs that are rated as positive, and
    all SIS and STS pairs, from both ends.

    CxC rates some pairs of images twice, as (a, b) and as (b, a): such a pair is positive when either rating is.
    """
    rows = zip(*map(np.ndarray.tolist, rated["sits"]), strict=True)
    sits = {(caption, image): rating for caption, image, rating in rows}
    own = zip(gallery.caption_ids.tolist(), gallery.image_ids[gallery.image_of_caption].tolist(), strict=True)
    positives = {pair: sits.get(pair, ORIGINAL) for pair in own}
    positives |= {pair: rating for pair, rating in sits.items() if rating >= CAPTION_THRESHOLD}
    captions, images = np.array(list(positives), np.int64).T  # (P,), (P,)
    ratings = np.array(list(positives.values()))
    return (
        Listed(images, captions, ratings, gallery.image_ids),
        Listed(captions, images, ratings, gallery.caption_ids),
        _both_ways(rated["sis"], gallery.image_ids),
        _both_ways(rated["sts"], gallery.caption_ids),
    )


def _both_ways(pairs: Rated, keys: np.ndarray) -> Listed:
    query, item = (np.stack(ends, axis=1).ravel() for ends in (pairs[:2], pairs[1::-1]))  # (2P,), (2P,)
    return Listed(query, item, np.repeat(pairs.rating, 2), keys)


def _annotations(gallery: GalleryIds, listed: tuple[Listed, ...], rated: dict[str, Rated]) -> Annotations:
    """Which queries count: I2T and T2I all that a file names; I2I those with a positive image anywhere, in the gallery
    or not; T2T those with a positive caption or a co-caption. With positives outside the gallery alone they are misses.
    """
    images, captions = Rows(gallery.image_ids), Rows(gallery.caption_ids)
    i2t, t2i, i2i, t2t = listed
    similar_images = i2i.rating >= IMAGE_THRESHOLD
    similar_captions = t2t.rating >= CAPTION_THRESHOLD
    first, second = _co_captions(gallery.image_of_caption)
    positives = {
        "i2t": _positives(images(i2t.query), captions(i2t.item), images(i2t.keys)),
        "t2i": _positives(captions(t2i.query), images(t2i.item), captions(t2i.keys)),
        "i2i": _positives(images(i2i.query[similar_images]), images(i2i.item[similar_images]), drop_self=True),
        "t2t": _positives(
            np.concatenate([captions(t2t.query[similar_captions]), first]),
            np.concatenate([captions(t2t.item[similar_captions]), second]),
            drop_self=True,
        ),
    }
    return Annotations(*gallery, positives, rated)


class Rows:
    """From ids to row numbers of a gallery, -1 where an id is not in it."""

    def __init__(self, ids: np.ndarray):
        self.order = np.argsort(ids)
        self.ids = ids[self.order]

    def __call__(self, ids: np.ndarray) -> np.ndarray:
        at = np.minimum(np.searchsorted(self.ids, ids), len(self.ids) - 1)
        return np.where(self.ids[at] == ids, self.order[at], -1)


def _co_captions(owners: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All ordered pairs of distinct captions of the same image, as rows."""
    order = np.argsort(owners, kind="stable")
    first, second = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for shift in range(1, int(np.bincount(owners).max())):
        a, b = order[:-shift], order[shift:]
        together = owners[a] == owners[b]
        first += [a[together], b[together]]
        second += [b[together], a[together]]
    return np.concatenate(first), np.concatenate(second)


def _positives(query: np.ndarray, item: np.ndarray, keys: np.ndarray | None = None, drop_self=False) -> Positives:
    """Distinct pairs of rows within the gallery; `keys` are the rows that count as queries, by default `query`."""
    asked = query >= 0
    if drop_self:
        asked &= query != item
    queries = np.unique(query[asked] if keys is None else keys[keys >= 0])
    pairs = np.unique(np.stack([query, item], 1)[asked & (item >= 0)], axis=0)  # (P, 2)
    return Positives(queries, pairs[:, 0], pairs[:, 1])
