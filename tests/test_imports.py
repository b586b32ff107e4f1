"""Imports run downwards only, and the evaluation of a matrix needs numpy alone."""

from __future__ import annotations

import ast
import functools
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LAYERS = [  # from the top; the longest matching name counts
    ["train", "eval", "eval_ensemble", "lib.tools"],
    ["lib.commands"],
    ["lib.training", "lib.inference"],
    ["lib.distributed", "lib.checkpoint"],
    ["lib.model"],
    ["lib.encoders", "lib.datasets", "lib.evaluation"],
    ["lib.similarity", "lib.files", "lib.console"],
    ["lib.core"],
]
STRANGERS = {"lib.encoders", "lib.similarity", "lib.datasets"}  # that do not know each other
LAZY = re.compile(r"lib(\.\w+)+:\w+")


def module_name(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(file): file for file in [*ROOT.glob("*.py"), *(ROOT / "lib").rglob("*.py")]}
EVALUATION = sorted(name for name in MODULES if name.startswith("lib.evaluation."))
OPENS_DATA_SETS = {"lib.evaluation.matrices.together"}


@functools.cache
def imported(module: str) -> set[str]:
    """Every module that a module of ours imports at its top, in a function or by `lazy`; our own with full names."""
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative import; write the whole name"
            inside = {f"{node.module}.{alias.name}" for alias in node.names} & set(MODULES)
            found |= inside or {node.module}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and LAZY.fullmatch(node.value):
            found.add(node.value.partition(":")[0])
    return found


def place(module: str) -> tuple[int, str]:
    """Layer and entry of a module; one that has none fails the test that asks."""
    fitting = [
        (len(entry), number, entry)
        for number, layer in enumerate(LAYERS)
        for entry in layer
        if module == entry or module.startswith(f"{entry}.")
    ]
    assert fitting, f"{module} has no layer; give it one"
    _, number, entry = max(fitting)
    return number, entry


@pytest.mark.parametrize("module", sorted(set(MODULES) - {"lib"}))
def test_imports_run_downwards_only(module):
    layer, own = place(module)
    for name in sorted(imported(module) & set(MODULES) - {"lib"}):
        other_layer, other = place(name)
        assert layer <= other_layer, f"{module} imports {name}, which stands above it"
        if own != other:
            assert not {own, other} <= STRANGERS, f"{module} imports {name}; {own} and {other} don't know each other"
        if layer == other_layer and own != other:
            assert layer > 0, f"{module} imports {name}; scripts don't import each other"


def test_no_module_imports_itself_through_others():
    done, path = set(), []

    def visit(module: str) -> None:
        assert module not in path, f"cycle: {' → '.join([*path[path.index(module) :], module])}"
        if module in done:
            return
        path.append(module)
        for name in sorted(imported(module) & set(MODULES) - {module}):
            if not module.startswith(f"{name}."):  # a package that a module of it names is being imported already
                visit(name)
        path.pop()
        done.add(module)

    for module in sorted(MODULES):
        visit(module)


@pytest.mark.parametrize("module", sorted(set(EVALUATION) - OPENS_DATA_SETS))
def test_the_evaluation_of_a_matrix_needs_numpy_alone(module):
    reached, waiting = set(), [module]
    while waiting:
        name = waiting.pop()
        if name not in reached:
            reached.add(name)
            waiting += imported(name) & set(MODULES)
    outside = {name.split(".")[0] for each in reached for name in imported(each)} - {"lib"}
    assert outside - set(sys.stdlib_module_names) <= {"numpy", "eccv_caption"}


def test_scores_are_ranked_without_loading_torch():
    code = f"import sys, {', '.join(EVALUATION)}; print('torch' in sys.modules, 'transformers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.split() == ["False", "False"]


RECORD = """
import importlib, pathlib, pkgutil, sys, torch
OURS = pathlib.Path("lib").resolve()

class Recorder(torch.overrides.TorchFunctionMode):
    def __torch_function__(self, function, types, args=(), kwargs=None):
        result, frame = function(*args, **(kwargs or {})), sys._getframe(1)
        while frame and frame.f_code.co_name != "<module>":
            frame = frame.f_back
        if isinstance(result, torch.Tensor) and OURS in pathlib.Path(frame.f_code.co_filename).parents:
            print(f"{frame.f_code.co_filename}:{frame.f_lineno}")
        return result

with Recorder():
    import lib
    for module in pkgutil.walk_packages(lib.__path__, "lib."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
"""


def test_no_tensor_is_made_when_a_module_is_imported():
    done = subprocess.run([sys.executable, "-c", RECORD], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert not done.stdout, f"made at import, and without values wherever torch.device('meta') is active: {done.stdout}"
