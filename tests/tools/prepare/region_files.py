"""Small files of published region features, in each of their forms, for the tests."""

from __future__ import annotations

import base64

import numpy as np

DIM, BOXES = 8, 3
WIDTH, HEIGHT = 640, 480


def image(key: int, count: int = BOXES, dim: int = DIM):
    """Boxes (n, 4) and features (n, dim) that depend on the key alone."""
    rng = np.random.default_rng(key)
    low = rng.uniform(0, 200, (count, 2))
    return np.concatenate([low, low + 200], 1).astype("<f4"), rng.random((count, dim)).astype("<f4")


def encode(array: np.ndarray) -> str:
    return base64.b64encode(array.tobytes()).decode()


def bua_row(key, number: int | None = None, count: int = BOXES, **changes) -> str:
    boxes, features = image(key if number is None else number, count)
    row = {"image_id": key, "image_w": WIDTH, "image_h": HEIGHT, "num_boxes": count}
    row |= {"boxes": encode(boxes), "features": encode(features)}
    return "\t".join(str(value) for value in (row | changes).values())


def lxmert_row(key, number: int, count: int = BOXES, **changes) -> str:
    boxes, features = image(number, count)
    row = {"img_id": key, "img_h": HEIGHT, "img_w": WIDTH}
    row |= {
        name: encode(np.zeros(count, np.int64)) for name in ("objects_id", "objects_conf", "attrs_id", "attrs_conf")
    }
    row |= {"num_boxes": count, "boxes": encode(boxes), "features": encode(features)}
    return "\t".join(str(value) for value in (row | changes).values())


def write_npz(folder, key, number: int, count: int = BOXES, **changes):
    boxes, features = image(number, count)
    arrays = {"x": features, "bbox": boxes, "num_bbox": count, "image_h": HEIGHT, "image_w": WIDTH}
    info = np.array({"objects_id": [1], "image_id": key}, dtype=object)  # pickled, as in the published files
    np.savez_compressed(folder / f"{key}.npz", **({**arrays, "info": info} | changes))


def write_lines(path, rows, end="\r\n"):
    path.write_bytes("".join(row + end for row in rows).encode())
    return path
