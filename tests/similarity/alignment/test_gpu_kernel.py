"""The fused kernel against the definition in float64, through Triton's interpreter, which runs a kernel without a GPU.

Triton decides at import whether it interprets, so this file, run as a program, computes all cases in a process of
its own and prints the errors; the tests look them up. On a machine with a GPU the same cases run compiled as well.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

from lib.core import functional
from lib.similarity.alignment import cpu_kernel, gpu_kernel, plain, tiled, tiles
from tests.similarity.alignment import problems

needs_triton = pytest.mark.skipif(gpu_kernel.triton is None, reason="Triton is not installed")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU is here")

BASE = {"captions": 3, "words": 6, "regions": 9, "images": 18}
CASES = {
    "nothing_special": {},
    "random_sizes": {"captions": 4, "words": 11, "regions": 3, "images": 29, "ragged": True, "masked": True},
    "bfloat16": {"dtype": "bfloat16"},
    "float16": {"dtype": "float16"},
    "ragged_captions": {"ragged": True},
    "masked_regions": {"masked": True},
    "float_region_mask": {"masked": True, "float_mask": True},
    "both_masks_holding_words": {"ragged": True, "masked": True},
    "both_masks_holding_regions": {"ragged": True, "masked": True, "words": 9, "regions": 7, "images": 17},
    "largest_plain_scale": {"scale": 60.0},
    "large_scale": {"scale": 150.0},
    "large_scale_masked": {"scale": 150.0, "ragged": True, "masked": True},
    "large_scale_masked_holding_regions": {"scale": 150.0, "ragged": True, "masked": True, "words": 9, "regions": 7},
    "scale_that_the_cpu_does_not_know": {"unknown_scale": True, "masked": True},
    "large_scale_that_the_cpu_does_not_know": {"unknown_scale": True, "scale": 150.0, "ragged": True},
    "one_word": {"words": 1},
    "one_region": {"regions": 1},
    "one_image": {"images": 1},
    "one_of_all": {"captions": 1, "words": 1, "regions": 1, "images": 1},
    "odd_images_over_several_programs": {"images": 71, "captions": 2, "words": 3},
    "words_past_a_power_of_two": {"words": 17, "regions": 5, "ragged": True, "captions": 2},
    "long_caption": {"words": 150, "regions": 6, "ragged": True, "captions": 2},
    "256_cells": {"words": 5, "regions": 256, "captions": 1, "masked": True},
    "many_of_both": {"words": 130, "regions": 70, "captions": 1, "images": 3, "ragged": True},
    "tiny_similarities": {"size": 1e-6},
    "large_similarities": {"size": 30.0},
    "zero_similarities": {"size": 0.0},
    "not_contiguous": {"strided": True},
}


def error_of(name: str, device: str = "cpu") -> float:
    """Largest difference from the definition's float64 scores, relative to the largest score."""
    case = {**BASE, **CASES[name]}
    generator = torch.Generator().manual_seed(len(name))
    shape = [case[side] for side in BASE]
    S = torch.randn(shape, generator=generator) * case.get("size", 0.3)
    S = S.to(getattr(torch, case.get("dtype", "float32")))  # (C, W, R, B)
    captions, words, regions, images = shape
    lengths = torch.full((captions,), words, dtype=torch.int32)
    if case.get("ragged"):
        lengths = torch.randint(1, words + 1, (captions,), generator=generator, dtype=torch.int32)
    mask = torch.ones(regions, images, dtype=torch.bool)
    if case.get("masked"):
        mask = torch.rand(regions, images, generator=generator) < 0.7
        mask[0] = True
    scale = torch.tensor(case.get("scale", 14.3))

    real_words = torch.arange(words) < lengths[:, None]  # (C, W)
    exact = S.double() * mask * real_words[..., None, None]
    expected = plain.instance_similarity(exact.permute(3, 0, 1, 2), mask.T, real_words, scale.double()).T  # (C, B)

    given = S.to(device)
    if case.get("ragged"):  # padding may hold anything
        given[~real_words.to(device)] = torch.nan
    if case.get("strided"):
        given = given.transpose(1, 2).contiguous().transpose(1, 2)
    regimes = gpu_kernel._regimes
    if case.get("unknown_scale"):
        gpu_kernel._regimes = lambda _: regimes(torch.empty((), device="meta"))
    scores = gpu_kernel.pair_scores(
        given,
        scale.to(device),
        lengths.to(device) if case.get("ragged") else None,
        (mask.float() if case.get("float_mask") else mask).to(device) if case.get("masked") else None,
    )
    gpu_kernel._regimes = regimes
    assert scores.dtype == torch.float32 and scores.shape == expected.shape
    return float((scores.cpu() - expected).abs().max() / expected.abs().max().clamp(min=1e-30))


def alignment_error(dtype: torch.dtype, device: str = "cpu") -> float:
    """Largest relative error of `tiled.alignment_scores` when it calls the kernel, in padded blocks as on a GPU.

    In bfloat16 it is held against S rounded to bfloat16: only single values of S round otherwise.
    """
    given, images = problems.problem("several_blocks"), problems.problem("both_masks").images.select(slice(10))
    given = given._replace(images=images, captions=given.captions.select(slice(6)), memory=1 << 16).to(dtype)
    moved = given.images.to(device), given.captions.to(device), given.scale.to(device)
    calls, original = [], gpu_kernel.pair_scores
    gpu_kernel.pair_scores = lambda *args: (calls.append(args), original(*args))[1]
    try:
        scores = tiled.alignment_scores(*moved, memory=given.memory)
    finally:
        gpu_kernel.pair_scores = original
    padded = [args[2] is not None for args in calls]
    assert any(padded) and not all(padded), "blocks with padding and without were to be scored"
    assert scores.dtype == torch.float32
    S = plain.word_region_similarity(*(side.to(torch.float64) for side in given[:2])).to(dtype).double()
    expected = plain.instance_similarity(S, given.images.mask, given.captions.mask, given.scale.double())
    return problems.errors([scores.cpu()], [expected])[0]


def changed_constant_error(constant: str) -> float:
    """The error where slope or epsilon is another number, for the definition and for the kernel."""
    modules = [module for module in (plain, functional, gpu_kernel) if hasattr(module, constant)]
    before = [getattr(module, constant) for module in modules]
    try:
        for module in modules:
            setattr(module, constant, 0.3)
        return error_of("both_masks_holding_words")
    finally:
        for module, value in zip(modules, before, strict=True):
            setattr(module, constant, value)


def verdict(slope: float) -> str:
    """What the trial before the first use says of a kernel with this slope."""
    before, gpu_kernel.NEGATIVE_SLOPE = gpu_kernel.NEGATIVE_SLOPE, slope
    try:
        return "good" if gpu_kernel._agrees(torch.device("cpu")) else "bad"
    except RuntimeError as error:
        return str(error)
    finally:
        gpu_kernel.NEGATIVE_SLOPE = before


def attention_error() -> float:
    """Largest relative error of the kernel's LeakyReLU(tanh S), read off a kernel that computes it alone."""
    triton, tl = gpu_kernel.triton, gpu_kernel.tl

    @triton.jit
    def attention(x, out, SIZE: tl.constexpr, SLOPE: tl.constexpr):
        i = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
        tl.store(out + i, gpu_kernel._attention(tl.load(x + i), SLOPE))

    x = torch.cat([torch.logspace(-20, 1.5, 2048), torch.linspace(1e-3, 12.0, 2048)])
    x = torch.cat([x, -x])
    out = torch.empty_like(x)
    attention[(2,)](x, out, SIZE=len(x) // 2, SLOPE=plain.NEGATIVE_SLOPE)
    exact = torch.nn.functional.leaky_relu(torch.tanh(x.double()), plain.NEGATIVE_SLOPE)
    return float((out / exact - 1).abs().max())


@pytest.fixture(scope="module")
def interpreted() -> dict:
    """Errors of all cases, computed by the interpreter in another process."""
    root = Path(__file__).resolve().parents[3]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-m", "tests.similarity.alignment.test_gpu_kernel"]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def tolerance(name: str) -> float:
    return 1e-5 if "scale" in CASES[name] else 1e-6  # exp(scale g) multiplies the relative error of g by the scale


@needs_triton
@pytest.mark.slow
def test_interpreted_kernel_equals_the_definition_in_float64(interpreted):
    limits = {name: tolerance(name) for name in CASES}
    limits |= {"alignment float32": 2e-6, "alignment bfloat16": 1e-3}  # of tiles scored through the kernel
    limits |= {"another NEGATIVE_SLOPE": 2e-6, "another EPSILON": 2e-6}  # none is the kernel's own
    limits |= {"attention": 1e-6}  # of tanh near zero and far from it
    assert not {name: interpreted[name] for name, limit in limits.items() if not interpreted[name] < limit}


@needs_triton
@pytest.mark.slow
def test_the_trial_accepts_the_kernel_and_refuses_one_with_another_slope(interpreted):
    assert interpreted["trial"] == "good" and interpreted["trial of another slope"] == "it computes wrong values"


@needs_gpu
def test_compiled_kernel_equals_the_definition_in_float64():
    if not gpu_kernel.available(torch.device("cuda")):
        pytest.skip("the Triton kernel does not run on this machine")
    errors = {name: error_of(name, "cuda") / tolerance(name) for name in CASES}
    errors["alignment"] = alignment_error(torch.float32, "cuda") / 1e-5
    assert all(error < 4 for error in errors.values()), errors  # a GPU's exponential and division are approximate


def test_kernel_is_not_available_on_cpu():
    assert not gpu_kernel.available(torch.device("cpu"))


def test_only_types_that_a_kernel_reads_are_available(monkeypatch):
    monkeypatch.setattr(gpu_kernel, "triton", object())
    monkeypatch.setattr(gpu_kernel, "_runs", lambda index: True)
    gpu = torch.device("cuda:0")
    assert all(gpu_kernel.available(gpu, dtype) for dtype in (torch.float32, torch.bfloat16, torch.float16))
    assert not gpu_kernel.available(gpu, torch.float64)
    monkeypatch.setattr(gpu_kernel, "triton", None)
    assert not gpu_kernel.available(gpu)


def by_definition(S, scale, lengths, region_mask) -> torch.Tensor:
    """What a right kernel gives."""
    words = torch.arange(S.shape[1], device=S.device) < lengths[:, None]
    return plain.instance_similarity(S.permute(3, 0, 1, 2), region_mask.T, words, scale).T


WRONG_KERNELS = {
    "a thousandth too much": lambda *args: by_definition(*args) * 1.001,
    "one wrong score": lambda *args: by_definition(*args).index_put(
        (torch.tensor(1), torch.tensor(19)), torch.tensor(0.0)
    ),
    "not a number": lambda *args: by_definition(*args) * torch.nan,
    "another temperature": lambda S, scale, *args: by_definition(S, scale * 1.01, *args),
    "padding words counted": lambda S, scale, lengths, mask: by_definition(S, scale, torch.full_like(lengths, 3), mask),
    "padding regions counted": lambda S, scale, lengths, mask: by_definition(S, scale, lengths, torch.ones_like(mask)),
}


def test_a_right_kernel_passes_the_trial_whatever_the_defaults_of_torch(monkeypatch):
    monkeypatch.setattr(gpu_kernel, "pair_scores", by_definition)
    assert gpu_kernel._agrees(torch.device("cpu"))
    with torch.inference_mode(), torch.device("meta"):
        assert gpu_kernel._agrees(torch.device("cpu"))


def test_a_kernel_that_computes_wrong_values_is_refused(monkeypatch):
    for kernel in WRONG_KERNELS.values():
        monkeypatch.setattr(gpu_kernel, "pair_scores", kernel)
        with pytest.raises(RuntimeError):
            gpu_kernel._agrees(torch.device("cpu"))


@pytest.fixture
def untried(monkeypatch):
    """A GPU on which no kernel has been tried, whose work the CPU does."""
    agrees = gpu_kernel._agrees
    monkeypatch.setattr(gpu_kernel, "triton", object())
    monkeypatch.setattr(gpu_kernel, "_agrees", lambda device: agrees(torch.device("cpu")))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (9, 0))
    gpu_kernel._runs.cache_clear()
    yield torch.device("cuda:0")
    gpu_kernel._runs.cache_clear()


@pytest.mark.parametrize("fault", ["wrong values", "no driver"])
def test_a_kernel_that_fails_its_trial_is_never_used_and_one_warning_says_so(untried, monkeypatch, fault):
    def driver_missing(*args):
        raise OSError("no driver\nand more lines")

    wrong = WRONG_KERNELS["a thousandth too much"]
    monkeypatch.setattr(gpu_kernel, "pair_scores", wrong if fault == "wrong values" else driver_missing)
    with pytest.warns(UserWarning, match=f"does not run on cuda:0, torch is used instead: .*{fault}$"):
        assert not gpu_kernel.available(untried)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a second call says nothing
        assert not gpu_kernel.available(untried)


def test_a_kernel_is_tried_once_for_each_gpu(untried, monkeypatch):
    trials = []
    monkeypatch.setattr(gpu_kernel, "pair_scores", lambda *args: (trials.append(1), by_definition(*args))[1])
    assert gpu_kernel.available(untried) and gpu_kernel.available(untried) and len(trials) == 1
    assert gpu_kernel.available(torch.device("cuda:1")) and len(trials) == 2


def test_a_gpu_older_than_volta_is_left_to_torch_untried(untried, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (6, 1))
    monkeypatch.setattr(gpu_kernel, "pair_scores", lambda *args: pytest.fail("it was tried"))
    assert not gpu_kernel.available(untried)


def let_old_interpreters_count() -> None:
    """Before 3.8, Triton's interpreter reads a loop bound from an array in a way that numpy 2.4 refuses."""
    from triton.runtime import interpreter

    original = interpreter._patch_lang_tensor

    def patched(tensor, scope):
        original(tensor, scope)
        tensor.__index__ = lambda self: int(self.handle.data.item())

    interpreter._patch_lang_tensor = patched


if __name__ == "__main__":
    let_old_interpreters_count()
    errors = {name: error_of(name) for name in CASES}
    errors["attention"] = attention_error()
    errors |= {f"another {name}": changed_constant_error(name) for name in ("NEGATIVE_SLOPE", "EPSILON")}
    errors |= {"trial": verdict(gpu_kernel.NEGATIVE_SLOPE), "trial of another slope": verdict(0.11)}
    budget = tiles.budget
    gpu_kernel.available = lambda device, dtype: dtype != torch.float64  # the interpreter takes the place of the GPU
    cpu_kernel.available = lambda *arguments: False
    tiles.budget = lambda *arguments: budget(*arguments)._replace(spread=1.25)  # blocks as on a GPU
    for dtype in (torch.float32, torch.bfloat16):
        errors[f"alignment {str(dtype).removeprefix('torch.')}"] = alignment_error(dtype)
    print(json.dumps(errors))
