"""JSON from anywhere: whatever stands in it, one line, or values of the kinds that are expected."""

from __future__ import annotations

import copy
import json

import pytest

from lib.core.errors import InputError
from lib.evaluation.matrices.together import open_saved
from lib.files.reading import read_json
from tests.attack.readers import READERS
from tests.attack.refusals import one_line, refuses

NO_JSON = {  # which Python or an editor may take for it
    "nothing": b"",
    "NaN": b"NaN",
    "minus infinity within": b'{"a": [1, -Infinity]}',
    "a number beyond floats": b'{"a": 1e999}',
    "a number of 5,000 digits": b"9" * 5000,
    "one within": b'{"a": [' + b"9" * 5000 + b"]}",
    "deep lists": b"[" * 100_000 + b"]" * 100_000,
    "deep objects": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "a lone half of a pair": b'"\\ud800"',
    "one in a key": b'{"\\uDBFF": 1}',
    "halves in the wrong order": b'["\\udfff\\ud800"]',
    "UTF-16": '{"a": 1}'.encode("utf-16"),
    "Latin-1": '{"a": "ä"}'.encode("latin-1"),
    "a byte order mark": b"\xef\xbb\xbf{}",
    "two documents": b"{} {}",
    "no end": b'{"a": [1, 2',
    "single quotes": b"{'a': 1}",
    "a comment": b"{} // none",
    "a control character in text": b'"\x1b[2J"',
    "a zero byte": b'{"a": 1}\0',
    "a trailing comma": b"[1,]",
    "a number as key": b"{1: 2}",
}
VALUES = {  # in the place of any other
    "null": None, "true": True, "a number": 7, "a negative number": -1, "a huge number": 10**400, "a fraction": 0.5,
    "a text": "x", "an empty text": "", "a steering text": "\x1b]0;x\x07\r\n", "a zero byte": "a\0b", "a list": [1],
    "an empty list": [], "an object": {"a": 1}, "an empty object": {}, "a path": "../../etc/passwd",
    "a long text": "x" * 100_000,
}  # fmt: skip
DOCUMENTS = ("what a saved matrix is of", "vocabulary", "id mapping", "Karpathy's splits")


def places(document, path=()):
    """Every place in a document, the whole first."""
    yield path
    items = (
        document.items() if isinstance(document, dict) else enumerate(document) if isinstance(document, list) else ()
    )
    for key, value in items:
        yield from places(value, (*path, key))


def with_value(document, path, value):
    """A copy of a document with another value in a place."""
    if not path:
        return value
    document = inner = copy.deepcopy(document)
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return document


@pytest.mark.parametrize("name", NO_JSON)
@pytest.mark.parametrize("reader", ["JSON", *DOCUMENTS])
def test_what_is_no_json_is_refused_with_its_file(reader, name, tmp_path):
    path = tmp_path / READERS[reader].file
    READERS[reader].make(path)
    path.write_bytes(NO_JSON[name])
    refuses(lambda: READERS[reader].read(path), str(path))


@pytest.mark.parametrize("name", VALUES)
@pytest.mark.parametrize("reader", DOCUMENTS)
def test_a_value_in_the_place_of_another_is_read_as_its_kind_or_refused(reader, name, tmp_path):
    """In every place in turn, by what uses the file and not its reader alone."""
    path = tmp_path / READERS[reader].file
    READERS[reader].make(path)
    whole = read_json(path)
    for place in places(whole):
        path.write_text(json.dumps(with_value(whole, place, VALUES[name])), encoding="utf-8")
        try:
            use(reader, path)
        except InputError as error:
            one_line(error)


def use(reader: str, path) -> None:
    if path.with_suffix(".npy").is_file():
        open_saved([path.with_suffix(".npy")], "f30k")
    else:
        READERS[reader].read(path)
