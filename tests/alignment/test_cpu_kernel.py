"""The compiled CPU kernel against alignment in float64, and what happens where it cannot be built."""

from __future__ import annotations

import os
import shutil
import stat
import warnings

import pytest
import torch

from lib.alignment import cpu_kernel, gpu_kernel
from lib.alignment.tiled import alignment_scores
from lib.fragments import Fragments
from tests import helpers

CPU = torch.device("cpu")
needs_compiler = pytest.mark.skipif(not any(map(shutil.which, cpu_kernel.COMPILERS)), reason="no C compiler is here")

SIZES = {"captions": 7, "words": 6, "regions": 9, "images": 40, "size": 24}
CASES = {
    "plain": {},
    "ragged_captions": {"ragged": True},
    "masked_regions": {"masked": True},
    "both_masks": {"ragged": True, "masked": True},
    "one_word": {"words": 1},
    "one_region": {"regions": 1, "ragged": True},
    "one_image": {"images": 1, "ragged": True, "masked": True},
    "one_of_all": {"captions": 1, "words": 1, "regions": 1, "images": 1},
    "one_image_short_of_a_task": {"images": 31, "masked": True},
    "a_whole_task_of_images": {"images": 32, "masked": True},
    "one_image_more_than_a_task": {"images": 33, "masked": True},
    "several_tasks": {"images": 100, "ragged": True},
    "long_caption": {"words": 150, "captions": 2, "ragged": True},
    "many_regions": {"regions": 256, "captions": 2, "masked": True},
    "tiny_similarities": {"factor": 1e-4},
    "large_similarities": {"factor": 30.0},
    "smallest_scale": {"scale": 1e-3},
    "largest_plain_scale": {"scale": 60.0, "ragged": True},
    "several_blocks": {"captions": 40, "ragged": True, "memory": 1 << 14},
    "several_image_tiles": {"images": 70, "ragged": True, "masked": True, "memory": 1},
}


def problem(name: str) -> tuple[Fragments, Fragments, torch.Tensor, int | None]:
    """Random prepared images and captions, tau, and the memory to score with."""
    case = {**SIZES, **CASES[name]}
    generator = torch.Generator().manual_seed(len(name))
    x = torch.randn(case["images"], case["regions"], case["size"], generator=generator)  # (B, R, E)
    y = torch.randn(case["captions"], case["words"], case["size"], generator=generator)  # (C, W, E)
    x, y = x / x.norm(dim=-1, keepdim=True), y / y.norm(dim=-1, keepdim=True) * case.get("factor", 1.0)
    sides = []
    for features, ragged in ((x, case.get("masked")), (y, case.get("ragged"))):
        count, length = features.shape[:2]
        lengths = torch.full((count,), length)
        if ragged:
            lengths = torch.randint(1, length + 1, (count,), generator=generator)
        mask = torch.arange(length) < lengths[:, None]
        sides.append(Fragments(features.masked_fill(~mask[..., None], 9.0), mask))  # padding may hold anything
    return *sides, torch.tensor(case.get("scale", 14.3)), case.get("memory")


def scores_and_gradients(images: Fragments, captions: Fragments, scale: torch.Tensor, memory, dtype) -> list:
    leaves = [x.detach().to(dtype, copy=True).requires_grad_() for x in (images.features, captions.features, scale)]
    scores = alignment_scores(Fragments(leaves[0], images.mask), Fragments(leaves[1], captions.mask), leaves[2], memory)
    (scores * torch.linspace(0.5, 1.5, scores.numel(), dtype=dtype).view_as(scores)).sum().backward()
    return [scores.detach(), *(leaf.grad for leaf in leaves)]


def relative_errors(found: list, expected: list) -> list[float]:
    """Of the scores and of each gradient; that of tau is a sum over all pairs and is held against the sum of scores."""
    sizes = [other.abs().max() for other in expected]
    sizes[3] = torch.maximum(sizes[3], expected[0].abs().sum())
    pairs = zip(found, expected, sizes, strict=True)
    return [float((one - other).abs().max() / size.clamp(min=1e-30)) for one, other, size in pairs]


@needs_compiler
def test_the_kernel_is_built_and_used_where_there_is_a_compiler():
    assert cpu_kernel.available(CPU)


@needs_compiler
@pytest.mark.parametrize("name", CASES)
def test_scores_and_gradients_equal_those_in_float64(name, monkeypatch):
    calls = []
    for function in ("pair_scores", "gradients"):
        original = getattr(cpu_kernel, function)
        monkeypatch.setattr(
            cpu_kernel, function, lambda *args, f=original, **kw: (calls.append(f.__name__), f(*args))[1]
        )
    *inputs, memory = problem(name)
    expected = scores_and_gradients(*inputs, None, torch.float64)
    assert not calls  # float64 runs in torch
    found = scores_and_gradients(*inputs, memory, torch.float32)
    with torch.inference_mode():
        again = alignment_scores(*inputs, memory)
    assert {"pair_scores", "gradients"} <= set(calls)
    in_training, *gradients, in_evaluation = relative_errors([*found, again], [*expected, expected[0]])
    assert max(in_training, in_evaluation) < 2e-6
    # Where a norm is over one or two values, a gradient is a small difference: torch's float32 errs by 5e-5 as well.
    assert max(gradients) < 1e-4


@needs_compiler
def test_switching_kernels_off_gives_the_same_scores_and_gradients(monkeypatch):
    *inputs, memory = problem("both_masks")
    found = scores_and_gradients(*inputs, memory, torch.float32)
    monkeypatch.setattr(gpu_kernel, "_enabled", False)
    monkeypatch.setattr(cpu_kernel, "pair_scores", None)
    expected = scores_and_gradients(*inputs, memory, torch.float32)
    scores, *gradients = relative_errors(found, expected)
    assert scores < 2e-6 and max(gradients) < 1e-4


@needs_compiler
def test_zero_similarities_give_zero_scores_and_finite_gradients():
    images, captions, scale, _ = problem("both_masks")
    captions.features.zero_()
    scores, *gradients = scores_and_gradients(images, captions, scale, None, torch.float32)
    assert (scores == 0).all() and all(gradient.isfinite().all() for gradient in gradients)


@needs_compiler
def test_the_number_of_threads_changes_no_bit():
    *inputs, memory = problem("several_tasks")
    results = []
    for count in (1, 2, 3):
        with helpers.threads(count):
            results.append(scores_and_gradients(*inputs, memory, torch.float32))
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
@pytest.mark.parametrize("autocast", [False, True])
def test_bfloat16_features_have_scores_and_gradients(autocast):
    images, captions, scale, _ = problem("plain")
    expected = scores_and_gradients(images, captions, scale, None, torch.float64)
    dtype = torch.float32 if autocast else torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found = scores_and_gradients(images, captions, scale.to(dtype), None, dtype)
    bound = 1e-4 if autocast else 0.1  # autocast leaves the head in float32; in bfloat16, S has 8 bits
    assert max(relative_errors([x.double() for x in found], expected)) < bound


def test_other_types_scales_and_devices_are_left_to_torch():
    assert not cpu_kernel.available(torch.device("cuda"))
    assert not cpu_kernel.available(CPU, torch.float64)
    assert not cpu_kernel.available(CPU, torch.float32, 60.1)
    assert not cpu_kernel.available(CPU, torch.float32, float("nan"))


@needs_compiler
def test_no_kernels_in_the_environment_switches_it_off(monkeypatch):
    monkeypatch.setenv("ESL_NO_KERNELS", "1")
    assert not cpu_kernel.available(CPU)


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
def test_a_damaged_library_is_built_again(fresh):
    library = cpu_kernel._built()
    library.write_bytes(b"\x7fELF")
    assert cpu_kernel.available(CPU) and library.stat().st_size > 1000


@needs_compiler
@pytest.mark.parametrize("command", ["gcc -g0", "no-such-compiler", ""])
def test_cc_may_have_arguments_and_one_that_is_missing_is_passed_over(fresh, monkeypatch, command):
    if not shutil.which("gcc"):
        pytest.skip("no gcc is here")
    monkeypatch.setenv("CC", command)
    assert cpu_kernel._compiler() == (["gcc", "-g0"] if "-g0" in command else ["gcc"])
    assert cpu_kernel.available(CPU)


@needs_compiler
def test_the_defaults_of_torch_do_not_disturb_the_first_use(fresh):
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            assert cpu_kernel.available(CPU)
    finally:
        torch.set_default_dtype(torch.float32)


@needs_compiler
@pytest.mark.skipif(not hasattr(os, "getuid"), reason="no user ids here")
@pytest.mark.parametrize("trouble", ["others may write", "a file", "no home"])
def test_a_cache_folder_that_cannot_be_trusted_is_not_used(fresh, monkeypatch, trouble):
    fresh.parent.mkdir()
    if trouble == "no home":
        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.setattr(cpu_kernel.Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    elif trouble == "a file":
        fresh.write_text("")
    else:
        fresh.mkdir()
        fresh.chmod(0o777)
    assert cpu_kernel.available(CPU)
    assert trouble != "others may write" or not list(fresh.iterdir())


@pytest.mark.parametrize(
    ("trouble", "message"),
    [("no compiler", "no C compiler"), ("it fails", "failed: no such option"), ("wrong values", "wrong values")],
)
def test_where_it_cannot_be_built_one_warning_says_so_and_torch_scores(fresh, monkeypatch, trouble, message):
    monkeypatch.delenv("CC", raising=False)
    if trouble == "no compiler":
        monkeypatch.setattr(cpu_kernel.shutil, "which", lambda name: None)
    elif trouble == "it fails":
        script = fresh.parent.parent / "cc"
        script.write_text("#!/bin/sh\necho no such option >&2\nexit 1\n")
        script.chmod(0o700)
        monkeypatch.setenv("CC", str(script))
    elif any(map(shutil.which, cpu_kernel.COMPILERS)):
        source = fresh.parent.parent / "wrong.c"
        source.write_text(cpu_kernel.SOURCE.read_text().replace("p * x + 1.0f / 2;", "p * x + 1.0f / 3;"))
        monkeypatch.setattr(cpu_kernel, "SOURCE", source)
    else:
        pytest.skip("no compiler is here")
    *inputs, memory = problem("ragged_captions")
    with pytest.warns(UserWarning, match=f"without its compiled kernel: .*{message}"):
        found = scores_and_gradients(*inputs, memory, torch.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a second call says nothing
        scores_and_gradients(*inputs, memory, torch.float32)
    expected = scores_and_gradients(*inputs, memory, torch.float64)
    assert max(relative_errors(found, expected)) < 5e-6
