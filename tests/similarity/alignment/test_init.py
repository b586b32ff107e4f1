"""The choice among the ways of scoring: all give the same, and share the constants of the definition."""

from __future__ import annotations

import ast
import re
from functools import partial
from pathlib import Path

import pytest
import torch

import lib
from lib.core.config import KERNELS
from lib.similarity import alignment
from lib.similarity.alignment import PLAIN_IMAGES, Backend, cpu_kernel, gpu_kernel, plain, tiled, tiles
from tests.similarity.alignment.problems import GRADIENTS, SCORES, definition, errors, outcome, problem

pytestmark = pytest.mark.usefixtures("single_thread")
CPU = torch.device("cpu")
LIB = Path(lib.__file__).parent
FASTER = [kernels for kernels in KERNELS if kernels != "plain"]


@pytest.mark.parametrize("name", ["both_masks", "one_word", "one_region", "several_blocks"])
@pytest.mark.parametrize("kernels", KERNELS)
def test_every_way_gives_the_scores_and_gradients_of_the_definition(kernels, name):
    given = problem(name)
    expected = definition(given)
    score = partial(alignment.alignment_scores, backend=Backend(kernels, given.memory))
    scores, *gradients = errors(outcome(score, given), expected)
    assert scores < SCORES[name] and max(gradients) < GRADIENTS[name]
    assert max(errors(outcome(score, given.to(torch.float64)), expected)) < 1e-9


@pytest.mark.parametrize("kernels", KERNELS)
def test_every_way_scores_products_in_bfloat16_in_float32(kernels):
    given = problem("both_masks").to(torch.bfloat16)
    with torch.inference_mode():
        scores = alignment.alignment_scores(*given[:3], Backend(kernels))
    assert scores.dtype == torch.float32
    assert errors([scores], definition(given)[:1])[0] < 4e-3


@pytest.mark.parametrize("kernels", KERNELS)
def test_a_way_takes_the_path_that_its_name_says(kernels, monkeypatch):
    called = []

    def watch(module, name: str) -> None:
        original = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *args, **kw: (called.append((module, name)), original(*args, **kw))[1])

    asked = [(plain, "alignment_scores"), (tiled, "alignment_scores"), (cpu_kernel, "available")]
    for module, name in [*asked, (gpu_kernel, "available")]:
        watch(module, name)
    alignment.alignment_scores(*problem("one_of_all")[:3], Backend(kernels))
    asked_for = set(called) - {(gpu_kernel, "available")}
    assert asked_for == set({"plain": asked[:1], "torch": asked[1:2], "auto": asked[1:]}[kernels])
    assert kernels == "auto" or (gpu_kernel, "available") not in called


def test_the_usual_way_is_the_fastest_without_a_limit_of_memory():
    assert Backend() == Backend("auto", None) == alignment.FASTEST
    given = problem("both_masks")
    usual, named = (alignment.alignment_scores(*given[:3], *backend) for backend in ((), (Backend("auto"),)))
    assert torch.equal(usual, named)


@pytest.mark.parametrize("kernels", FASTER)
def test_the_memory_of_a_way_limits_the_buffers(kernels, monkeypatch):
    limits = []
    budget = tiles.budget
    monkeypatch.setattr(tiles, "budget", lambda *args: (limits.append(args[1]), budget(*args))[1])
    alignment.alignment_scores(*problem("both_masks")[:3], Backend(kernels, 12345))
    assert limits == [12345]


# ---- the constants ----


def python_numbers(file: Path) -> list[float]:
    nodes = ast.walk(ast.parse(file.read_text(encoding="utf-8")))
    return [node.value for node in nodes if isinstance(node, ast.Constant) and type(node.value) in (int, float)]


def c_numbers(file: Path) -> list[float]:
    code = re.sub(r"/\*.*?\*/|//[^\n]*", " ", file.read_text(encoding="utf-8"), flags=re.DOTALL)
    return [float(number) for number in re.findall(r"(?<![\w.])(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?", code)]


@pytest.mark.parametrize(
    ("name", "value", "home"),
    [
        ("NEGATIVE_SLOPE", 0.1, "similarity/alignment/plain.py"),
        ("LARGEST_PLAIN_SCALE", 60.0, "similarity/alignment/plain.py"),
        ("EPSILON", 1e-8, "core/functional.py"),
    ],
)
def test_a_constant_of_the_definition_is_written_once(name, value, home):
    assigned = []
    for file in sorted(LIB.rglob("*.py")):
        targets = [
            t for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Assign) for t in node.targets
        ]
        assigned += [file.relative_to(LIB).as_posix() for t in targets if isinstance(t, ast.Name) and t.id == name]
    assert assigned == [home]
    sources = [LIB / "core" / "functional.py", *LIB.glob("similarity/alignment/*.py")]
    literals = {file.relative_to(LIB).as_posix(): python_numbers(file).count(value) for file in sources}
    literals |= {file.name: c_numbers(file).count(value) for file in LIB.glob("similarity/alignment/*.c")}
    assert {file: count for file, count in literals.items() if count} == {home: 1}


def test_the_search_for_numbers_finds_them_in_c_and_passes_over_comments(tmp_path):
    source = tmp_path / "kernel.c"
    source.write_text("/* 0.1 */ float a = 0.1f, b[60], c = 1e-8; // 0.1\nint x0 = .5;")
    assert c_numbers(source) == [0.1, 60.0, 1e-8, 0.5]
    assert len(c_numbers(cpu_kernel.SOURCE)) > 50


@pytest.mark.parametrize("constant", ["NEGATIVE_SLOPE", "EPSILON"])
def test_torchs_way_takes_slope_and_epsilon_from_the_definition(constant, monkeypatch):
    given = problem("both_masks").to(torch.float64)
    before = definition(given)
    for module in (plain, lib.core.functional, tiled):
        if hasattr(module, constant):
            monkeypatch.setattr(module, constant, 0.3)
    expected = definition(given)
    assert errors(before, expected)[0] > 1e-2
    score = partial(alignment.alignment_scores, backend=Backend("torch"))
    assert max(errors(outcome(score, given), expected)) < 1e-9


@pytest.mark.parametrize("largest", [0.0, 1000.0])
def test_where_the_largest_logit_is_subtracted_changes_no_score(largest, monkeypatch):
    monkeypatch.setattr(tiled, "LARGEST_PLAIN_SCALE", largest)
    for name in ("both_masks", "one_word", "one_region", "zero_similarities", "scale_above_60"):
        given = problem(name).to(torch.float64)
        assert max(errors(outcome(tiled.alignment_scores, given), definition(given))) < 1e-9, name


@pytest.mark.parametrize("kernels", KERNELS)
def test_a_tile_of_evaluation_is_one_tile_of_scoring_and_never_empty(kernels):
    images_per_tile = partial(alignment.images_per_tile, device=CPU, backend=Backend(kernels))
    for count in (1, 31, 5000):
        for regions in (1, 36, 256, 10_000):
            assert 1 <= images_per_tile(regions, count) <= count
    budget = tiles.budget(CPU, None, kernels == "auto" and cpu_kernel.available(CPU))
    assert images_per_tile(36, 5000) == (PLAIN_IMAGES if kernels == "plain" else tiles.image_tile(36, 5000, budget))
