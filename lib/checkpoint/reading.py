"""Reading a checkpoint of any format, and writing it in another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lib.checkpoint.checkpoint import Checkpoint
from lib.checkpoint.formats import FORMATS
from lib.checkpoint.loading import check_complete
from lib.checkpoint.native import has_digests
from lib.core.errors import InputError, listed
from lib.files.pytorch import read_file

SUFFIXES = (".pth", ".pt", ".tar", ".bin", ".ckpt", ".safetensors")  # of checkpoints, where a folder is searched


def read_checkpoint(path: str | Path, paths: dict[str, Any] | None = None) -> Checkpoint:
    """Read a checkpoint of ours or a released ESL-H, ESL-A or VSE∞ file (BERT or BiGRU), told apart by its content.

    A folder stands for the only checkpoint in it. `paths` are the files of this machine by their flags:
    paths["bert_path"] adds to a released file what shapes don't tell, the number of attention heads above all. Raises
    InputError for any other file; nothing in a file is executed.
    """
    path = checkpoint_file(path)
    return _interpret(read_file(path, has_digests), path, paths or {})


def checkpoint_file(path: str | Path) -> Path:
    """The file itself, or the only file of a folder that may be a checkpoint; InputError that lists what is there."""
    path = Path(path)
    if not path.is_dir():
        return path
    try:
        names = sorted(each.name for each in path.iterdir() if each.suffix in SUFFIXES and each.is_file())
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    if len(names) != 1:
        found = f"holds {listed(names)}" if names else f"holds no file that ends in {', '.join(SUFFIXES)}"
        raise InputError(f"{path}: is a folder and {found}; name one file, as {path / 'model_best.pth'}")
    return path / names[0]


def _interpret(content: object, path: Path, paths: dict[str, Any]) -> Checkpoint:
    for each in FORMATS.values():
        if each.recognises(content):
            return each.read(content, path, paths)
    if isinstance(content, dict):
        found = f"a dict with {listed(list(content)) or 'nothing'}"
    else:
        found = f"a {type(content).__name__}"
    raise InputError(f"{path}: holds {found}, expected a checkpoint of this code or a released ESL or VSE∞ file")


def convert(source: str | Path, target: str | Path, to: str, paths: dict[str, Any] | None = None) -> Checkpoint:
    """Write the checkpoint `source` to `target` in the format `to`, a row of FORMATS; returns what was read.

    Weights stay the same bit for bit. Raises InputError unless `source` is complete.
    """
    if to not in FORMATS:
        raise InputError(f"--to is '{to}', expected one of {', '.join(FORMATS)}")
    checkpoint = read_checkpoint(source, paths)
    check_complete(checkpoint)
    FORMATS[to].write(target, checkpoint)
    return checkpoint
