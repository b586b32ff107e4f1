"""Writing small text files of the data layout without ever replacing other content silently."""

from __future__ import annotations

import json
from pathlib import Path

from lib.errors import InputError
from lib.files import atomic_write


def write_new(files: dict[Path, str], overwrite: bool) -> list[Path]:
    """Write `files` (path → text, UTF-8), each atomically; a file that holds the same text already is left alone.

    Returns the paths written. Raises InputError before anything is written when a file holds other text and `overwrite`
    is False.
    """
    changed = {path: text for path, text in files.items() if not _holds(path, text)}
    clashing = [str(path) for path in changed if path.exists()]
    if clashing and not overwrite:
        raise InputError(f"{', '.join(clashing)}: there already with other content; --overwrite replaces it")
    for path, text in changed.items():
        with atomic_write(path) as temporary:
            temporary.write_text(text, encoding="utf-8", newline="\n")
    return list(changed)


def as_lines(items) -> str:
    """One item per line, each line ended."""
    return "".join(f"{item}\n" for item in items)


def as_json(mapping: dict) -> str:
    """JSON with one key per line: compact, and still readable line by line."""
    lines = (f"{json.dumps(str(key))}: {json.dumps(value, ensure_ascii=False)}" for key, value in mapping.items())
    return "{" + ",\n ".join(lines) + "}\n"


def _holds(path: Path, text: str) -> bool:
    try:
        return path.read_bytes() == text.encode()
    except FileNotFoundError:
        return False
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); move it away") from None
