"""Where a tokenizer's files lie: in a folder, in the hub's cache, or in the hub."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lib.core.errors import InputError

_SETTINGS = ("tokenizer_config.json", "special_tokens_map.json", "merges.txt")


def tokenizer_folder(path: str, files: Sequence[str], flag: str, what: str) -> Path:
    """The folder that holds one of `files`, the vocabulary of a model of the kind `what` that `flag` names.

    A folder never causes a download; a hub name is looked up in the local cache first. Raises InputError when there is
    no such folder or no vocabulary in it, and when the hub can't be reached.
    """
    folder = Path(path).expanduser()
    if folder.is_dir():
        if not any((folder / name).is_file() for name in files):
            raise InputError(f"{folder}: neither {' nor '.join(files)} there; {flag} needs a tokenizer")
        return folder
    if folder.exists() or folder.is_absolute() or path.startswith((".", "~")) or path.count("/") > 1:
        raise InputError(f"{path}: no such folder; {flag} takes a {what} folder or a hub name")
    return _cached_folder(path, files, flag) or _download(path, files, flag, what)


def _cached_folder(name: str, files: Sequence[str], flag: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        cached = {file: try_to_load_from_cache(name, file) for file in (*files, *_SETTINGS)}
    except HFValidationError:
        raise InputError(f"{name!r} is neither a folder nor a hub name; {flag} takes either") from None
    present = {file: Path(path) for file, path in cached.items() if isinstance(path, str)}
    parts = present.keys() - {"tokenizer_config.json", "special_tokens_map.json"}
    whole = "tokenizer.json" in present or ("tokenizer_config.json" in present and parts >= set(_parts(files)))
    return next(iter(present.values())).parent if whole else None


def _parts(files: Sequence[str]) -> list[str]:
    """The files of a vocabulary that comes in no tokenizer.json."""
    return ["vocab.json", "merges.txt"] if "vocab.json" in files else ["vocab.txt"]


def _download(name: str, files: Sequence[str], flag: str, what: str) -> Path:
    from huggingface_hub import HfApi, snapshot_download

    try:
        HfApi().model_info(name, timeout=10)  # one request without retries, so that a node without network says so soon
        folder = Path(snapshot_download(name, allow_patterns=[*files, *_SETTINGS]))
    except Exception as error:
        raise InputError(
            f"{name}: no such folder, and its tokenizer could not be fetched from the hub ({one_line(error)}); "
            f"download the model on a machine with network and give its folder as {flag}"
        ) from None
    if not any((folder / file).is_file() for file in files):
        raise InputError(f"{name}: the hub's model holds neither {' nor '.join(files)}; give a {what} model")
    return folder


def one_line(error: Exception) -> str:
    """The first line that says something of a library's error."""
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return first[:160] or type(error).__name__
