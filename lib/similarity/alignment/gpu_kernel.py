"""The ESL score of all pairs from word-region similarity S in one fused Triton kernel, for inference on a GPU.

The kernel reads S (C, W, R, B) and writes the scores (C, B); what `alignment` computes in between stays in registers.
Verified through Triton's interpreter on CPU; see docs/performance.md for GPU figures.

A program scores one caption with a block of images. It holds one side of S (the words, say) for all its images and
loops over the other, twice. For each region, the first loop has all words at hand: it can normalise over the words,
and adds to each word's softmax over the regions and to each word's norm over the regions. With these norms, the second
loop finishes one softmax over the words per region. The maths is the same with words and regions swapped, so the side
is held that fits a power of two better, and neither side has a largest size. Compiled for Hopper (sm_90), both loops
together take some 52 instructions, four of them transcendental, per value of S: arithmetic outweighs reading S twice.

Letters: B images, C captions, R regions, W word pieces.
"""

from __future__ import annotations

import functools
import math
import warnings

import torch
from torch import Tensor

from lib.core.functional import EPSILON
from lib.similarity.alignment import plain
from lib.similarity.alignment.plain import LARGEST_PLAIN_SCALE, NEGATIVE_SLOPE

try:
    import triton
    import triton.language as tl
except ImportError:  # Triton comes with torch on Linux only
    triton = tl = None

COMFORTABLE_HELD = 64  # values of the held side beyond which a program needs several warps
VALUES_PER_WARP = 512  # 16 a thread: enough independent work, and five arrays of them fit 128 registers


def available(device: torch.device, dtype: torch.dtype = torch.float32) -> bool:
    """Whether `pair_scores` takes `dtype` and runs on `device`: a CUDA GPU of capability 7.0 with a working Triton."""
    if triton is None or dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return False
    return device.type == "cuda" and _runs(torch.cuda.current_device() if device.index is None else device.index)


@functools.cache
def _runs(index: int) -> bool:
    """Try the kernel against the definition: Triton needs a compiler and a driver that not every machine has."""
    if torch.cuda.get_device_capability(index) < (7, 0):
        return False
    try:
        return _agrees(torch.device("cuda", index))
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
    warnings.warn(f"the Triton kernel does not run on cuda:{index}, torch is used instead: {reason}", stacklevel=3)
    return False


def _agrees(device: torch.device) -> bool:
    """Compare scores with those of the definition in float64 on one small case; RuntimeError where they differ."""
    with torch.inference_mode(False), torch.no_grad(), torch.device("cpu"):
        S = torch.linspace(-9, 9, 2 * 3 * 5 * 20, dtype=torch.float64).sin().view(2, 3, 5, 20)  # (C, W, R, B)
        real = torch.arange(5) < torch.arange(20)[:, None] % 5 + 1  # (B, R)
        lengths = torch.tensor([2, 3], dtype=torch.int32)
        words = torch.arange(3) < lengths[:, None]  # (C, W)
        S = S.masked_fill(~(words[:, :, None, None] & real.T), 0.0)
        expected = plain.instance_similarity(S.permute(3, 0, 1, 2), real, words, 10.0).T  # (C, B)
        found = pair_scores(S.float().to(device), 10.0, lengths.to(device), real.T.to(device))
    if not torch.allclose(found.double().cpu(), expected, rtol=1e-4, atol=1e-4):
        raise RuntimeError("it computes wrong values")
    return True


def pair_scores(
    S: Tensor, scale: Tensor | float, lengths: Tensor | None = None, region_mask: Tensor | None = None
) -> Tensor:
    """Scores float32 (C, B) of S (C, W, R, B), float32, bfloat16 or float16; sums are taken in float32.

    `scale` is tau; `lengths` int32 (C,) counts the words of each caption, which come first (None: all W are real);
    `region_mask` (R, B) is true, or not 0, for real regions.
    """
    captions, words, regions, images = S.shape
    tau = torch.as_tensor(scale, dtype=torch.float32).to(S.device, non_blocking=True)
    if region_mask is not None:
        region_mask = (region_mask != 0).to(torch.int8).contiguous()  # (R, B)
    hold_words = _padding(words) <= _padding(regions)
    held = max(4, triton.next_power_of_2(words if hold_words else regions))
    block = min(64, max(16, VALUES_PER_WARP // held))
    align = math.gcd(images, 2)
    scores = torch.empty(captions, images, dtype=torch.float32, device=S.device)  # (C, B)
    with torch.cuda.device_of(S):
        for subtract_largest in _regimes(scale):
            _score[(captions * triton.cdiv(images, block),)](
                *(S.contiguous(), lengths, region_mask, scores, tau, words, regions, images // align),
                EPSILON=EPSILON,
                SLOPE=NEGATIVE_SLOPE,
                HOLD_WORDS=hold_words,
                ALL_WORDS=lengths is None,
                ALL_REGIONS=region_mask is None,
                LARGEST_PLAIN=LARGEST_PLAIN_SCALE,
                SUBTRACT_LARGEST=subtract_largest,
                LOG2_E=math.log2(math.e),
                ALIGN=align,
                HELD=held,
                IMAGES=block,
                num_warps=min(16, max(1, held * block // VALUES_PER_WARP)),
                enable_fp_fusion=True,
            )
    return scores


def _regimes(scale: Tensor | float) -> tuple[bool, ...]:
    """Whether to subtract the largest logit; both where only the GPU knows tau, of which one launch ends at once.

    One kernel for both would need twice the registers.
    """
    if isinstance(scale, Tensor) and scale.device.type != "cpu":
        return False, True
    return (float(scale) > LARGEST_PLAIN_SCALE,)


def _padding(size: int) -> tuple[int, float]:
    """How costly it is to hold a side of this size: too many values first, then the share of padding."""
    power = triton.next_power_of_2(size)
    return max(power, COMFORTABLE_HELD), power / size


_jit = triton.jit if triton else lambda function: function


@_jit
def _score(
    S,
    lengths,
    region_mask,
    scores,
    tau,
    words,
    regions,
    aligned_images,  # the number of images divided by ALIGN: a thread then holds ALIGN images and many words
    EPSILON: tl.constexpr,
    SLOPE: tl.constexpr,
    HOLD_WORDS: tl.constexpr,
    ALL_WORDS: tl.constexpr,
    ALL_REGIONS: tl.constexpr,
    LARGEST_PLAIN: tl.constexpr,
    SUBTRACT_LARGEST: tl.constexpr,
    LOG2_E: tl.constexpr,
    ALIGN: tl.constexpr,
    HELD: tl.constexpr,
    IMAGES: tl.constexpr,
):
    images = aligned_images * ALIGN
    if (tl.load(tau) > LARGEST_PLAIN) != SUBTRACT_LARGEST:
        return  # the other launch serves this tau
    scale = tl.load(tau) * LOG2_E  # exponentials are taken to base 2
    parts = tl.cdiv(images, IMAGES)
    caption = (tl.program_id(0) // parts).to(tl.int64)
    b = tl.program_id(0) % parts * IMAGES + tl.arange(0, IMAGES)  # (IMAGES,)
    h = tl.arange(0, HELD)  # (HELD,)
    inside = b < images
    length = words if ALL_WORDS else tl.load(lengths + caption)

    LOOP_MASKED: tl.constexpr = HOLD_WORDS and not ALL_REGIONS  # whether a round may not be real for some images
    if HOLD_WORDS:
        held_size, held_stride, rounds, stride = length, regions * images, regions, images
    else:
        held_size, held_stride, rounds, stride = regions, images, length, regions * images
    start = S + caption * words * regions * images
    offsets = h[:, None].to(tl.int64) * held_stride + b[None, :]  # (HELD, IMAGES)
    held = (h < held_size)[:, None] & inside[None, :]
    held_real = held
    if not HOLD_WORDS and not ALL_REGIONS:
        held_real = held & (tl.load(region_mask + offsets, mask=held, other=0) != 0)

    # First loop. `squares` are of the norms over the looped side; `pooled / total` is the softmax over it, times S.
    squares = tl.zeros((HELD, IMAGES), tl.float32)
    pooled = tl.zeros((HELD, IMAGES), tl.float32)
    total = tl.zeros((HELD, IMAGES), tl.float32)
    largest = tl.zeros((HELD, IMAGES), tl.float32) - scale  # no logit is smaller
    count = tl.zeros((IMAGES,), tl.float32)
    tile, mask_row = start, region_mask
    for _ in range(rounds):
        s, real = _load(tile + offsets, held, held_real, mask_row, b, inside, LOOP_MASKED, ALL_REGIONS)
        g = _attention(s, SLOPE)
        squares += g * g
        logits = g * (scale / (tl.sqrt(tl.sum(g * g, 0)) + EPSILON))[None, :]
        if SUBTRACT_LARGEST:
            larger = tl.maximum(largest, tl.where(real[None, :], logits, -scale))
            fade = tl.exp2(largest - larger)
            pooled, total, largest, logits = pooled * fade, total * fade, larger, logits - larger
        weights = tl.exp2(logits)
        if LOOP_MASKED:
            weights = tl.where(real[None, :], weights, 0.0)
            mask_row += images
        pooled += weights * s
        total += weights
        count += real.to(tl.float32)
        tile += stride
    held_count = tl.sum(held_real.to(tl.float32), 0)  # (IMAGES,)
    score = tl.sum(tl.where(held_real, pooled / total, 0.0), 0) / held_count

    # Second loop: with the norms over the looped side, each round is a complete softmax over the held side.
    unit = scale / (tl.sqrt(squares) + EPSILON)  # (HELD, IMAGES)
    other = tl.zeros((IMAGES,), tl.float32)
    tile, mask_row = start, region_mask
    for _ in range(rounds):
        s, real = _load(tile + offsets, held, held_real, mask_row, b, inside, LOOP_MASKED, ALL_REGIONS)
        logits = _attention(s, SLOPE) * unit
        if SUBTRACT_LARGEST:
            logits -= tl.max(tl.where(held_real, logits, -scale), 0)[None, :]
        weights = tl.where(held_real, tl.exp2(logits), 0.0)
        other += tl.sum(weights * s, 0) / tl.sum(weights, 0)  # s is 0 throughout where the round is not real
        if LOOP_MASKED:
            mask_row += images
        tile += stride
    tl.store(scores + caption * images + b, score + other / count, mask=inside)


@_jit
def _load(pointers, held, held_real, mask_row, b, inside, LOOP_MASKED: tl.constexpr, ALL_REGIONS: tl.constexpr):
    """Values of S (HELD, IMAGES) in float32, 0 at padding; the images (IMAGES,) for which this round is real."""
    s = tl.load(pointers, mask=held, other=0.0).to(tl.float32)
    real = inside
    if LOOP_MASKED:
        real = tl.load(mask_row + b, mask=inside, other=0) != 0
        s = tl.where(real[None, :], s, 0.0)
    elif not ALL_REGIONS:
        s = tl.where(held_real, s, 0.0)
    return s, real


@_jit
def _attention(s, SLOPE: tl.constexpr):
    """LeakyReLU(tanh s) with tanh s = s p / sqrt(q), a minimax fit: relative error below 1e-6, near 0 as well.

    A fit of this form needs no exponential and no division; a GPU computes 1 / sqrt as one instruction.
    """
    x = tl.minimum(tl.maximum(s, -8.5), 8.5)
    y = x * x
    p = (3.2623066e-3 * y + 0.13319382) * y + 1.0000001
    q = ((((1.0640910e-5 * y + 8.6943991e-4) * y + 2.4225902e-2) * y + 0.26851875) * y + 0.93305719) * y + 1.0
    t = x * p * tl.rsqrt(q)
    return tl.maximum(t, SLOPE * t)
