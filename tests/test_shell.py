"""Every command answers --help, a typo and a missing file before it imports what the work needs."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HEAVY = {"torch", "torchvision", "transformers", "scipy", "nltk", "matplotlib", "tensorboard_logger", "eccv_caption"}
MISSING = {  # a command line of each command that names a file which is not there
    "train": ["--resume", "missing"],
    "eval": ["--model_path", "missing"],
    "eval_ensemble": ["missing.npy"],
    "lib.checkpoint": ["show", "missing"],
    "lib.tools.compare": ["missing.npy", "missing.npy"],
    "lib.tools.extract": ["--images", "missing", "--backbone_source", "tiny", "--out", "out"],
    "lib.tools.gallery": ["missing.npy", "--out", "out"],
    "lib.tools.prepare": ["captions", "missing.json", "data", "--data_name", "f30k"],
    "lib.tools.queries": ["missing.npy"],
    "lib.tools.runs": ["missing"],
    "lib.tools.sample": ["/dev/null/missing"],
    "lib.tools.score": ["--model_path", "missing", "--caption", "A red ball ."],
}
SUBCOMMANDS = {
    "lib.checkpoint": ["convert", "show"],
    "lib.tools.prepare": ["captions", "regions", "cxc", "own", "vocab", "check"],
}
# Runs a command several times in one process: its exit code, what it says, and what has been imported by then.
ANSWERS = """
import contextlib, io, json, runpy, sys
module, *lines = json.load(sys.stdin)
for line in lines:
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            sys.argv = [module, *line]
            runpy.run_module(module, run_name="__main__", alter_sys=True)
            code = None
        except SystemExit as stop:
            code = stop.code
    print(json.dumps([code, said.getvalue(), sorted({name.partition(".")[0] for name in sys.modules})]))
"""


def test_no_command_is_left_out():
    scripts = {path.stem for path in ROOT.glob("*.py")}
    modules = (ROOT / "lib" / "tools").glob("*.py")
    tools = {f"lib.tools.{path.stem}" for path in modules if 'if __name__ == "__main__"' in path.read_text()}
    packages = {".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "lib").rglob("__main__.py")}
    assert set(MISSING) == scripts | tools | packages


@pytest.mark.parametrize("command", MISSING)
def test_help_a_typo_and_a_missing_file_are_answered_without_importing_torch(command, tmp_path):
    helps = [["--help"], *([name, "--help"] for name in SUBCOMMANDS.get(command, ()))]
    lines = [*helps, ["--no_such_flag"], MISSING[command]]
    done = subprocess.run(
        [sys.executable, "-c", ANSWERS], input=json.dumps([command, *lines]), capture_output=True, text=True,
        cwd=tmp_path, env={"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    for line, answer in zip(lines, done.stdout.splitlines(), strict=True):
        code, said, imported = json.loads(answer)
        assert code == (0 if line in helps else 2), said
        assert said.startswith("usage: " if line in helps else "error: ")
        assert not HEAVY & set(imported), line
        if line in helps:
            assert faults(said) == []


def faults(help_text: str) -> list[str]:
    """What is not in the style of the others: a flag without a text, a value in small letters, another default."""
    options = re.findall(r"^  (--?\w.*?(?:\n {20,}.*)*)$", help_text, re.MULTILINE)
    assert options
    found = []
    for option in options:
        flags, _, text = re.sub(r"\n {20,}", "  ", option).partition("  ")
        values = re.sub(r"\{.*?\}|--?\w+|\b(auto|grid)\b", "", flags)  # these two words may be given for a file
        text = " ".join(text.split())
        if not text or values != values.upper() or text.count("default") != text.count("(default: "):
            found.append(option)
    return found
