"""README and docs/ can't rot: the example runs, every script takes its commands, links and names lead somewhere."""

from __future__ import annotations

import argparse
import importlib
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.guide import blocks

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
pages = pytest.mark.parametrize("page", PAGES, ids=[page.stem for page in PAGES])

PROGRAMS = ("python", "python3", "torchrun")
STAND_IN = """#!/bin/sh
printf '%s\\0' "$@" >> "$NOTED"; printf '\\n' >> "$NOTED"
"""
SHELL = """
exit() { :; }; set() { :; }; nproc() { echo 2; }; head() { echo a.jpg; }; srun() { "$@"; }
bash() { case $1 in train_*.sh) PATH=$PATH:$SYSTEM VIRTUAL_ENV=x $BASH "$ROOT/$@" ;; esac; }
"""


# --- Commands ---------------------------------------------------------------------------------------------------------


def inline(text: str) -> list[str]:
    """The commands within the sentences of a page, with the first choice of each {one,other}."""
    text = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    found = [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", text)]
    commands = [code for code in found if code.startswith(tuple(f"{program} " for program in PROGRAMS))]
    return [re.sub(r"\{([^,}]+),[^}]*\}", r"\1", command) for command in commands]


def commands(page: Path, folder: Path) -> list[list[str]]:
    """The arguments of every call of Python or torchrun on a page, as the shell hands them over.

    It finds no program but stand-ins for these, which note what they are asked for.
    """
    (folder / "programs").mkdir()
    for program in PROGRAMS:
        (folder / "programs" / program).write_text(STAND_IN)
        (folder / "programs" / program).chmod(0o755)
    (folder / "noted").touch()
    lines = "\n".join([SHELL, *blocks(page, "bash"), "wait", *inline(page.read_text(encoding="utf-8")), ""])
    environment = {"PATH": str(folder / "programs"), "SYSTEM": os.environ["PATH"], "ROOT": str(ROOT)}
    environment |= {"NOTED": str(folder / "noted")}
    subprocess.run([shutil.which("bash")], input=lines, env=environment, cwd=folder, capture_output=True, text=True)
    return [line.split("\0")[:-1] for line in (folder / "noted").read_text(encoding="utf-8").splitlines()]


def script_of(arguments: list[str]) -> tuple[str, list[str]] | None:
    """The script of ours that a call runs, as a module, and what it is given; None for another program."""
    for place, argument in enumerate(arguments, start=1):
        if argument == "-m":
            name, *given = arguments[place:]
            is_package = (ROOT / name.replace(".", "/") / "__main__.py").is_file()
            return (f"{name}.__main__" if is_package else name, given) if name.startswith(("lib.", "bench")) else None
        if argument.endswith(".py"):
            return argument.removesuffix(".py"), arguments[place:]
    return None


class Parsed(Exception):
    """A parser has taken what it was given."""


def refusal(script: str, given: list[str], monkeypatch, capsys) -> str:
    """What a script says against its arguments; nothing if it takes them. Those that a page leaves out may lack."""
    module, parse = importlib.import_module(script), argparse.ArgumentParser.parse_args

    def parse_and_stop(*arguments):
        parse(*arguments)
        raise Parsed

    if not hasattr(module, "main"):  # it takes nothing
        return " ".join(given)
    capsys.readouterr()
    with monkeypatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", parse_and_stop)
        patch.setattr(os.path, "exists", lambda path: True)  # of the files that a page names
        try:
            module.main([argument for argument in given if argument != "…"])
        except Parsed:
            return ""
        except SystemExit as stop:
            said = capsys.readouterr().err
            return "" if stop.code == 0 or "arguments are required" in said or "is required" in said else said
    raise AssertionError(f"{script} has no parser")


@pages
def test_every_command_of_a_page_is_one_that_its_script_takes(page, tmp_path, monkeypatch, capsys):
    if page.stem == "extending":
        pytest.skip("its commands need the rows that it adds; tests/test_extending.py runs them")
    for script, given in filter(None, map(script_of, commands(page, tmp_path))):
        assert not refusal(script, given, monkeypatch, capsys), (script, given)


@pytest.mark.parametrize(
    ("text", "scripts"),
    [
        ("```bash\nB=(--dataset f30k)\npython eval.py \"${B[@]}\" \\\n  --data_path d  # all\n```", ["eval"]),
        ("Say `torchrun --nproc_per_node=2\n-m lib.tools.extract …`, then `python -m pytest`.", ["lib.tools.extract"]),
        ("```bash\nDATASET=coco bash train_region.sh --seed 1 &\nwait; exit 3\n```", ["train"]),
        ("`python -m lib.checkpoint convert A B --to {ours,released}`", ["lib.checkpoint"]),
    ],
)  # fmt: skip
def test_commands_are_found_in_blocks_and_in_sentences(tmp_path, monkeypatch, capsys, text, scripts):
    (tmp_path / "page.md").write_text(text + "\n", encoding="utf-8")
    found = list(filter(None, map(script_of, commands(tmp_path / "page.md", tmp_path))))
    assert [script.removesuffix(".__main__") for script, _ in found] == scripts
    assert not any(refusal(script, given, monkeypatch, capsys) for script, given in found)


@pytest.mark.parametrize(
    ("script", "given", "message"),
    [
        ("eval", ["--dataset", "f30k", "--data_path", "d", "--no_such_flag"], "--no_such_flag"),
        ("train", ["…", "--similarity", "no_such_head"], "no_such_head"),
        ("lib.tools.prepare", ["no_such_command"], "no_such_command"),
    ],
)
def test_a_flag_or_a_value_that_a_script_has_not_is_noticed(monkeypatch, capsys, script, given, message):
    assert message in refusal(script, given, monkeypatch, capsys)


# --- The example ------------------------------------------------------------------------------------------------------


def test_the_example_of_the_readme_runs(sample, runs, tmp_path, monkeypatch, capsys, single_thread):
    """On the sample data and a model that was trained on it, in place of the demo's."""
    (example,) = blocks(README, "python")
    for path, here in (("demo/esl_a", runs("esl_a")), ("demo/data", sample)):
        assert path in example
        example = example.replace(path, str(here))
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    exec(compile(example, README.name, "exec"), {})
    number = r" *-?\d+\.\d*(e-\d+)?"
    assert re.fullmatch(rf"\[(\n? ?\[{number} {number} *\]){{3}}\]\n", capsys.readouterr().out)  # (3, 2)


# --- Links and names --------------------------------------------------------------------------------------------------


def anchors(page: Path) -> set[str]:
    """What a link may name behind # on a page."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pages
def test_every_link_and_picture_of_a_page_is_there(page):
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if not link.startswith("https://"):
            name, _, anchor = link.partition("#")
            target = page.parent / name if name else page
            assert target.exists(), link
            assert not anchor or anchor in anchors(target), link


@pages
def test_every_file_that_a_page_names_by_its_path_is_there(page):
    text = page.read_text(encoding="utf-8")
    named = re.findall(r"`((?:lib|tests|benchmarks|docs|\.ci)/[\w./-]+)`", text)
    for name in [*named, *re.findall(r"\bbash ([\w./]+\.sh)\b", text)]:
        assert (ROOT / name).exists(), name


def test_what_the_readme_finds_of_the_paper_is_in_the_file_that_it_names():
    named = re.findall(r"`([\w/]+\.py): ([\w., ]+)`", README.read_text(encoding="utf-8"))
    assert len(named) > 15
    for file, names in named:
        (path,) = [path for path in (ROOT / "lib").rglob("*.py") if f"/{path}".endswith(f"/{file}")]
        module = importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
        for name in names.split(", "):
            found = module
            for part in name.split("."):
                assert hasattr(found, part), f"{file}: {name}"
                found = getattr(found, part)
