"""The environment of demo.sh and test.sh: which Python gets the packages, and which never does; none is installed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def environment(folder: Path, **variables: str) -> subprocess.CompletedProcess:
    """Source .ci/environment.sh in `folder` and say which python there is then."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    script = f". {ROOT}/.ci/environment.sh; environment requirements.txt; command -v python"
    command = ["bash", "-euo", "pipefail", "-c", script]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, env=kept | variables)


@pytest.fixture
def project(tmp_path) -> Path:
    (tmp_path / "requirements.txt").write_text("something==1.0\n")
    return tmp_path


def python_of(folder: Path, version: str) -> Path:
    """A stand-in for an environment's Python: it knows its version and notes what it was asked to install."""
    program = folder / "bin" / "python"
    program.parent.mkdir(parents=True)
    program.write_text(
        f"""#!{sys.executable}
import sys
if sys.argv[1] == "-c":
    sys.version_info = {version}
    exec(sys.argv[2])
else:
    open({str(folder / "asked")!r}, "a").write(" ".join(sys.argv[1:]) + "\\n")
"""
    )
    program.chmod(0o755)
    return folder


def asked(folder: Path) -> list[str]:
    file = folder / "asked"
    return file.read_text().splitlines() if file.exists() else []


def test_the_projects_own_environment_is_used_although_another_is_active_and_nothing_is_installed_twice(project):
    own, active = python_of(project / ".venv", "(3, 12)"), python_of(project / "active", "(3, 12)")
    for _ in range(2):
        done = environment(project, VIRTUAL_ENV=str(active), CONDA_PREFIX=str(active))
        assert done.returncode == 0 and done.stdout.splitlines()[-1] == str(own / "bin" / "python")
    assert len(asked(own)) == 1 and asked(own)[0].endswith("-r requirements.txt") and not asked(active)


def test_changed_requirements_are_installed_anew(project):
    own = python_of(project / ".venv", "(3, 12)")
    environment(project)
    (project / "requirements.txt").write_text("something==2.0\n")
    environment(project)
    assert len(asked(own)) == 2


def test_an_active_environment_is_used_when_asked_for(project):
    active = python_of(project / "active", "(3, 11)")
    done = environment(project, VIRTUAL_ENV=str(active), USE_ACTIVE_ENV="1")
    assert done.returncode == 0 and len(asked(active)) == 1 and not (project / ".venv").exists()


@pytest.mark.parametrize(
    ("version", "variables", "message"),
    [
        ("(3, 12)", {"CONDA_PREFIX": "{}", "CONDA_DEFAULT_ENV": "base"}, "conda's base"),
        ("(3, 10)", {"VIRTUAL_ENV": "{}"}, "its Python is not 3.11, 3.12 or 3.13"),
        ("(3, 14)", {"CONDA_PREFIX": "{}", "CONDA_DEFAULT_ENV": "new"}, "its Python is not 3.11, 3.12 or 3.13"),
        ("(3, 12)", {}, "no environment is active"),
    ],
)
def test_conda_base_other_pythons_and_no_environment_are_refused_in_one_line(project, version, variables, message):
    active = python_of(project / "active", version)
    done = environment(project, USE_ACTIVE_ENV="1", **{k: v.format(active) for k, v in variables.items()})
    assert done.returncode == 2 and message in done.stderr and len(done.stderr.splitlines()) == 1
    assert not asked(active)
