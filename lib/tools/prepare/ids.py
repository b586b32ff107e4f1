"""The ids of the layout as the importers need them: images of a split in row order, captions of `testall`."""

from __future__ import annotations

from pathlib import Path

from lib.datasets.layout import precomp_folder
from lib.errors import InputError
from lib.files import read_ids


def image_ids(path: Path) -> list[int]:
    """The distinct image ids of `{split}_ids.txt` in order, whether each stands once or once per caption.

    Raises InputError with the line when an id comes back after another one.
    """
    ids: dict[int, int] = {}
    previous = None
    for line, image_id in enumerate(read_ids(path).tolist(), start=1):
        if image_id != previous and image_id in ids:
            raise InputError(
                f"{path}, line {line}: id {image_id} was in line {ids[image_id]} already; ids must be unique"
            )
        ids.setdefault(image_id, line)
        previous = image_id
    return list(ids)


def needed_ids(data_path: Path, data_name: str, splits: list[str] | None) -> list[tuple[str, Path, list[int]]]:
    """(split, folder, image ids) of the named splits, or of every split that has an ids file.

    Raises InputError when a split has none.
    """
    folder = precomp_folder(data_path, data_name)
    splits = splits or sorted(path.name.removesuffix("_ids.txt") for path in folder.glob("*_ids.txt"))
    if not splits:
        raise InputError(f"{folder}: no {{split}}_ids.txt there; `prepare captions` writes them")
    for split in splits:
        if not (folder / f"{split}_ids.txt").is_file():
            raise InputError(
                f"{folder}: no {split}_ids.txt, which says which images to take; `prepare captions` writes it"
            )
    return [(split, folder, image_ids(folder / f"{split}_ids.txt")) for split in splits]


def read_gallery(data_path: Path) -> dict[int, int]:
    """Caption id → image id of COCO `testall`, in caption order, from `precomp/` or else from `cxc_annots/`.

    Raises InputError when ids or caption ids are missing, repeat, or don't fit together.
    """
    folders = [precomp_folder(data_path, "coco"), data_path / "cxc_annots"]
    folder = next((folder for folder in folders if (folder / "testall_capids.txt").is_file()), folders[0])
    ids, capids = folder / "testall_ids.txt", folder / "testall_capids.txt"
    if not capids.is_file():
        raise InputError(f"{capids}: missing, it names the captions of testall in order; `prepare captions` writes it")
    images, captions = read_ids(ids).tolist(), read_ids(capids).tolist()
    if len(captions) % len(images):
        raise InputError(
            f"{ids}: {len(images):,} ids, {capids.name} has {len(captions):,}; expected as many, or a divisor"
        )
    repeat = len(captions) // len(images)
    gallery = dict(zip(captions, (image for image in images for _ in range(repeat)), strict=True))
    if len(gallery) != len(captions):
        raise InputError(
            f"{capids}: {len(captions) - len(gallery):,} caption ids come twice; caption ids must be unique"
        )
    return gallery
