"""GPO, the generalized pooling operator of VSE-infinity (Chen et al., CVPR 2021, section 4).

Letters: N items, L fragments per item (padded), D embedding size, U distinct lengths.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from lib.core.fragments import Fragments, on_device
from lib.core.functional import masked_softmax


def positional_encoding(length: int, size: int, dtype=torch.float32, device=None) -> Tensor:
    """Sine and cosine position codes (length, size) with base 10000: even columns sine, odd columns cosine."""
    position = torch.arange(length, dtype=torch.float64)[:, None]
    rate = torch.exp(torch.arange(0, size, 2, dtype=torch.float64) * (-math.log(10000.0) / size))
    code = torch.stack([(position * rate).sin(), (position * rate).cos()], -1).flatten(1)  # (length, size)
    return code.to(dtype).to(device, non_blocking=True)


class GPO(nn.Module):
    """Learns how much the j-th largest value of each dimension counts, for every number of fragments.

    `forward` takes Fragments (N, L, D) and returns pooled vectors (N, D). The weights depend on the number of
    real fragments alone, so they are computed once per distinct length.
    """

    def __init__(self, code_size: int = 32, hidden_size: int = 32, temperature: float = 0.1):
        super().__init__()
        self.code_size = code_size
        self.temperature = temperature
        self.gru = nn.GRU(code_size, hidden_size, batch_first=True, bidirectional=True)
        self.linear = nn.Linear(hidden_size, 1, bias=False)

    def pool_weights(self, lengths: np.ndarray) -> Tensor:
        """Weights (U, L) of the sorted positions for each of the given lengths (U,), longest first: L, ..."""
        longest = int(lengths[0])
        weight = self.linear.weight
        code = positional_encoding(longest, self.code_size, weight.dtype, weight.device)
        code = code.expand(len(lengths), -1, -1)  # (U, L, code)
        packed = pack_padded_sequence(code, torch.from_numpy(lengths), batch_first=True)
        hidden, _ = pad_packed_sequence(self.gru(packed)[0], batch_first=True)  # (U, L, 2 * hidden)
        hidden = hidden.unflatten(-1, (2, -1)).mean(2)  # (U, L, hidden)
        logits = self.linear(hidden).squeeze(-1) / self.temperature  # (U, L)
        return masked_softmax(logits, on_device(np.arange(longest) < lengths[:, None], weight.device))

    def forward(self, fragments: Fragments) -> Tensor:
        features, mask = fragments
        shortest_first, which = np.unique(fragments.lengths, return_inverse=True)  # (U,), (N,)
        weights = self.pool_weights(shortest_first[::-1].copy())  # (U, L')
        weights = weights.index_select(0, on_device(len(weights) - 1 - which, mask.device))  # (N, L')
        ordered = features.masked_fill(~mask[..., None], -torch.inf).sort(dim=1, descending=True).values
        ordered = ordered[:, : weights.shape[1]]  # (N, L', D); the cut positions are padding in every item
        real = on_device(np.arange(weights.shape[1]) < fragments.lengths[:, None], mask.device)  # (N, L')
        return (weights[..., None] * ordered.masked_fill(~real[..., None], 0.0)).sum(1)  # (N, D)
