"""The BERT text encoder.

Letters: C captions, W word pieces ([CLS] and [SEP] included), D embedding size.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from lib.fragments import Fragments

BUCKET_TOKENS = {"cpu": 512, "cuda": 4096}  # tokens that keep the device busy; a smaller bucket only adds overhead
MOST_BUCKETS = 8


class BertEncoder(nn.Module):
    """BERT's last hidden state projected to D: token ids (C, W), 0 = padding at the end -> Fragments (C, W, D).

    A batch is encoded in buckets of similar length, each cut to its longest caption, so that little padding passes
    through BERT; it changes no result. The rows of padding are 0.
    """

    def __init__(self, bert: nn.Module, embed_size: int):
        super().__init__()
        self.bert = bert
        self.linear = nn.Linear(bert.config.hidden_size, embed_size)

    def forward(self, token_ids: Tensor) -> Fragments:
        mask = token_ids != 0
        lengths, order = mask.sum(1).sort(stable=True)  # (C,)
        tokens = BUCKET_TOKENS.get(token_ids.device.type, BUCKET_TOKENS["cuda"])
        longest = lengths.tolist()
        size = -(-len(longest) // min(MOST_BUCKETS, max(1, sum(longest) // tokens)))  # captions of a bucket
        buckets = [
            self._encode(token_ids[order[start : start + size], : longest[min(start + size, len(longest)) - 1]])
            for start in range(0, len(longest), size)
        ]  # each (c, w, D)
        width = token_ids.shape[1]
        features = torch.cat([pad(bucket, (0, 0, 0, width - bucket.shape[1])) for bucket in buckets])  # (C, W, D)
        return Fragments(features[order.argsort()], mask)

    def _encode(self, token_ids: Tensor) -> Tensor:
        mask = token_ids != 0
        hidden = self.bert(input_ids=token_ids, attention_mask=mask.long()).last_hidden_state  # (c, w, hidden)
        return self.linear(hidden).masked_fill(~mask[..., None], 0.0)  # (c, w, D)
