"""Where the files of a data set are, and what to say when one is missing."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from lib.core.errors import InputError
from lib.datasets import DATA_SETS, PLAIN_NAME, data_set
from lib.files.reading import read_json


@dataclass(frozen=True)
class SplitFiles:
    """The files of one split; those that are optional and absent are None."""

    captions: Path  # {split}_caps.txt, one caption per line
    ids: Path | None  # {split}_ids.txt, one image id per image or per caption
    features: Path | None  # {split}_ims.npy (N, R, img_dim), one row per image or per caption
    boxes: Path | None  # {split}_boxes.npy (N, R, 4), x1 y1 x2 y2 in pixels
    mask: Path | None  # {split}_mask.npy (N, R) bool, True = real region


def precomp_folder(data_path: str | Path, data_name: str) -> Path:
    """The folder of captions, ids and features: `precomp`, else `<data_name>_precomp`, else `<data_name>`.

    Raises InputError that names every folder looked for.
    """
    data_set(data_name)
    data_path = Path(data_path)
    candidates = [data_path / name for name in ("precomp", f"{data_name}_precomp", data_name)]
    for folder in candidates:
        if folder.is_dir():
            return folder
    looked_for = ", ".join(str(folder) for folder in candidates)
    hint = "is no folder" if data_path.exists() else "does not exist"
    problem = "holds no precomputed files" if data_path.is_dir() else hint
    raise InputError(f"{data_path} {problem}; looked for {looked_for}; --data_path names the folder above them")


def find_split(data_path: str | Path, data_name: str, split: str, need_features: bool = True) -> SplitFiles:
    """Find the files of a split.

    A split beside those of the data set is taken when its captions file exists. Raises InputError that names
    the files looked for and the splits that are there.
    """
    folder = precomp_folder(data_path, data_name)
    files = {kind: folder / f"{split}_{kind}" for kind in ("caps.txt", "ids.txt", "ims.npy", "boxes.npy", "mask.npy")}
    if not PLAIN_NAME.fullmatch(split) or not files["caps.txt"].is_file():
        known = split in data_set(data_name).splits
        problem = f"no captions file {split}_caps.txt" if known else f"no split {split!r} of {data_name}"
        raise InputError(f"{folder}: {problem}; {_present(folder)}")
    if need_features and not files["ims.npy"].is_file():
        arrays = sorted(path.name for path in folder.glob("*.npy"))
        present = f"arrays there: {', '.join(arrays)}" if arrays else "no .npy file is there"
        raise InputError(f"{folder}: no features file {split}_ims.npy ({present}); put the region features there")
    found = {kind: _file(path) for kind, path in files.items()}
    return SplitFiles(
        captions=files["caps.txt"],
        ids=found["ids.txt"],
        features=found["ims.npy"],
        boxes=found["boxes.npy"],
        mask=found["mask.npy"],
    )


def _file(path: Path) -> Path | None:
    """The path of a file that may be missing; InputError where something else is in its place, as a broken link."""
    if not path.is_file() and os.path.lexists(path):
        found = "a folder" if path.is_dir() else "no file, or a link to none"
        raise InputError(f"{path}: is {found}, expected a file; remove it or put the file there")
    return path if path.is_file() else None


def image_folder(data_path: str | Path, data_name: str) -> Path:
    """The folder of raw images that the data set's row names; that of another row serves when it is absent.

    Raises InputError that names every folder looked for.
    """
    names = dict.fromkeys([data_set(data_name).images, *(row.images for row in DATA_SETS.values())])
    for name in names:
        if (Path(data_path) / name).is_dir():
            return Path(data_path) / name
    looked_for = ", ".join(str(Path(data_path) / name) for name in names)
    raise InputError(f"no folder of raw images; looked for {looked_for}; unpack or link the {data_name} images there")


def read_id_mapping(data_path: str | Path) -> dict[str, str]:
    """Read `id_mapping.json`: image id → path under the image folder. Raises InputError when missing or malformed."""
    path = Path(data_path) / "id_mapping.json"
    mapping = read_json(path)
    if not isinstance(mapping, dict) or not all(isinstance(name, str) for name in mapping.values()):
        raise InputError(f'{path}: expected one JSON object {{"<image id>": "path under the image folder", …}}')
    return mapping


def _present(folder: Path) -> str:
    splits = sorted(path.name.removesuffix("_caps.txt") for path in folder.glob("*_caps.txt"))
    if splits:
        return f"splits there: {', '.join(splits)}"
    names = sorted(path.name for path in folder.iterdir())
    listing = ", ".join(names[:8]) + (", …" if len(names) > 8 else "")
    return f"files there: {listing}" if names else "the folder is empty"
