"""The front door names what a notebook needs, and loads torch only when it is used."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import lib

ROOT = Path(__file__).resolve().parents[1]


def test_importing_lib_loads_no_torch_and_the_names_of_the_front_door_are_there():
    code = "import sys, lib; assert not {'torch', 'numpy'} & {*sys.modules}; from lib import load, Matcher, Encoded"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = lib.no_such_name
