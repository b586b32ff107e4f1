"""A checkpoint of ours as safetensors: the weights alone, for other programs, and its configuration as a text.

What our own format says beside the tensors stands in the metadata as JSON, digests included, so that it is read back.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from lib.checkpoint import native as ours
from lib.checkpoint.checkpoint import Checkpoint
from lib.core.errors import InputError
from lib.files.safetensors import METADATA, write_safetensors

name_of = ours.name_of


def recognises(content: Any) -> bool:
    metadata = content.get(METADATA) if isinstance(content, dict) else None
    return isinstance(metadata, dict) and ours.FORMAT in metadata


def read(content: dict[str, Any], path: Path, paths: dict[str, Any]) -> Checkpoint:
    """The Checkpoint of a file that `write` wrote; InputError for one that is not as it was written."""
    weights = {name: value for name, value in content.items() if name != METADATA}
    try:
        rest = json.loads(content[METADATA][ours.FORMAT])
    except (ValueError, RecursionError):
        rest = None
    if not isinstance(rest, dict) or "digests" not in rest:
        raise InputError(f"{path}: its metadata is damaged; copy or export it again")
    return ours.read(rest | {"model": weights}, path, paths)


def write(path: str | Path, checkpoint: Checkpoint) -> None:
    """Write the weights and what is said of them; the states of optimizer and loss have no place here."""
    content = ours.content_of(dataclasses.replace(checkpoint, optimizer=None, position={}, criterion={}, extras={}))
    weights = content.pop("model")
    rest = json.loads(json.dumps(content))  # as it is read back
    rest = ours.sealed(rest | {"model": weights})
    del rest["model"]
    write_safetensors(path, weights, {"format": "pt", ours.FORMAT: json.dumps(rest)})
