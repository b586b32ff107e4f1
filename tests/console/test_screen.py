"""Nothing that is printed steers the terminal, any encoding can say it, and stdout may be full or gone."""

from __future__ import annotations

import io
import os
import sys

import pytest

from lib.console.screen import Screen, screens
from lib.console.script import script
from lib.core.errors import InputError


def written(text: str, encoding: str = "utf-8", bars: bool = False) -> str:
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding, newline="")
    screen = Screen(stream, bars)
    screen.write(text)
    screen.flush()
    return stream.buffer.getvalue().decode(encoding)


def test_a_terminal_without_these_characters_gets_their_escapes():
    assert written("VSE∞ ± 鸟\n", "ascii") == "VSE\\u221e \\xb1 \\u9e1f\n"
    assert written("VSE∞ ±\n", "latin-1") == "VSE\\u221e ±\n"
    assert written("VSE∞ ± 鸟\n") == "VSE∞ ± 鸟\n"


@pytest.mark.parametrize("text", ["\x1b[2J", "a\x1b]0;title\x07", "\r", "\x9b1m", "\x1b[A", "a\u202eb", "\ud800"])
def test_text_from_a_file_cannot_steer_the_terminal(text):
    assert not set(written(f"caption {text}\tx\n")) & set("\x1b\x07\r\x9b\u202e\ud800")
    assert written(f"caption {text}\tx\n").endswith("\tx\n")


def test_progress_bars_move_within_stderr():
    for move in ("\r10 %", "\n", "\x1b[A", "\n\n\x1b[A\x1b[A"):
        assert written(move, bars=True) == move
    assert written("caption \x1b[A", bars=True) == "caption ?[A"


def test_what_a_script_prints_goes_through_screens_and_no_further_than_the_script(capsys):
    before = sys.stdout, sys.stderr
    with screens():
        print("a\x1b[2J")
        print("b\x1b[2J", file=sys.stderr)
    assert (sys.stdout, sys.stderr) == before and capsys.readouterr() == ("a?[2J\n", "b?[2J\n")


def test_a_script_without_stdout_or_stderr_runs(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    assert script(lambda argv: 7)([]) == 7
    with pytest.raises(SystemExit, match="2"):
        script(refuse)([])


def refuse(argv):
    raise InputError("no")


def speak(argv):
    print("figures")


def help_text(argv):
    print("usage")
    raise SystemExit(0)


@pytest.mark.parametrize("main", [speak, help_text])
def test_a_full_disk_behind_stdout_is_one_line_and_code_2(main, monkeypatch, capsys):
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        with pytest.raises(SystemExit, match="2"):
            script(main)([])
    assert capsys.readouterr().err.startswith("error: No space left on device")


@pytest.mark.parametrize(("main", "code"), [(speak, "141"), (help_text, "141"), (refuse, "2")])
def test_a_reader_that_has_gone_ends_a_script_quietly(main, code, monkeypatch, capsys):
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as gone:
        monkeypatch.setattr(sys, "stdout", gone)
        if main is refuse:
            print("unread", file=gone)
        with pytest.raises(SystemExit, match=code):
            script(main)([])
    assert capsys.readouterr().err == ("error: no\n" if main is refuse else "")
