"""One-line messages for bad input and system failures, safe to print whatever a file holds."""

from __future__ import annotations

import errno
import re

# Characters that steer a terminal: control characters, line ends, the direction of text, halves of surrogate pairs.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_NO_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")  # how torch says it
_FULL = (errno.ENOSPC, errno.EDQUOT)
_DEAD_WORKER = ("DataLoader worker", "Pin memory thread")
KEPT = "checkpoints and files already written are kept"


def printable(text: str, kept: str = "") -> str:
    """`text` with "?" for every character that would steer a terminal, except the characters in `kept`."""
    return _CONTROL.sub(lambda found: found[0] if found[0] in kept else "?", text)


class InputError(ValueError):
    """Bad input. The message is one line: the fault, its place, what was expected, and what to do."""

    def __init__(self, message: object):
        super().__init__(printable(str(message)))


def shown(value: object, most: int = 80) -> str:
    """A value from a file for a message: its beginning, on one line."""
    text = printable(str(value)[: most + 1])
    return text if len(text) <= most else text[:most] + "…"


def listed(names: list, most: int = 4) -> str:
    """The first few of many names from a file: "a, b, c, d, …"."""
    return ", ".join(map(shown, names[:most])) + (", …" if len(names) > most else "")


def explained(error: BaseException) -> str | None:
    """A one-line message for bad input or a system failure; None for a bug."""
    text = str(error)
    first, last = (" ".join(part.split())[:200] for part in (text.partition("\n")[0], text.rpartition("\n")[2]))
    if isinstance(error, InputError):
        return text
    if isinstance(error, MemoryError) or isinstance(error, RuntimeError) and any(sign in text for sign in _NO_MEMORY):
        advice = "smaller batches need less (--batch_size, --accumulate, --score_memory)"
        return printable(f"memory ran out ({first or type(error).__name__}); {advice}; {KEPT}")
    if isinstance(error, RuntimeError) and any(sign in text for sign in _DEAD_WORKER):
        advice = "use fewer --workers if memory ran out"
        return printable(f"a process that loads data died ({first.partition('. ')[0]}); {advice}; {KEPT}")
    if isinstance(error, OSError):
        where = "" if error.filename is None else f"{_name(error.filename)}: "
        advice = f"; make room on that disk; {KEPT}" if error.errno in _FULL else ""
        return printable(f"{where}{error.strerror or last or type(error).__name__}{advice}")
    if isinstance(error, UnicodeError):
        return printable(f"invalid text ({last}); save the file that it comes from as UTF-8")
    return None


def _name(file: object) -> str:
    return file.decode(errors="replace") if isinstance(file, bytes) else str(file)
