"""The compiled CPU kernel against the definition in float64, and what happens where it cannot be built."""

from __future__ import annotations

import os
import shutil
import stat
import warnings
from functools import partial

import pytest
import torch

from lib.core import functional
from lib.similarity.alignment import cpu_kernel, plain, tiled
from tests import helpers
from tests.similarity.alignment.problems import (
    CASES,
    GRADIENTS,
    LARGE_SCALES,
    SCORES,
    definition,
    errors,
    outcome,
    problem,
)

pytestmark = pytest.mark.usefixtures("single_thread")
CPU = torch.device("cpu")
needs_compiler = pytest.mark.skipif(not any(map(shutil.which, cpu_kernel.COMPILERS)), reason="no C compiler is here")


@pytest.fixture
def calls(monkeypatch) -> list[str]:
    """The names of the kernel's functions as they are called."""
    made = []
    for function in ("pair_scores", "gradients"):
        original = getattr(cpu_kernel, function)
        monkeypatch.setattr(cpu_kernel, function, lambda *args, f=original: (made.append(f.__name__), f(*args))[1])
    return made


def kernel_scores(memory: int | None = None):
    return partial(tiled.alignment_scores, memory=memory, kernels=True)


@needs_compiler
def test_the_kernel_is_built_and_used_where_there_is_a_compiler():
    assert cpu_kernel.available(CPU)


@needs_compiler
@pytest.mark.parametrize("name", CASES)
def test_scores_and_gradients_equal_the_definition_in_float64(name, calls):
    given = problem(name)
    expected = definition(given)
    scores, *gradients = errors(outcome(kernel_scores(given.memory), given), expected)
    with torch.inference_mode():
        in_evaluation = kernel_scores(given.memory)(*given[:3])
    assert {"pair_scores", "gradients"} == set(calls)
    assert max(scores, *errors([in_evaluation], expected[:1])) < SCORES[name]
    assert max(gradients) < GRADIENTS[name]


@needs_compiler
@pytest.mark.parametrize("name", LARGE_SCALES)
def test_a_scale_above_60_is_left_to_torch_and_equals_the_definition(name, calls):
    given = problem(name)
    scores, *gradients = errors(outcome(kernel_scores(given.memory), given), definition(given))
    assert scores < SCORES[name] and max(gradients) < GRADIENTS[name] and not calls


@needs_compiler
@pytest.mark.parametrize("constant", ["NEGATIVE_SLOPE", "EPSILON"])
def test_slope_and_epsilon_are_those_of_the_definition_and_none_of_the_kernels_own(constant, monkeypatch):
    given = problem("both_masks")
    before = definition(given)
    for module in (plain, functional, cpu_kernel):
        if hasattr(module, constant):
            monkeypatch.setattr(module, constant, 0.3)
    expected = definition(given)
    assert errors(before, expected)[0] > 1e-2
    scores, *gradients = errors(outcome(kernel_scores(), given), expected)
    assert scores < 2e-6 and max(gradients) < 1e-4


@needs_compiler
def test_zero_similarities_give_zero_scores_and_finite_gradients():
    scores, *gradients = outcome(kernel_scores(), problem("zero_similarities"))
    assert (scores == 0).all() and all(gradient.isfinite().all() for gradient in gradients)


@needs_compiler
def test_the_number_of_threads_changes_no_bit():
    results = []
    for count in (1, 2, 3):
        with helpers.threads(count):
            results.append(outcome(kernel_scores(), problem("several_tasks")))
    for other in results[1:]:
        assert torch.equal(other[0], results[0][0]) and torch.equal(other[3], results[0][3])


@needs_compiler
def test_scores_may_be_part_of_a_larger_matrix():
    S = torch.randn(5, 4, 33)  # two captions of two and three words
    whole = torch.full((2, 50), 7.0)
    cpu_kernel.pair_scores(S, [2, 3], 10.0, None, whole[:, 9:42])
    alone = torch.empty(2, 33)
    cpu_kernel.pair_scores(S, [2, 3], 10.0, None, alone)
    assert torch.equal(whole[:, 9:42], alone) and (whole[:, :9] == 7).all() and (whole[:, 42:] == 7).all()


@needs_compiler
@pytest.mark.parametrize(
    ("S", "lengths", "scores"),
    [
        (torch.zeros(5, 4, 8), [2, 2], torch.zeros(2, 8)),
        (torch.zeros(5, 4, 8), [2, 3], torch.zeros(3, 8)),
        (torch.zeros(5, 4, 8), [2, 3], torch.zeros(8, 2).T),
        (torch.zeros(4, 5, 8).transpose(0, 1), [2, 3], torch.zeros(2, 8)),
        (torch.zeros(5, 4, 8, dtype=torch.float64), [2, 3], torch.zeros(2, 8)),
    ],
)
def test_arrays_that_do_not_fit_are_refused_before_any_memory_is_touched(S, lengths, scores):
    with pytest.raises(ValueError, match="do not fit"):
        cpu_kernel.pair_scores(S, lengths, 10.0, None, scores)


def test_too_little_memory_is_an_error():
    with pytest.raises(MemoryError, match="captions of 3 words"):
        cpu_kernel._call(lambda *arguments: 1, torch.zeros(5, 4, 8), [2, 3], 10.0, None, torch.zeros(2, 8))


@needs_compiler
def test_features_in_bfloat16_have_scores_and_gradients(calls):
    given = problem("nothing_special").to(torch.bfloat16)
    found = outcome(kernel_scores(), given)
    assert found[0].dtype == torch.float32 and set(calls) == {"pair_scores", "gradients"}
    scores, *gradients = errors(found, definition(given))
    assert scores < 4e-3 and max(gradients) < 2e-2  # S and the gradients have 8 bits, what is between them 24


@needs_compiler
def test_autocast_leaves_scores_and_gradients_in_float32(calls):
    given = problem("nothing_special")
    expected = outcome(kernel_scores(), given)
    with torch.autocast("cpu", torch.bfloat16):
        found = outcome(kernel_scores(), given)
    assert set(calls) == {"pair_scores", "gradients"}
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_other_types_scales_and_devices_are_left_to_torch():
    assert not cpu_kernel.available(torch.device("cuda"))
    assert not cpu_kernel.available(CPU, torch.float64)
    assert not cpu_kernel.available(CPU, torch.float32, 60.1)
    assert not cpu_kernel.available(CPU, torch.float32, float("nan"))


@pytest.fixture
def fresh(tmp_path, monkeypatch):
    """A cache folder of its own, and nothing loaded yet."""
    cpu_kernel._library.cache_clear()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    yield tmp_path / "cache" / "esl"
    cpu_kernel._library.cache_clear()


@needs_compiler
def test_the_library_is_built_once_in_a_folder_of_the_user_alone(fresh, monkeypatch):
    assert cpu_kernel.available(CPU)
    (library,) = fresh.iterdir()
    assert stat.S_IMODE(fresh.stat().st_mode) == 0o700
    cpu_kernel._library.cache_clear()
    monkeypatch.setattr(cpu_kernel, "_run", lambda *command: pytest.fail("it was built again"))
    assert cpu_kernel.available(CPU) and list(fresh.iterdir()) == [library]


@needs_compiler
def test_a_damaged_library_is_built_again_and_never_loaded(fresh, monkeypatch):
    library = cpu_kernel._built()
    whole = library.read_bytes()
    library.write_bytes(whole[:200] + bytes(len(whole) - 200))
    loaded, load = [], cpu_kernel.ctypes.CDLL
    monkeypatch.setattr(
        cpu_kernel.ctypes, "CDLL", lambda path: (loaded.append(cpu_kernel.Path(path).read_bytes()), load(path))[1]
    )
    assert cpu_kernel.available(CPU)
    assert loaded == [whole] and library.read_bytes() == whole


@needs_compiler
def test_without_a_umask_folder_and_library_are_open_to_the_user_alone(fresh):
    before = os.umask(0)
    try:
        library = cpu_kernel._built()
    finally:
        os.umask(before)
    modes = [stat.S_IMODE(path.stat().st_mode) for path in (fresh.parent, fresh, library)]
    assert modes == [0o700, 0o700, 0o600]


@needs_compiler
def test_the_library_is_on_the_disk_before_it_has_its_name(fresh, monkeypatch):
    synced = []
    monkeypatch.setattr(
        cpu_kernel.os, "fsync", lambda file: synced.append((os.fstat(file).st_ino, list(fresh.glob("*.so"))))
    )
    library = cpu_kernel._built()
    assert synced == [(library.stat().st_ino, [])]


@pytest.mark.skipif(not shutil.which("gcc"), reason="no gcc is here")
@pytest.mark.parametrize("command", ["gcc -g0", ""])
def test_cc_may_have_arguments(monkeypatch, command):
    monkeypatch.setenv("CC", command)
    assert cpu_kernel._compiler() == (["gcc", "-g0"] if command else ["gcc"])


@needs_compiler
def test_a_cc_that_is_missing_is_said_and_another_compiler_taken(monkeypatch):
    monkeypatch.setenv("CC", "no-such-compiler -O9")
    with pytest.warns(UserWarning, match="CC=no-such-compiler -O9 names no program; g?cc builds"):
        assert cpu_kernel._compiler()[0] in cpu_kernel.COMPILERS


@needs_compiler
def test_the_defaults_of_torch_do_not_disturb_the_first_use(fresh):
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            assert cpu_kernel.available(CPU)
    finally:
        torch.set_default_dtype(torch.float32)


SCRIPTS = {  # in place of the compiler
    "it fails": "printf 'no such option \\377' >&2; exit 1",
    "it writes nothing": "exit 0",
    "it writes something else": 'while [ "$1" != -o ]; do shift; done; echo text > "$2"',
}


@pytest.mark.parametrize(
    ("trouble", "message"),
    [
        ("no compiler", "no C compiler"),
        ("it fails", "failed: no such option"),
        ("it writes nothing", "No such file.*; CC is .*/cc"),
        ("it writes something else", "invalid ELF header|file too short"),
        ("half a quote", "No closing quotation"),
        ("other symbols", "undefined symbol: alignment_scores"),
        ("wrong values", "wrong values"),
    ],
)
def test_where_it_cannot_be_built_one_warning_says_so_and_torch_scores(fresh, monkeypatch, trouble, message):
    monkeypatch.delenv("CC", raising=False)
    if trouble == "no compiler":
        monkeypatch.setattr(cpu_kernel.shutil, "which", lambda name: None)
    elif trouble in SCRIPTS:
        script = fresh.parent.parent / "cc"
        script.write_text(f"#!/bin/sh\n{SCRIPTS[trouble]}\n")
        script.chmod(0o700)
        monkeypatch.setenv("CC", str(script))
    elif trouble == "half a quote":
        monkeypatch.setenv("CC", "gcc '")
    elif any(map(shutil.which, cpu_kernel.COMPILERS)):
        source = fresh.parent.parent / "wrong.c"
        changed = "p * x + 1.0f / 2;", "p * x + 1.0f / 3;"
        if trouble == "other symbols":
            changed = "alignment_scores", "scores_of_alignment"
        source.write_text(cpu_kernel.SOURCE.read_text().replace(*changed))
        monkeypatch.setattr(cpu_kernel, "SOURCE", source)
    else:
        pytest.skip("no compiler is here")
    given = problem("ragged_captions")
    with pytest.warns(UserWarning, match=f"without its compiled kernel: .*{message}"):
        found = outcome(kernel_scores(), given)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a second call says nothing
        again = outcome(kernel_scores(), given)
    assert all(torch.equal(one, other) for one, other in zip(found, again, strict=True))
    assert max(errors(found, definition(given))) < 1e-5


@needs_compiler
def test_the_kernel_is_not_called_where_it_does_not_serve(calls):
    given = problem("both_masks")
    outcome(kernel_scores(), given.to(torch.float64))
    outcome(partial(tiled.alignment_scores, kernels=False), given)
    assert not calls


@needs_compiler
@pytest.mark.skipif(not hasattr(os, "getuid"), reason="no user ids here")
def test_a_cache_folder_that_cannot_be_trusted_is_not_used(fresh, monkeypatch):
    def refused() -> bool:
        return cpu_kernel._built().parent != fresh and not (fresh.is_dir() and list(fresh.iterdir()))

    (fresh.parent / "elsewhere").mkdir(parents=True, mode=0o700)
    fresh.symlink_to("elsewhere")
    assert refused()
    fresh.unlink()
    fresh.write_text("")
    assert refused()
    fresh.unlink()
    fresh.mkdir()
    for mode in (0o777, 0o744):  # others may write, or read
        fresh.chmod(mode)
        assert refused()
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(cpu_kernel.Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    assert refused()
