"""From word-region similarity to one score per image-caption pair, forward and backward, tile by tile.

S of all pairs is one matrix product. It is laid out as (C, W, R, B), images innermost, so that every sum over words
or regions adds contiguous rows; captions are sorted by length and packed, so that few or no padding words are
multiplied. The backward pass is written by hand: it works on the same tiles and keeps S alone, where autograd would
keep a dozen tensors of its size.

Letters: B images, C captions (of a tile), R regions, W word pieces, E size of all measure-units side by side.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lib.fragments import Fragments
from lib.functional import EPSILON
from lib.similarity import kernels, tiles

NEGATIVE_SLOPE = 0.1
WORDS, REGIONS = 1, 2  # dimensions of S (C, W, R, B)
LARGEST_PLAIN_SCALE = 60.0  # exp(60), summed over thousands of fragments, stays far below float32's limit exp(88)
MOST_SAVED = 1 << 28  # values of S that a backward pass keeps (1 GiB); beyond, S is multiplied again


def alignment_scores(images: Fragments, captions: Fragments, scale: Tensor, memory: int | None = None) -> Tensor:
    """Scores (B, C): text-to-image plus image-to-text attention over S; only real words and regions count.

    `images` (B, R, E) and `captions` (C, W, E) are prepared fragments, `scale` is the scalar tau. In each direction
    g = LeakyReLU(tanh S), normalised over one side, gives softmax(tau g) over the other side, which weighs S; the
    weighted sums are averaged. Differentiable once, in all three. `memory` limits the buffers, in bytes.
    """
    lengths, order = captions.mask.sum(1).sort(stable=True)  # (C,)
    words = captions.features[order][captions.mask[order]]  # (n, E), by caption length
    region_mask = None if images.mask.all() else images.mask.T  # (R, B)
    regions = images.features.masked_fill(~images.mask[..., None], 0.0) if region_mask is not None else images.features
    keep = torch.is_grad_enabled() and any(x.requires_grad for x in (words, regions, scale))
    scores = _Alignment.apply(words, regions, scale, region_mask, lengths.tolist(), keep, memory)  # (C, B)
    return scores[order.argsort()].T  # (B, C)


class _Alignment(torch.autograd.Function):
    """words (n, E), regions (B, R, E), scale () -> scores (C, B), captions in the order of their lengths."""

    @staticmethod
    @torch.amp.custom_fwd(device_type="cuda", cast_inputs=torch.float32)
    def forward(ctx, words, regions, scale, region_mask, lengths, keep, memory):
        dtype = torch.promote_types(words.dtype, torch.float32)  # what follows a bfloat16 product is float32
        scores = words.new_empty(len(lengths), len(regions), dtype=dtype)  # (C, B)
        size = tiles.budget(words.device, memory)
        scratch = None if keep else tiles.Scratch(words.device)
        step = len(regions) if keep else tiles.image_tile(regions.shape[1], len(regions), size)
        tau, saved = scale.item(), []
        for start in range(0, len(regions), step):
            part = slice(start, start + step)
            columns = regions[part].transpose(0, 1).flatten(0, 1)  # (R * B, E)
            mask = None if region_mask is None else region_mask[:, part]
            for block in tiles.blocks(lengths, len(columns), words.device, size):
                S = _similarity(words, columns, block, regions.shape[1], scratch)  # (C, W, R, B)
                _block_scores(S, tau, block, mask, size, scratch, out=scores[block.captions, part])
                saved.append(S if keep and len(words) * len(columns) <= MOST_SAVED else None)
        if keep:
            ctx.save_for_backward(words, regions, region_mask)
            ctx.lengths, ctx.products, ctx.size, ctx.tau = lengths, saved, size, tau
        return scores

    @staticmethod
    @once_differentiable
    @torch.amp.custom_bwd(device_type="cuda")
    def backward(ctx, grad):
        words, regions, mask = ctx.saved_tensors
        columns, size = regions.transpose(0, 1).flatten(0, 1), ctx.size  # (R * B, E)
        grad_words, grad_columns, grad_scale = torch.empty_like(words), torch.zeros_like(columns), 0.0
        blocks = tiles.blocks(ctx.lengths, len(columns), words.device, size)
        for block, saved in zip(blocks, ctx.products, strict=True):
            similarity = _similarity(words, columns, block, regions.shape[1]) if saved is None else saved
            flow = torch.empty_like(similarity)  # (C, W, R, B)
            for tile in block.tiles(len(columns), size.tile):
                masks, upstream = _masks(block, tile, mask), grad[block.captions][tile]
                flow[tile], part = _pair_gradients(similarity[tile], ctx.tau, masks, upstream)
                grad_scale = grad_scale + part
            flow = block.unpad(flow.flatten(2).flatten(0, 1))  # (rows, R * B)
            torch.mm(flow, columns, out=grad_words[block.rows])
            grad_columns.addmm_(flow.T, words[block.rows])
        ctx.products = None
        grad_regions = grad_columns.unflatten(0, (regions.shape[1], -1)).transpose(0, 1)  # (B, R, E)
        return grad_words, grad_regions, grad_scale, None, None, None, None


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


def _similarity(words: Tensor, columns: Tensor, block: tiles.Block, regions: int, scratch=None) -> Tensor:
    """S (C, W, R, B) of a block of captions with all columns; in reused memory when `scratch` is given."""
    rows = block.pad(words[block.rows])  # (C * W, E)
    out = None if scratch is None else scratch.take("product", len(rows), len(columns), dtype=words.dtype)
    return torch.mm(rows, columns.T, out=out).view(block.count, block.width, regions, -1)


def _block_scores(S: Tensor, scale: float, block: tiles.Block, mask: Tensor | None, size, scratch, out: Tensor):
    """Scores (C, B) of a block S (C, W, R, B) into `out`: in one kernel where there is one, else tile by tile."""
    if scratch is not None and kernels.available(S.device, S.dtype):
        out.copy_(kernels.pair_scores(S, scale, block.lengths, mask))
        return
    scratch = scratch or tiles.Scratch(S.device)
    for tile in block.tiles(S.shape[REGIONS] * S.shape[3], size.tile):
        out[tile] = _pair_scores(S[tile].to(out.dtype), scale, _masks(block, tile, mask), scratch)


def _norms(g: Tensor, squares: Tensor) -> tuple[Tensor, Tensor]:
    return squares.sum(WORDS, keepdim=True).sqrt_(), squares.sum(REGIONS, keepdim=True).sqrt_()


def _softmax_weights(logits: Tensor, over: int, scale: float, mask: Tensor | None) -> Tensor:
    """exp(logits), 0 at padding, in place. |logits| <= scale, so only a large scale needs the usual subtraction."""
    if scale > LARGEST_PLAIN_SCALE:
        if mask is not None:
            logits.masked_fill_(~mask, -torch.inf)
        return logits.sub_(logits.amax(over, keepdim=True)).exp_()
    weights = logits.exp_()
    return weights if mask is None else weights.mul_(mask)


def _pair_scores(S: Tensor, scale: float, masks: _Masks, scratch: tiles.Scratch) -> Tensor:
    """Scores (C, B) of a tile S (C, W, R, B)."""
    g = torch.tanh(S, out=scratch.take("attention", *S.shape, dtype=S.dtype))
    torch.nn.functional.leaky_relu_(g, NEGATIVE_SLOPE)
    weights = scratch.take("weights", *S.shape, dtype=S.dtype)
    norm_words, norm_regions = _norms(g, torch.mul(g, g, out=weights))

    def weighted_sum(norm: Tensor, over: int, mask: Tensor | None) -> Tensor:
        e = _softmax_weights(torch.mul(g, scale / (norm + EPSILON), out=weights), over, scale, mask)
        total = e.sum(over)
        return e.mul_(S).sum(over).div_(total)

    to_image = weighted_sum(norm_words, REGIONS, masks.regions).sum(1)  # (C, B)
    to_text = weighted_sum(norm_regions, WORDS, masks.words).sum(1)  # (C, B)
    region_count = S.shape[REGIONS] if masks.region_count is None else masks.region_count
    return to_image.div_(masks.word_count).add_(to_text.div_(region_count))


def _pair_gradients(S: Tensor, scale: float, masks: _Masks, upstream: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of a tile: with respect to S (C, W, R, B) and to the scale, from those of its scores (C, B)."""
    tanh = torch.tanh(S)
    g = torch.nn.functional.leaky_relu(tanh, NEGATIVE_SLOPE)
    grad_S, grad_g, grad_scale = torch.zeros_like(S), torch.zeros_like(S), 0.0
    region_count = S.shape[REGIONS] if masks.region_count is None else masks.region_count
    norm_words, norm_regions = _norms(g, g.square())
    directions = (
        (norm_words, WORDS, REGIONS, masks.regions, upstream / masks.word_count),
        (norm_regions, REGIONS, WORDS, masks.words, upstream / region_count),
    )
    for norm, norm_dim, over, mask, up in directions:
        unit = g / (norm + EPSILON)
        p = _softmax_weights(unit * scale, over, scale, mask)
        p /= p.sum(over, keepdim=True)
        pooled = (p * S).sum(over, keepdim=True)
        p *= up[:, None, None]  # gradient of the weighted sum with respect to S, weights held
        grad_S += p
        grad_logits = p.mul_(S - pooled)
        grad_scale = grad_scale + (grad_logits * unit).sum()
        grad_unit = grad_logits.mul_(scale)
        # unit = g / (n + eps), n = |g|:  dg = dunit / (n + eps) - g <dunit, g> / (n (n + eps)^2), 0 for n = 0
        inner = (grad_unit * unit).sum(norm_dim, keepdim=True) / norm.where(norm > 0, torch.inf)
        grad_g += grad_unit.sub_(g * inner).div_(norm + EPSILON)
    slope = torch.where(tanh > 0, tanh.new_ones(()), NEGATIVE_SLOPE)
    return grad_S.add_(grad_g.mul_(slope).mul_(1 - tanh.square())), grad_scale
