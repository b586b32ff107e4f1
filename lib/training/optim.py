"""Optimizers and the parameter groups that they get. A new one is a function, and a row of OPTIMIZERS.

Groups bring their own learning rate and weight decay."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lib.model import MatchingModel

TEXT_FACTOR = 0.1  # of the learning rate, for the pre-trained text encoder
WEIGHT_DECAY = 1e-4


def adamw(groups: list[dict]) -> torch.optim.Optimizer:
    """AdamW with weight decay on everything."""
    return torch.optim.AdamW(groups, fused=_fused(groups))


def sgd(groups: list[dict]) -> torch.optim.Optimizer:
    """As the released code has it: BERT at the full rate; with a backbone, Nesterov's momentum and weight decay on the
    backbone alone."""
    with_backbone = any(group["name"] == "backbone" for group in groups)
    for group in groups:
        if group["name"] == "text":
            group["base_lr"] /= TEXT_FACTOR
            group["lr"] = group["base_lr"]
        if group["name"] != "backbone":
            group["weight_decay"] = 0.0
    return torch.optim.SGD(groups, momentum=0.9, nesterov=with_backbone, fused=_fused(groups))


def _fused(groups: list[dict]) -> bool | None:
    """One kernel for all parameters on a GPU, which alone can leave out a step there; None: what torch chooses."""
    return groups[0]["params"][0].is_cuda or None


OPTIMIZERS = {"adam": adamw, "sgd": sgd}


def build_optimizer(
    model: MatchingModel,
    criterion: nn.Module,
    name: str,
    learning_rate: float,
    backbone_lr_factor: float = 0.01,
    weight_decay: float = WEIGHT_DECAY,
) -> torch.optim.Optimizer:
    """The optimizer `name` over all parameters of model and loss, each in exactly one group.

    Pre-trained text parameters get a tenth of the learning rate, those of an image backbone `backbone_lr_factor` of it,
    all others the whole; `base_lr` is a group's rate before any schedule.
    """
    text = model.text_encoder.pretrained_parameters()
    backbone = model.image_encoder.pretrained_parameters()
    taken = {id(parameter) for parameter in (*text, *backbone)}
    rest = [p for module in (model, criterion) for p in module.parameters() if id(p) not in taken]
    parts = [("head", rest, 1.0), ("text", text, TEXT_FACTOR), ("backbone", backbone, backbone_lr_factor)]
    return OPTIMIZERS[name]([
        {"name": name, "params": parameters, "lr": learning_rate * factor, "base_lr": learning_rate * factor,
         "weight_decay": weight_decay}
        for name, parameters, factor in parts
        if parameters
    ])  # fmt: skip


def set_learning_rates(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Give every group this share of its own rate."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor


def learning_rates(optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """The learning rate of every group by its name."""
    return {group.get("name", str(number)): group["lr"] for number, group in enumerate(optimizer.param_groups)}


def step_if(optimizer: torch.optim.Optimizer, finite: Tensor) -> None:
    """Take a step where `finite` () is true. A fused optimizer finds that out on its GPU, for others the CPU waits."""
    if finite.is_cuda and getattr(optimizer, "_step_supports_amp_scaling", False):
        optimizer.grad_scale, optimizer.found_inf = None, (~finite).float()  # as torch.amp.GradScaler tells it
        optimizer.step()
        del optimizer.grad_scale, optimizer.found_inf
    elif finite:
        optimizer.step()
