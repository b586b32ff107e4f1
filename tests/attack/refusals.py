"""What a refusal is: one line for the user, whatever was wrong."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from lib.core.errors import InputError

LONGEST = 700  # characters


def refuses(call: Callable[[], object], *words: str) -> str:
    """The line with which `call` must refuse its input, and which must hold each of `words`."""
    with pytest.raises(InputError) as caught:
        call()
    return one_line(caught.value, *words)


def one_line(error: InputError, *words: str) -> str:
    """The message of a refusal: printable, on one line, of bearable length, with each of `words`."""
    text = str(error)
    assert text.isprintable() and len(text) <= LONGEST, text
    assert all(word in text for word in words), text
    return text
