"""Each module of lib has a test file of its own name, or is one of those that another file tests."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MODULES = [path.relative_to(ROOT / "lib") for path in sorted((ROOT / "lib").rglob("*.py"))]
ELSEWHERE = {  # a module → the file that tests it, as CONTRIBUTING.md says
    "checkpoint/__init__.py": "test_shell.py",
    "checkpoint/__main__.py": "checkpoint/test_cli.py",
    "checkpoint/formats.py": "checkpoint/test_cli.py",
    "checkpoint/released/vse.py": "checkpoint/released/test_esl.py",
    "checkpoint/zero_shot.py": "commands/test_train_clip.py",
    "console/script.py": "console/test_parser.py",
    "datasets/__init__.py": "datasets/test_data_sets.py",
    "distributed/batchnorm.py": "distributed/test_messages.py",
    "distributed/launch.py": "distributed/test_messages.py",
    "encoders/__init__.py": "encoders/test_encoder.py",
    "files/archives.py": "attack/test_archives.py",
    "files/images.py": "attack/test_images.py",
    "files/pickles.py": "files/test_pytorch.py",
    "files/reading.py": "files/test_writing.py",
    "inference/attention.py": "tools/score/test_main.py",
    "inference/input_spec.py": "test_model.py",
    "tools/extract/extraction.py": "tools/extract/test_main.py",
    "tools/gallery/attention.py": "tools/gallery/test_main.py",
    "tools/prepare/__main__.py": "tools/prepare/test_check.py",
    "tools/score/scoring.py": "tools/score/test_main.py",
    "training/console.py": "training/test_tracking.py",
    "training/progress.py": "training/test_tracking.py",
}


def mirrored(module: Path) -> str:
    """The test file of a module under tests/: datasets/regions.py → datasets/test_regions.py."""
    return (module.parent / f"test_{module.stem.strip('_')}.py").as_posix()


def has_code(module: Path) -> bool:
    """Whether a module holds more than its docstring and the names of a table or a package."""
    lines = (ROOT / "lib" / module).read_text(encoding="utf-8").splitlines()
    return any(line.lstrip().startswith(("def ", "class ")) for line in lines)


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.as_posix())
def test_every_module_with_code_has_a_test_file(module):
    file = ELSEWHERE.get(module.as_posix(), mirrored(module))
    assert not has_code(module) or (ROOT / "tests" / file).is_file(), f"{module} has no tests/{file}"


def test_no_exception_is_stale():
    for module, file in ELSEWHERE.items():
        assert Path(module) in MODULES and (ROOT / "tests" / file).is_file()
        assert not (ROOT / "tests" / mirrored(Path(module))).exists(), f"{module} has a test file of its name now"
