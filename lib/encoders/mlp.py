"""The two-layer perceptron of the region encoder."""

from __future__ import annotations

from torch import Tensor, nn


class MLP(nn.Module):
    """Linear -> BatchNorm -> ReLU -> Linear over rows (n, in) -> (n, out), as in VSE-infinity's region encoder."""

    def __init__(self, in_size: int, hidden_size: int, out_size: int):
        super().__init__()
        self.hidden = nn.Linear(in_size, hidden_size)
        self.norm = nn.BatchNorm1d(hidden_size)
        self.output = nn.Linear(hidden_size, out_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.output(self.norm(self.hidden(x)).relu())
