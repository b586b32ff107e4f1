"""What the tests of training share."""

from __future__ import annotations

import logging

import pytest


@pytest.fixture
def lines(monkeypatch) -> list[str]:
    """The console lines, as they come."""
    found = []
    monkeypatch.setattr(logging.getLogger("esl"), "info", lambda text, *values: found.append(text % values))
    return found
