"""Our checkpoint format: one dict of plain values and tensors that loads with weights_only=True, and their digests."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lib.checkpoint.checkpoint import Checkpoint, dense_tensors
from lib.core.config import ModelConfig
from lib.core.errors import InputError, listed, shown
from lib.files.writing import atomic_write, plain
from lib.model import complete

FORMAT, VERSION, DEFAULT = "esl-checkpoint", 4, ModelConfig()
PLAIN = "the values beside the tensors"
KINDS = {  # of every entry beside format and version
    "config": dict, "model": dict, "optimizer": (dict, type(None)), "epoch": int, "step": int,
    "best_rsum": (int, float), "best_step": int, "position": dict, "settings": dict, "criterion": dict, "extras": dict,
    "chosen_on": (str, type(None)),
}  # fmt: skip


def save_checkpoint(
    path: str | Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer | None = None, **state: Any
) -> None:
    """Write a MatchingModel and the state of its training; the file of before stays whole until the new one is.

    `state` holds further fields of Checkpoint; what is no plain value in it is written as text. Raises InputError when
    the file can't be written.
    """
    optimizer_state = optimizer.state_dict() if optimizer else None
    write(path, Checkpoint(model.config, model.state_dict(), optimizer_state, **state))


def write(path: str | Path, checkpoint: Checkpoint) -> None:
    """Write a Checkpoint in our format."""
    with written(path, checkpoint):
        pass


@contextlib.contextmanager
def written(path: str | Path, checkpoint: Checkpoint):
    """A Checkpoint that is whole on the disk when the block begins, and takes its place at `path` when it ends."""
    content = sealed(content_of(checkpoint))
    with atomic_write(path) as temporary:
        _save(content, temporary, path)
        yield


def content_of(checkpoint: Checkpoint) -> dict[str, Any]:
    """What a file holds of a Checkpoint, beside its digests: plain values and tensors."""
    entries = {name: getattr(checkpoint, name) for name in KINDS} | {"config": dataclasses.asdict(checkpoint.config)}
    return plain_tensors({"format": FORMAT, "version": VERSION, **entries})


def write_content(path: str | Path, content: Any) -> None:
    """torch.save, atomically; InputError when the disk is full or the folder can't be written."""
    with atomic_write(path) as temporary:
        _save(content, temporary, path)


def _save(content: Any, temporary: Path, path: str | Path) -> None:
    try:
        torch.save(content, temporary)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())  # a machine that crashes leaves the old file or the new one
    except (OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:160]
        raise InputError(f"{path}: cannot be written ({reason}); is the disk full?") from None


def recognises(content: Any) -> bool:
    return isinstance(content, dict) and content.get("format") == FORMAT


def has_digests(content: Any) -> bool:
    """Whether a file's content has digests of its tensors, which `read` checks."""
    return recognises(content) and content.get("version") == VERSION


def name_of(key: str, config: ModelConfig) -> str:
    return key


def read(content: dict[str, Any], path: Path, paths: dict[str, Any]) -> Checkpoint:
    """The Checkpoint of a file in our format.

    Raises InputError for another version, for content that is not as it was written, and for missing entries.
    """
    version = content.get("version")
    if isinstance(version, int) and version < VERSION:
        raise InputError(
            f"{path}: its format is of version {shown(version)}, and version {VERSION} is the first that is read"
        )
    if not isinstance(version, int) or version > VERSION:
        raise InputError(f"{path}: its format is of version {shown(version)}, expected {VERSION}; update this code")
    content = _as_written(content, path)
    broken = [name for name, kind in KINDS.items() if name not in content or not isinstance(content[name], kind)]
    if broken:
        raise InputError(f"{path}: {', '.join(broken)} missing or of a wrong type; the file was altered, save it again")
    entries = {name: content[name] for name in KINDS} | {
        "config": _config(content["config"], path),
        "model": dense_tensors(content["model"], f"{path}: model"),
        "criterion": dense_tensors(content["criterion"], f"{path}: criterion"),
        "extras": dense_tensors(content["extras"], f"{path}: extras"),
    }
    return Checkpoint(**entries, path=path)


def _as_written(content: dict[str, Any], path: Path) -> dict[str, Any]:
    """The content without its digests; InputError that names what does not have the digest that was written."""
    content = dict(content)
    stated = content.pop("digests", None)
    if not isinstance(stated, dict):
        raise InputError(f"{path}: digests missing or of a wrong type; the file was altered, save it again")
    found = digests(content)
    if differing := [place for place in found | stated if stated.get(place) != found.get(place)]:
        raise InputError(f"{path}: not as it was written ({listed(differing)}); the file is damaged, copy it again")
    return content


def _config(values: dict[str, Any], path: Path) -> ModelConfig:
    unknown = sorted(map(str, set(values) - set(dataclasses.asdict(DEFAULT))))
    if unknown:
        raise InputError(f"{path}: its configuration has entries of no model ({listed(unknown)}); the file was altered")
    wrong = [name for name, value in values.items() if type(value) is not type(getattr(DEFAULT, name))]
    if wrong:
        raise InputError(f"{path}: {wrong[0]} of its configuration is {shown(values[wrong[0]])}; the file was altered")
    try:
        return complete(ModelConfig(**values))
    except (InputError, TypeError) as error:
        raise InputError(f"{path}: {shown(error, 400)}") from None


def plain_tensors(value: Any) -> Any:
    """`value` with its tensors on the CPU and plain values everywhere else, as weights_only reads them."""
    return plain(value, lambda x: x.detach().cpu() if isinstance(x, Tensor) else x if type(x) is bytes else str(x))


def sealed(content: dict[str, Any]) -> dict[str, Any]:
    """What a file holds: the content and its digests."""
    content = {name: value for name, value in content.items() if name != "digests"}
    return content | {"digests": digests(content)}


def digests(content: Any) -> dict[str, int]:
    """CRC-32 of the values of every tensor in a nest of dicts and lists, by its place ("model.fc.weight"), and of
    everything else in it, types and shapes included, under PLAIN."""
    tensors: dict[str, Tensor] = {}

    def described(value: Any, place: str) -> Any:
        if isinstance(value, Tensor):
            tensors[place] = value
            return str(value.dtype), tuple(value.shape)
        if isinstance(value, dict):
            items = sorted(value.items(), key=lambda pair: ascii(pair[0]))  # in whatever order they were written
            return [(key, described(item, f"{place}.{key}" if place else str(key))) for key, item in items]
        if isinstance(value, list | tuple):
            return type(value).__name__, [described(item, f"{place}.{i}") for i, item in enumerate(value)]
        return value

    plain = zlib.crc32(ascii(described(content, "")).encode())
    with ThreadPoolExecutor() as pool:  # zlib runs beside Python
        return {PLAIN: plain} | dict(zip(tensors, pool.map(_digest, tensors.values()), strict=True))


def _digest(tensor: Tensor) -> int:
    return zlib.crc32(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
