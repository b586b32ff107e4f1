"""Small folders of CxC annotations, as JSON and as the official CSV files, for the tests."""

from __future__ import annotations

import csv
import json

import numpy as np

from lib.evaluation.cxc.annotations import CSV_FILES
from lib.evaluation.cxc.csv_files import COLUMNS

N, C, D = 12, 36, 3
IMAGES = 500 + 7 * np.arange(N)[::-1]  # ids neither sorted nor dense
CAPTIONS = 9000 + 3 * np.random.default_rng(0).permutation(C)


def write_folder(folder, images=IMAGES, captions=CAPTIONS, seed=1):
    """Random JSON annotations; some ids lie outside the gallery, some lists are empty, some queries are missing."""
    rng = np.random.default_rng(seed)
    outside = [1, 2]

    def pairs(queries, items, low, per_query, dropped=0):
        pool = [*items.tolist(), *outside]
        lists = {"3": [[int(items[0]), 5.0]]}  # a query outside the gallery
        for query in queries[dropped:].tolist():
            lists[str(query)] = [
                [int(rng.choice(pool)), float(rng.uniform(low, 5))] for _ in range(rng.integers(per_query))
            ]
        return lists

    t2i = pairs(captions, images, 3, 3, dropped=2)
    i2t = pairs(images, captions, 3, 8)
    write(folder, "cxc_it.json", {"t2i": t2i, "i2t": i2t})
    write(folder, "cxc_i2i.json", pairs(images, images, 0, 6))
    write(folder, "cxc_t2t.json", pairs(captions, captions, 0, 6))
    (folder / "testall_ids.txt").write_text("\n".join(map(str, np.repeat(images, len(captions) // len(images)))))
    (folder / "testall_capids.txt").write_text("\n".join(map(str, captions)) + "\n")
    return folder


def write(folder, name, content):
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(json.dumps(content))


def image_name(image):
    return f"COCO_val2014_{image:012d}.jpg"


def caption_name(caption):
    return f"COCO_val2014:sentid:{caption}"


def write_csvs(folder):
    """Ratings of IMAGES and CAPTIONS in the official columns; returns the SITS rows as (caption, image, rating)."""
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(3)
    ratings = {"sts": [], "sis": [], "sits": []}
    for _ in range(60):
        ratings["sts"].append((*rng.choice(CAPTIONS, 2, replace=False), rng.integers(0, 501) / 100))
        ratings["sis"].append((*rng.choice(IMAGES, 2, replace=False), rng.integers(0, 501) / 100))
        ratings["sits"].append((rng.choice(CAPTIONS), rng.choice(IMAGES), rng.integers(0, 501) / 100))
    ratings["sits"] += [(c, i, 1.5) for c, i in zip(CAPTIONS, np.repeat(IMAGES, C // N), strict=True)]
    ratings = {task: list({row[:2]: row for row in rows}.values()) for task, rows in ratings.items()}  # each pair once
    for task, name in CSV_FILES.items():
        with open(folder / name, "w", newline="") as file:
            out = csv.writer(file)
            out.writerow(COLUMNS[task])
            left, right = ("image" if "image" in column else "caption" for column in COLUMNS[task][:2])
            names = {"image": image_name, "caption": caption_name}
            out.writerows([names[left](a), names[right](b), r, "x"] for a, b, r in ratings[task])
    return ratings
