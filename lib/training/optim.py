"""The optimizer's parameter groups, and every schedule as a function of the epoch: no state to save or restore."""

from __future__ import annotations

import torch

from lib.model import MatchingModel

BERT_FACTOR = 0.1
WEIGHT_DECAY = 1e-4


def parameter_groups(model: MatchingModel, learning_rate: float, backbone_lr_factor: float = 0.01) -> list[dict]:
    """BERT at a tenth of the learning rate, the grid backbone at `backbone_lr_factor`, everything else at 1.

    Every trainable parameter is in exactly one group; `base_lr` is the group's rate before any schedule.
    """
    bert = list(model.text_encoder.bert.parameters())
    backbone = list(model.image_encoder.backbone.parameters()) if model.config.grid else []
    taken = {id(p) for p in bert + backbone}
    rest = [p for p in model.parameters() if id(p) not in taken]
    groups = [("head", rest, 1.0), ("bert", bert, BERT_FACTOR), ("backbone", backbone, backbone_lr_factor)]
    return [
        {"name": name, "params": parameters, "lr": learning_rate * factor, "base_lr": learning_rate * factor}
        for name, parameters, factor in groups
        if parameters
    ]


def build_optimizer(model: MatchingModel, name: str, learning_rate: float, backbone_lr_factor: float = 0.01):
    """AdamW with weight decay 1e-4 on everything (`adam`), or SGD with momentum 0.9, Nesterov's for grid encoders."""
    groups = parameter_groups(model, learning_rate, backbone_lr_factor)
    if name == "adam":
        return torch.optim.AdamW(groups, weight_decay=WEIGHT_DECAY)
    if name == "sgd":
        return torch.optim.SGD(groups, momentum=0.9, nesterov=model.config.grid)
    raise ValueError(f"optimizer '{name}', expected adam or sgd")


def learning_rate_factor(epoch: int, lr_update: int) -> float:
    """1 before epoch `lr_update`, 0.1 from it on."""
    return 0.1 if epoch >= lr_update else 1.0


def set_learning_rates(optimizer: torch.optim.Optimizer, epoch: int, lr_update: int) -> None:
    """Give every group its rate of this epoch."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * learning_rate_factor(epoch, lr_update)


def uses_hardest(epoch: int, vse_mean_warmup_epochs: int, max_violation: bool = False) -> bool:
    """Whether the loss keeps the hardest negatives alone: after the warm-up, or always with `max_violation`."""
    return max_violation or epoch >= vse_mean_warmup_epochs


def loss_scale(epoch: int, step: int, steps_per_epoch: int, embedding_warmup_epochs: int, grid: bool) -> float:
    """Factor of the loss at `step` (from 0): a ramp step / steps_per_epoch in a backbone's first unfrozen epoch."""
    if not grid or epoch != embedding_warmup_epochs:
        return 1.0
    return step / steps_per_epoch


def fixed_blocks(epoch: int, embedding_warmup_epochs: int, backbone_warmup_epochs: int) -> int:
    """Backbone blocks that stay fixed: 4 (all) while embeddings warm up, then 3, 2, 1 for a warm-up each, then 0."""
    since = epoch - embedding_warmup_epochs
    if since < 0:
        return 4
    for blocks in (3, 2, 1):
        since -= backbone_warmup_epochs
        if since < 0:
            return blocks
    return 0
