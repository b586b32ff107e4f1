"""What the machine is known to give."""

from __future__ import annotations

from pathlib import Path

import pytest

from lib.core import machine


def test_free_memory_is_what_the_kernel_says_with_swap(monkeypatch):
    text = "MemTotal: 9 kB\nMemFree: 5 kB\nMemAvailable:    20 kB\nSwapTotal: 4 kB\nSwapFree:   3 kB\n"
    monkeypatch.setattr(Path, "read_text", lambda self: text)
    assert machine.free_memory() == 23 * 1024


@pytest.mark.parametrize("text", ["", "nothing of the kind\n"])
def test_free_memory_is_unknown_where_the_system_does_not_say(monkeypatch, text):
    monkeypatch.setattr(Path, "read_text", lambda self: text)
    assert machine.free_memory() is None


def test_cores_are_at_most_as_many_as_asked_for():
    assert machine.available_cores(1) == 1 <= machine.available_cores()
