"""A tokenizer's files in a folder, in the hub's cache, or in the hub."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from lib.core.errors import InputError

_SETTINGS = ("tokenizer_config.json", "special_tokens_map.json", "merges.txt")


def tokenizer_folder(path: str, files: Sequence[str], flag: str, model: str) -> Path:
    """The folder that holds one of `files`, the vocabulary of the BERT or CLIP (`model`) that `flag` names.

    A folder never causes a download; a hub name is looked up in the local cache first. Raises InputError if the
    folder or its vocabulary is missing, or the hub can't be reached.
    """
    folder = Path(path).expanduser()
    if folder.is_dir():
        if not any((folder / name).is_file() for name in files):
            raise InputError(f"{folder}: neither {' nor '.join(files)} there; {flag} needs a tokenizer")
        return folder
    if folder.exists() or folder.is_absolute() or path.startswith((".", "~")) or path.count("/") > 1:
        raise InputError(f"{path}: no such folder; {flag} takes a {model} folder or a hub name")
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    fetch = partial(snapshot_download, path, allow_patterns=[*files, *_SETTINGS])
    try:
        with contextlib.suppress(LocalEntryNotFoundError):
            if _is_whole(cached := Path(fetch(local_files_only=True)), files):
                return cached
        HfApi().model_info(path, timeout=10)  # one request without retries, so that a node without network says so soon
        folder = Path(fetch())
    except HFValidationError:
        raise InputError(f"{path!r} is neither a folder nor a hub name; {flag} takes either") from None
    except Exception as error:
        raise InputError(
            f"{path}: no such folder, and its tokenizer could not be fetched from the hub ({one_line(error)}); "
            f"download the model on a machine with network and give its folder as {flag}"
        ) from None
    if not any((folder / name).is_file() for name in files):
        raise InputError(f"{path}: the hub's model holds neither {' nor '.join(files)}; give a {model} model")
    return folder


def _is_whole(folder: Path, files: Sequence[str]) -> bool:
    """True if a folder of the cache, which may hold a part of a model, holds a whole tokenizer."""
    vocabulary = ["vocab.json", "merges.txt"] if "vocab.json" in files else ["vocab.txt"]
    kinds = (["tokenizer.json"], ["tokenizer_config.json", *vocabulary])
    return any(all((folder / name).is_file() for name in names) for names in kinds)


def one_line(error: Exception) -> str:
    """The first line that says something of a library's error."""
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return first[:160] or type(error).__name__
