"""Writing the text files of the layout: atomically, and never over other content unless asked to."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from lib.core.errors import InputError
from lib.datasets.layout import precomp_folder
from lib.files.writing import atomic_write


@dataclass(frozen=True)
class Image:
    """An image to be written: its path under the image folder, its captions, and their ids where they have any."""

    id: int
    path: str
    captions: list[str]
    caption_ids: list[int] | None = None


@dataclass(frozen=True)
class Target:
    """The folder of a data set, its name, and whether files that hold something else may be replaced."""

    data_path: Path
    data_name: str
    overwrite: bool = False

    @property
    def precomp(self) -> Path:
        """The folder of captions, ids and features; `precomp` where none is there yet."""
        try:
            return precomp_folder(self.data_path, self.data_name)
        except InputError:
            return self.data_path / "precomp"

    def write(self, files: dict[Path, str]) -> list[Path]:
        """Write texts and return the paths of those that weren't there already; says how many.

        Raises InputError before anything is written when a file holds other text, unless `overwrite`.
        """
        changed = {path: text for path, text in files.items() if not _holds(path, text)}
        clashing = [str(path) for path in changed if path.exists()]
        if clashing and not self.overwrite:
            raise InputError(f"{', '.join(clashing)}: there already with other content; --overwrite replaces it")
        for path, text in changed.items():
            with atomic_write(path) as temporary:
                temporary.write_text(text, encoding="utf-8", newline="\n")
        print(f"wrote {len(changed)} files under {self.data_path}; {len(files) - len(changed)} held the same already")
        return list(changed)

    def write_splits(self, images: Iterable[Image], splits: dict[str, list[Image]]) -> None:
        """Write `id_mapping.json` of all images, and of each split `{split}_caps.txt`, `{split}_ids.txt` (one line per
        caption) and, for evaluation on CxC, `testall_capids.txt`; say what each split holds."""
        files = {self.data_path / "id_mapping.json": as_json({image.id: image.path for image in images})}
        for split, chosen in splits.items():
            lines = {
                "caps": (caption for image in chosen for caption in image.captions),
                "ids": (image.id for image in chosen for _ in image.captions),
            }
            if split == "testall":
                lines["capids"] = (number for image in chosen for number in image.caption_ids)
            files |= {self.precomp / f"{split}_{kind}.txt": as_lines(items) for kind, items in lines.items()}
        written = self.write(files)
        for split, chosen in splits.items():
            print(f"{split}: {len(chosen):,} images, {sum(len(image.captions) for image in chosen):,} captions")
            features = self.precomp / f"{split}_ims.npy"
            if self.precomp / f"{split}_ids.txt" in written and features.exists():
                print(f"warning: {features} may have been made for other ids; remove it and make it again")


def one_line(text: str) -> str:
    """The text on one line: every run of white space, line breaks and control characters is one space."""
    return " ".join(re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ufeff]", " ", text).split())


def as_lines(items: Iterable) -> str:
    """One item per line, each line ended."""
    return "".join(f"{item}\n" for item in items)


def as_json(mapping: dict) -> str:
    """JSON with one key per line: compact, and still readable line by line."""
    lines = (f"{json.dumps(str(key))}: {json.dumps(value, ensure_ascii=False)}" for key, value in mapping.items())
    return "{" + ",\n ".join(lines) + "}\n"


def _holds(path: Path, text: str) -> bool:
    return path.is_file() and path.read_bytes() == text.encode()
