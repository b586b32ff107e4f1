"""Optimizers, the rows of lib.training.OPTIMIZERS, and the parameter groups that they get.

Groups bring their own learning rate and weight decay."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lib.model import MatchingModel
from lib.training import OPTIMIZERS

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


class TransformersAdamW(torch.optim.Optimizer):
    """AdamW as transformers had it (released code of CLIP-based ESL), all weights of a group at once.

    theta -= lr sqrt(1 - b2^n) / (1 - b1^n) m / (sqrt(v) + eps), then theta *= 1 - lr weight_decay: `eps` stands before
    the bias correction, and what decays is the new theta. A weight without gradient is left alone.
    """

    def __init__(self, groups: list[dict], betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-6):
        super().__init__(groups, {"betas": betas, "eps": eps, "weight_decay": WEIGHT_DECAY})

    @torch.no_grad()
    def step(self, closure=None) -> None:
        for group in self.param_groups:
            weights = [p for p in group["params"] if p.grad is not None]
            if weights:
                self._update(weights, group)

    def _update(self, weights: list[nn.Parameter], group: dict) -> None:
        (b1, b2), rate = group["betas"], group["lr"]
        states = [self.state[p] or self._begin(p) for p in weights]
        for state in states:
            state["step"] += 1
        gradients, m, v = [p.grad for p in weights], [s["exp_avg"] for s in states], [s["exp_avg_sq"] for s in states]
        torch._foreach_lerp_(m, gradients, 1 - b1)
        torch._foreach_mul_(v, b2)
        torch._foreach_addcmul_(v, gradients, gradients, 1 - b2)
        divisors = torch._foreach_sqrt(v)
        torch._foreach_add_(divisors, group["eps"])
        steps = [-rate * (1 - b2 ** s["step"]) ** 0.5 / (1 - b1 ** s["step"]) for s in states]
        torch._foreach_addcdiv_(weights, m, divisors, steps)
        torch._foreach_mul_(weights, 1 - rate * group["weight_decay"])

    def _begin(self, weight: nn.Parameter) -> dict:
        self.state[weight] = {"step": 0, "exp_avg": torch.zeros_like(weight), "exp_avg_sq": torch.zeros_like(weight)}
        return self.state[weight]


def build_optimizer(
    model: MatchingModel,
    criterion: nn.Module,
    name: str,
    learning_rate: float,
    backbone_lr_factor: float = 0.01,
    weight_decay: float = WEIGHT_DECAY,
    pretrained_rate: float | None = None,
) -> torch.optim.Optimizer:
    """The optimizer `name` over all parameters of model and loss, each in exactly one group.

    Pre-trained text parameters get a tenth of the learning rate, those of an image backbone `backbone_lr_factor` of it,
    all others the whole; with a `pretrained_rate` both get that. `base_lr` is a group's rate before any schedule. A
    loss's own `after_step` follows each step.
    """
    text = model.text_encoder.pretrained_parameters()
    backbone = model.image_encoder.pretrained_parameters()
    taken = {id(parameter) for parameter in (*text, *backbone)}
    rest = [p for module in (model, criterion) for p in module.parameters() if id(p) not in taken]
    parts = [("head", rest, 1.0), ("text", text, TEXT_FACTOR), ("backbone", backbone, backbone_lr_factor)]
    optimizer = OPTIMIZERS[name]([
        {"name": part, "params": parameters, "lr": learning_rate * factor, "base_lr": learning_rate * factor,
         "weight_decay": weight_decay}
        for part, parameters, factor in parts
        if parameters
    ])  # fmt: skip
    for group in optimizer.param_groups:
        if pretrained_rate is not None and group["name"] != "head":
            group["lr"] = group["base_lr"] = pretrained_rate
    if after_step := getattr(criterion, "after_step", None):
        optimizer.register_step_post_hook(lambda *_: after_step())
    return optimizer


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
