"""From word-region similarity to one score per image-caption pair, forward and backward, tile by tile.

S of all pairs is one matrix product. It is laid out as (C, W, R, B), images innermost, so that every sum over words
or regions adds contiguous rows; captions are sorted by length and packed, so that few or no padding words are
multiplied. The backward pass is written by hand: it works on the same tiles and keeps S alone, where autograd would
keep a dozen tensors of its size.

Letters: B images, C captions (of a tile), R regions, W word pieces, E size of all measure-units side by side.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lib.core.fragments import Prepared, on_device
from lib.core.functional import EPSILON
from lib.similarity.alignment import cpu_kernel, gpu_kernel, tiles
from lib.similarity.alignment.plain import LARGEST_PLAIN_SCALE, NEGATIVE_SLOPE

WORDS, REGIONS = 1, 2  # dimensions of S (C, W, R, B)
MOST_SAVED = 1 << 28  # values of S that a backward pass keeps (1 GiB); beyond, S is multiplied again


def alignment_scores(
    images: Prepared, captions: Prepared, scale: Tensor, memory: int | None = None, kernels: bool = True
) -> Tensor:
    """The scores of `plain.alignment_scores`, tile by tile; differentiable once, in all three arguments.

    `memory` limits the buffers, in bytes; without `kernels` torch does all of it.
    """
    lengths = captions.lengths
    order = np.argsort(lengths, kind="stable")  # (C,)
    places = np.arange(captions.real.size).reshape(captions.real.shape)[order][captions.real[order]]  # (n,)
    words, places = captions.units.flatten(0, 1), on_device(places, scale.device)  # (C * W, E), (n,)
    region_mask = None if images.real.all() else images.mask.T  # (R, B)
    regions = images.units if region_mask is None else images.units.masked_fill(~images.mask[..., None], 0.0)
    keep = torch.is_grad_enabled() and any(x.requires_grad for x in (words, regions, scale))
    if keep:
        words, places = words.index_select(0, places), None  # (n, E), in the order of the captions' lengths
    lengths = lengths[order].tolist()
    scores, _ = _alignment(words, places, regions, scale, region_mask, lengths, keep, memory, kernels)  # (C, B)
    return scores.index_select(0, on_device(np.argsort(order), scores.device)).T  # (B, C)


def forward(
    words: Tensor, places: Tensor | None, regions: Tensor, scale: Tensor, region_mask: Tensor | None,
    lengths: list[int], keep: bool, memory: int | None, kernels: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """words (n, E), regions (B, R, E), scale () -> scores (C, B), captions in the order of their lengths.

    Without gradients the words may be any (m, E) of which `places` (n,) names the packed ones; they are then gathered
    block by block, in memory that is reused. With `keep` the second result is S (n, R * B), for `backward`; it has no
    values without, or where it would be too large to be kept.
    """
    dtype = _score_type(words)
    scores = words.new_empty(len(lengths), len(regions), dtype=dtype)  # (C, B)
    tau, packed = _temperature(scale, dtype, kernels)
    fused = kernels and gpu_kernel.available(words.device, words.dtype)
    size, scratch = tiles.budget(words.device, memory, packed), tiles.Scratch(words.device)
    step = len(regions) if keep else tiles.image_tile(regions.shape[1], len(regions), size)
    product = words.new_empty(0)
    for start in range(0, len(regions), step):
        part = slice(start, start + step)
        columns = regions[part].transpose(0, 1).flatten(0, 1)  # (R * B, E)
        mask = None if region_mask is None else region_mask[:, part]
        if _keeps_product(words, regions, keep):
            product = tiles.product(words, columns)  # (n, R * B)
        for block in tiles.blocks(lengths, len(columns), words.device, size):
            if len(product):
                rows = product[block.rows]
            else:
                rows = _block_product(_gather(words, places, block, scratch), columns, scratch)  # (rows, R * B)
            S = rows.view(len(rows), regions.shape[1], -1)  # (rows, R, B)
            out = scores[block.captions, part]  # (C, B)
            if packed:
                cpu_kernel.pair_scores(S.to(dtype), block.lengths, tau, mask, out)
            else:
                _block_scores(S, tau, block, mask, size, scratch, fused, out)
            rows = S = None  # before the next product takes its memory
    return scores, product


def backward(
    words: Tensor, regions: Tensor, scale: Tensor, region_mask: Tensor | None, product: Tensor, grad: Tensor,
    lengths: list[int], memory: int | None, kernels: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The gradients of words (n, E), regions (B, R, E) and scale (), given that of the scores, `grad` (C, B).

    `product` is the second result of `forward`, and turns into its own gradient here.
    """
    columns = regions.transpose(0, 1).flatten(0, 1)  # (R * B, E)
    grad_scale = torch.zeros((), device=words.device)
    tau, packed = _temperature(scale, _score_type(words), kernels)
    size, scratch = tiles.budget(words.device, memory, packed), tiles.Scratch(words.device)
    kept = len(product) > 0
    if not kept:
        grad_words, grad_columns = torch.empty_like(words), torch.zeros_like(columns)
    for block in tiles.blocks(lengths, len(columns), words.device, size):
        own = words[block.rows]
        rows = product[block.rows] if kept else tiles.product(own, columns)  # (rows, R * B)
        S, upstream = rows.view(len(rows), regions.shape[1], -1), grad[block.captions]  # (rows, R, B), (C, B)
        if packed:
            full = S.to(torch.float32)  # S itself, but for products in bfloat16
            grad_scale = grad_scale + cpu_kernel.gradients(full, block.lengths, tau, region_mask, upstream)
            if full is not S:
                S.copy_(full)
        else:
            grad_scale = grad_scale + _block_gradients(S, tau, block, region_mask, size, scratch, upstream)
        if not kept:
            grad_words[block.rows] = tiles.product(rows, columns.T)
            grad_columns += tiles.product(rows.T, own.T)
        rows = S = full = None
    if kept:
        grad_words, grad_columns = tiles.product(product, columns.T), tiles.product(product.T, words.T)
    grad_regions = grad_columns.unflatten(0, (regions.shape[1], -1)).transpose(0, 1)  # (B, R, E)
    return grad_words, grad_regions, grad_scale.to(scale.dtype)


def _score_type(words: Tensor) -> torch.dtype:
    return torch.promote_types(words.dtype, torch.float32)  # what follows a bfloat16 product is float32


def _temperature(scale: Tensor, dtype: torch.dtype, kernels: bool) -> tuple[Tensor | float, bool]:
    """tau, which stays on a GPU, and whether the CPU kernel serves it."""
    tau = scale.item() if scale.device.type == "cpu" else scale
    return tau, kernels and cpu_kernel.available(scale.device, dtype, tau)


def _keeps_product(words: Tensor, regions: Tensor, keep: bool) -> bool:
    return keep and len(words) * regions.shape[0] * regions.shape[1] <= MOST_SAVED


# --- Both as operators of torch, which fake tensors, torch.compile and the profiler know ------------------------------

_alignment = torch.library.custom_op(
    "esl::alignment",
    forward,
    mutates_args=(),
    schema="(Tensor words, Tensor? places, Tensor regions, Tensor scale, Tensor? region_mask, int[] lengths, bool keep,"
    " int? memory, bool kernels) -> (Tensor, Tensor)",
)
_alignment_backward = torch.library.custom_op(
    "esl::alignment_backward",
    backward,
    mutates_args={"product"},
    schema="(Tensor words, Tensor regions, Tensor scale, Tensor? region_mask, Tensor(a!) product, Tensor grad,"
    " int[] lengths, int? memory, bool kernels) -> (Tensor, Tensor, Tensor)",
)


@_alignment.register_fake
def _forward_shapes(words, places, regions, scale, region_mask, lengths, keep, memory, kernels):
    size = (len(words), regions.shape[0] * regions.shape[1]) if _keeps_product(words, regions, keep) else (0,)
    return words.new_empty(len(lengths), len(regions), dtype=_score_type(words)), words.new_empty(size)


@_alignment_backward.register_fake
def _backward_shapes(words, regions, scale, region_mask, product, grad, lengths, memory, kernels):
    grad_regions = regions.new_empty(regions.shape[1], len(regions), regions.shape[2]).transpose(0, 1)  # (B, R, E)
    return torch.empty_like(words), grad_regions, torch.empty_like(scale)


def _save(ctx, inputs, output) -> None:
    words, _, regions, scale, region_mask, ctx.lengths, _, ctx.memory, ctx.kernels = inputs
    ctx.save_for_backward(words, regions, scale, region_mask, output[1])


def _backward(ctx, grad, _):
    words, regions, scale, mask, product = ctx.saved_tensors
    grads = _alignment_backward(words, regions, scale, mask, product, grad, ctx.lengths, ctx.memory, ctx.kernels)
    return grads[0], None, grads[1], grads[2], None, None, None, None, None


_alignment.register_autograd(_backward, setup_context=_save)
for device_type in ("cpu", "cuda"):
    _alignment.register_autocast(device_type, torch.float32)
    _alignment_backward.register_autocast(device_type, torch.float32)


class _Masks(NamedTuple):
    """Real words (C, W, 1, 1) and regions (R, B) of a tile, None where all are; and how many: (C, 1) and (B,)."""

    words: Tensor | None
    regions: Tensor | None
    word_count: Tensor | int
    region_count: Tensor | int | None


def _masks(block: tiles.Block, tile: slice, region_mask: Tensor | None) -> _Masks:
    words = None if block.mask is None else block.mask[tile]
    word_count = block.width if words is None else words.sum(1, keepdim=True)
    region_count = None if region_mask is None else region_mask.sum(0)
    return _Masks(None if words is None else words[:, :, None, None], region_mask, word_count, region_count)


def _gather(words: Tensor, places: Tensor | None, block: tiles.Block, scratch: tiles.Scratch) -> Tensor:
    """The packed words (rows, E) of a block."""
    if places is None:
        return words[block.rows]
    places = places[block.rows]
    out = scratch.take("words", len(places), words.shape[1], dtype=words.dtype)
    return torch.index_select(words, 0, places, out=out)


def _block_product(words: Tensor, columns: Tensor, scratch: tiles.Scratch) -> Tensor:
    """words (rows, E) times columns (R * B, E): (rows, R * B), in memory that the next call overwrites."""
    out = scratch.take("product", len(words), len(columns), dtype=words.dtype)
    return tiles.product(words, columns, out)


def _block_scores(
    S: Tensor,
    scale: Tensor | float,
    block: tiles.Block,
    mask: Tensor | None,
    size: tiles.Budget,
    scratch: tiles.Scratch,
    fused: bool,
    out: Tensor,
) -> None:
    """Scores (C, B) of a block S (rows, R, B) into `out`: in one GPU kernel where there is one, else tile by tile."""
    S = block.pad(S).unflatten(0, (-1, block.width))  # (C, W, R, B)
    if fused:
        out.copy_(gpu_kernel.pair_scores(S, scale, block.counts, mask))
        return
    for tile in block.tiles(S[0, 0].numel(), size.tile):
        out[tile] = _pair_scores(S[tile].to(out.dtype), scale, _masks(block, tile, mask), scratch)


def _block_gradients(
    rows: Tensor,
    scale: Tensor | float,
    block: tiles.Block,
    mask: Tensor | None,
    size: tiles.Budget,
    scratch: tiles.Scratch,
    upstream: Tensor,
) -> Tensor:
    """Turn a block's rows of S (rows, R, B) into the gradient with respect to them; returns that of the scale."""
    grad_scale = 0.0
    S = block.pad(rows).unflatten(0, (-1, block.width))  # (C, W, R, B)
    for tile in block.tiles(S[0, 0].numel(), size.tile // 2):  # twice as many buffers as forward
        grad_scale = grad_scale + _into_gradients(S[tile], scale, _masks(block, tile, mask), upstream[tile], scratch)
    if block.mask is not None:  # S is a padded copy
        rows.copy_(block.unpad(S.flatten(0, 1)))
    return grad_scale


def _norms(g: Tensor, squares: Tensor) -> tuple[Tensor, Tensor]:
    return squares.sum(WORDS, keepdim=True).sqrt_(), squares.sum(REGIONS, keepdim=True).sqrt_()


def _softmax_weights(logits: Tensor, over: int, scale: Tensor | float, mask: Tensor | None) -> Tensor:
    """exp(logits), 0 at padding, in place. |logits| <= scale, so only a large scale, or one that only a
    GPU knows, needs the usual subtraction."""
    if isinstance(scale, Tensor) or scale > LARGEST_PLAIN_SCALE:
        if mask is not None:
            logits.masked_fill_(~mask, -torch.inf)
        return logits.sub_(logits.amax(over, keepdim=True)).exp_()
    weights = logits.exp_()
    return weights if mask is None else weights.mul_(mask)


def _pair_scores(S: Tensor, scale: Tensor | float, masks: _Masks, scratch: tiles.Scratch) -> Tensor:
    """Scores (C, B) of a tile S (C, W, R, B)."""
    g = torch.tanh(S, out=scratch.take("attention", *S.shape, dtype=S.dtype))
    torch.nn.functional.leaky_relu_(g, NEGATIVE_SLOPE)
    weights = scratch.take("weights", *S.shape, dtype=S.dtype)
    norm_words, norm_regions = _norms(g, torch.mul(g, g, out=weights))

    def weighted_sum(norm: Tensor, over: int, mask: Tensor | None) -> Tensor:
        factor = norm.add_(EPSILON).reciprocal_().mul_(scale)
        e = _softmax_weights(torch.mul(g, factor, out=weights), over, scale, mask)
        total = e.sum(over)
        return e.mul_(S).sum(over).div_(total)

    to_image = weighted_sum(norm_words, REGIONS, masks.regions).sum(1)  # (C, B)
    to_text = weighted_sum(norm_regions, WORDS, masks.words).sum(1)  # (C, B)
    region_count = S.shape[REGIONS] if masks.region_count is None else masks.region_count
    return to_image.div_(masks.word_count).add_(to_text.div_(region_count))


def _into_gradients(
    S: Tensor, scale: Tensor | float, masks: _Masks, upstream: Tensor, scratch: tiles.Scratch
) -> Tensor:
    """Turn a tile S (C, W, R, B) into the gradient with respect to it; returns that with respect to the scale.

    `upstream` (C, B) is the gradient of the tile's scores. With e = exp(logits), n = |g|, logits = scale g / (n + eps):
    d logits = up e / sum(e) (S - pooled),  dg = scale (d logits / (n + eps) - g <d logits, g> / (n (n + eps)^2)).
    """
    names = ("tanh", "attention", "weights", "spare", "grad_S", "grad_g")
    tanh, g, e, spare, grad_S, grad_g = (scratch.take(name, *S.shape, dtype=S.dtype) for name in names)
    torch.tanh(S, out=tanh)
    torch.mul(tanh, NEGATIVE_SLOPE, out=g)
    torch.maximum(tanh, g, out=g)  # LeakyReLU
    norm_words, norm_regions = _norms(g, torch.mul(g, g, out=spare))
    region_count = S.shape[REGIONS] if masks.region_count is None else masks.region_count
    directions = (
        (norm_words, WORDS, REGIONS, masks.regions, upstream / masks.word_count),
        (norm_regions, REGIONS, WORDS, masks.words, upstream / region_count),
    )
    grad_scale = 0.0
    grad_S.zero_(), grad_g.zero_()
    for norm, norm_dim, over, mask, up in directions:
        inverse = 1 / (norm + EPSILON)
        factor = scale * inverse
        _softmax_weights(torch.mul(g, factor, out=e), over, scale, mask)
        total = e.sum(over, keepdim=True)
        pooled = torch.mul(e, S, out=spare).sum(over, keepdim=True).div_(total)
        share = up[:, None, None] / total
        grad_S.addcmul_(e, share)  # through the weighted sum, weights held
        grad_logits = spare.addcmul_(e, pooled, value=-1).mul_(share)
        along = torch.mul(grad_logits, g, out=e).sum(norm_dim, keepdim=True).mul_(inverse)  # <d logits, unit>
        grad_scale = grad_scale + along.sum()
        grad_g.addcmul_(grad_logits, factor)
        grad_g.addcmul_(g, along.mul_(factor).div_(norm.masked_fill(norm == 0, torch.inf)), value=-1)
    torch.ops.aten.leaky_relu_backward.grad_input(grad_g, tanh, NEGATIVE_SLOPE, False, grad_input=grad_g)
    torch.ops.aten.tanh_backward.grad_input(grad_g, tanh, grad_input=grad_g)
    torch.add(grad_S, grad_g, out=S)
    return grad_scale
