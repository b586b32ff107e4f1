"""BatchNorm with the statistics of a batch that several processes share."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class _Sum(torch.autograd.Function):
    """The sum of a tensor over all processes. So is its gradient, since each process computes with the sum.

    torch.distributed.nn.functional.all_reduce is the same, but deprecated.
    """

    @staticmethod
    def forward(ctx, tensor: Tensor) -> Tensor:
        total = tensor.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return _Sum.apply(gradient)


class _SharedStatistics:
    """Turns a BatchNorm into one that takes mean and variance over the rows of all processes."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        dims = [d for d in range(x.ndim) if d != 1]
        shape = [-1 if d == 1 else 1 for d in range(x.ndim)]
        exact = x.to(torch.promote_types(x.dtype, torch.float32))
        count = exact.new_tensor([x.numel() // x.shape[1]])
        *total, count = _Sum.apply(torch.cat([exact.sum(dims), count])).split([x.shape[1], 1])
        centred = exact - (mean := total[0] / count).view(shape)
        variance = _Sum.apply(centred.square().sum(dims)) / count
        if self.track_running_stats:
            self._note(mean.detach(), (variance * count / (count - 1)).detach())
        normed = centred * (variance + self.eps).rsqrt().view(shape)
        if self.affine:
            normed = normed * self.weight.view(shape) + self.bias.view(shape)
        return normed.to(x.dtype)

    def _note(self, mean: Tensor, variance: Tensor) -> None:
        self.num_batches_tracked += 1
        momentum = self.momentum if self.momentum is not None else 1 / self.num_batches_tracked
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), momentum)
        self.running_var.lerp_(variance.to(self.running_var.dtype), momentum)


def share_statistics(model: nn.Module) -> None:
    """Let every BatchNorm of a model take its statistics from all processes; torch's SyncBatchNorm needs GPUs."""
    for module in model.modules():
        if isinstance(module, _BatchNorm) and not isinstance(module, _SharedStatistics):
            norm = type(module)
            module.__class__ = type(f"Shared{norm.__name__}", (_SharedStatistics, norm), {})
