"""The fused kernel against alignment in float64, through Triton's interpreter, which runs a kernel without a GPU.

Triton decides at import whether it interprets, so this file, run as a program, computes all cases in a process of
its own and prints the errors; the tests look them up. On a machine with a GPU the same cases run compiled as well.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lib.alignment import cpu_kernel, gpu_kernel, tiled, tiles
from lib.fragments import Fragments

needs_triton = pytest.mark.skipif(gpu_kernel.triton is None, reason="Triton is not installed")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU is here")

BASE = {"captions": 3, "words": 6, "regions": 9, "images": 18}
CASES = {
    "plain": {},
    "bfloat16": {"dtype": "bfloat16"},
    "float16": {"dtype": "float16"},
    "ragged_captions": {"ragged": True},
    "masked_regions": {"masked": True},
    "float_region_mask": {"masked": True, "float_mask": True},
    "both_masks_holding_words": {"ragged": True, "masked": True},
    "both_masks_holding_regions": {"ragged": True, "masked": True, "words": 9, "regions": 7, "images": 17},
    "large_scale": {"scale": 150.0},
    "large_scale_masked": {"scale": 150.0, "ragged": True, "masked": True},
    "large_scale_masked_holding_regions": {"scale": 150.0, "ragged": True, "masked": True, "words": 9, "regions": 7},
    "one_word": {"words": 1},
    "one_region": {"regions": 1},
    "one_image": {"images": 1},
    "one_of_all": {"captions": 1, "words": 1, "regions": 1, "images": 1},
    "odd_images_over_several_programs": {"images": 71, "captions": 2, "words": 3},
    "words_past_a_power_of_two": {"words": 17, "regions": 5, "ragged": True, "captions": 2},
    "long_caption": {"words": 150, "regions": 6, "ragged": True, "captions": 2},
    "many_regions": {"words": 5, "regions": 130, "captions": 1},
    "many_of_both": {"words": 130, "regions": 70, "captions": 1, "images": 3, "ragged": True},
    "tiny_similarities": {"size": 1e-6},
    "large_similarities": {"size": 30.0},
    "zero_similarities": {"size": 0.0},
    "not_contiguous": {"strided": True},
}


def error_of(name: str, device: str = "cpu") -> float:
    """Largest difference from alignment's float64 scores, relative to the largest score."""
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
    masks = tiled._Masks(real_words[..., None, None], mask, lengths[:, None], mask.sum(0))
    expected = tiled._pair_scores(exact, float(scale), masks, tiles.Scratch(exact.device))  # (C, B)

    given = S.to(device)
    if case.get("ragged"):  # padding may hold anything
        given[~real_words.to(device)] = torch.nan
    if case.get("strided"):
        given = given.transpose(1, 2).contiguous().transpose(1, 2)
    scores = gpu_kernel.pair_scores(
        given,
        scale.to(device),
        lengths.to(device) if case.get("ragged") else None,
        (mask.float() if case.get("float_mask") else mask).to(device) if case.get("masked") else None,
    )
    assert scores.dtype == torch.float32 and scores.shape == expected.shape
    return float((scores.cpu() - expected).abs().max() / expected.abs().max().clamp(min=1e-30))


def alignment_error(dtype: torch.dtype, device: str = "cpu") -> float:
    """Largest relative error of `alignment_scores` when it calls the kernel, in padded blocks as on a GPU."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(10, 7, 32, generator=generator).to(device, dtype) / 8  # (B, R, E)
    captions = torch.randn(9, 6, 32, generator=generator).to(device, dtype) / 8  # (C, W, E)
    region_mask = torch.arange(7) < torch.randint(1, 8, (10, 1), generator=generator)
    word_mask = torch.arange(6) < torch.tensor([6, 2, 5, 5, 1, 3, 6, 5, 4])[:, None]
    images, captions = Fragments(images, region_mask.to(device)), Fragments(captions, word_mask.to(device))
    scores = tiled.alignment_scores(images, captions, torch.tensor(14.3, device=device), memory=1 << 14)
    exact = [Fragments(x.features.cpu().double(), x.mask.cpu()) for x in (images, captions)]
    expected = tiled.alignment_scores(*exact, torch.tensor(14.3, dtype=torch.float64))
    assert scores.dtype == torch.float32
    return float((scores.cpu() - expected).abs().max() / expected.abs().max())


def attention_error() -> float:
    """Largest relative error of the kernel's LeakyReLU(tanh S), read off a kernel that computes it alone."""
    triton, tl = gpu_kernel.triton, gpu_kernel.tl

    @triton.jit
    def attention(x, out, SIZE: tl.constexpr):
        i = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
        tl.store(out + i, gpu_kernel._attention(tl.load(x + i)))

    x = torch.cat([torch.logspace(-20, 1.5, 2048), torch.linspace(1e-3, 12.0, 2048)])
    x = torch.cat([x, -x])
    out = torch.empty_like(x)
    attention[(2,)](x, out, SIZE=len(x) // 2)
    exact = torch.nn.functional.leaky_relu(torch.tanh(x.double()), tiled.NEGATIVE_SLOPE)
    return float((out / exact - 1).abs().max())


@pytest.fixture(scope="module")
def interpreted() -> dict[str, float]:
    """Errors of all cases, computed by the interpreter in another process."""
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-m", "tests.alignment.test_gpu_kernel"]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def tolerance(name: str) -> float:
    return 1e-5 if "scale" in CASES[name] else 1e-6  # exp(scale g) multiplies the relative error of g by the scale


@needs_triton
@pytest.mark.parametrize("name", CASES)
def test_interpreted_kernel_equals_alignment_in_float64(interpreted, name):
    assert interpreted[name] < tolerance(name)


@needs_triton
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 2e-6), ("bfloat16", 5e-3)])
def test_alignment_scores_are_the_same_through_the_kernel(interpreted, dtype, tolerance):
    assert interpreted[f"alignment {dtype}"] < tolerance


@needs_triton
def test_tanh_is_accurate_near_zero_and_far_from_it(interpreted):
    assert interpreted["attention"] < 1e-6


@needs_gpu
def test_compiled_kernel_equals_alignment_in_float64():
    if not gpu_kernel.available(torch.device("cuda")):
        pytest.skip("the Triton kernel does not run on this machine")
    errors = {name: error_of(name, "cuda") / tolerance(name) for name in CASES}
    errors["alignment"] = alignment_error(torch.float32, "cuda") / 1e-5
    assert all(error < 4 for error in errors.values()), errors  # a GPU's exponential and division are approximate


def test_kernel_is_not_available_on_cpu():
    assert not gpu_kernel.available(torch.device("cpu"))


@pytest.mark.parametrize("switch", ["set_enabled", "environment"])
def test_switched_off_kernel_is_not_available(monkeypatch, switch):
    monkeypatch.setattr(gpu_kernel, "triton", object())
    monkeypatch.setattr(gpu_kernel, "_runs", lambda index: True)
    monkeypatch.delenv("ESL_NO_KERNELS", raising=False)
    gpu = torch.device("cuda:0")
    assert gpu_kernel.available(gpu)
    if switch == "environment":
        monkeypatch.setenv("ESL_NO_KERNELS", "1")
    else:
        monkeypatch.setattr(gpu_kernel, "_enabled", True)  # restored afterwards
        gpu_kernel.set_enabled(False)
    assert not gpu_kernel.available(gpu)


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
    budget = tiles.budget
    gpu_kernel.available = lambda device, dtype: dtype != torch.float64  # the interpreter takes the place of the GPU
    cpu_kernel.available = lambda *arguments: False
    tiles.budget = lambda *arguments: budget(*arguments)._replace(spread=1.25)  # blocks as on a GPU
    for dtype in (torch.float32, torch.bfloat16):
        errors[f"alignment {str(dtype).removeprefix('torch.')}"] = alignment_error(dtype)
    print(json.dumps(errors))
