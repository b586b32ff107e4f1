"""Pre-trained networks in stages, of which the first ones can be kept as they are."""

from __future__ import annotations

from torch import nn

Stages = list[list[nn.Module]]  # five: the stem, then four blocks


def in_stages(stem: list[nn.Module], layers: nn.ModuleList, last: list[nn.Module]) -> Stages:
    """The stages of a transformer: its embeddings, then its layers in four equal shares, the norm behind them with the
    last."""
    borders = [len(layers) * quarter // 4 for quarter in range(5)]
    blocks = [list(layers[start:stop]) for start, stop in zip(borders, borders[1:], strict=False)]
    return [stem, *blocks[:3], [*blocks[3], *last]]


def fix_stages(stages: Stages, count: int) -> int:
    """Freeze the stem and the first `count` blocks: 4 freezes all, 3 trains the last one, 0 everything, the stem
    included. Returns the number of frozen stages; ValueError for another count."""
    if count not in range(5):
        raise ValueError(f"{count} fixed blocks, expected 0 to 4")
    frozen = count + 1 if count else 0
    for index, stage in enumerate(stages):
        for module in stage:
            module.requires_grad_(index >= frozen)
    return frozen
