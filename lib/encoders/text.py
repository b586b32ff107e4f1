"""The BERT text encoder.

Letters: C captions, W word pieces ([CLS] and [SEP] included), D embedding size.
"""

from __future__ import annotations

from torch import Tensor, nn

from lib.fragments import Fragments


class BertEncoder(nn.Module):
    """BERT's last hidden state projected to D: token ids (C, W), 0 = padding -> Fragments (C, W, D)."""

    def __init__(self, bert: nn.Module, embed_size: int):
        super().__init__()
        self.bert = bert
        self.linear = nn.Linear(bert.config.hidden_size, embed_size)

    def forward(self, token_ids: Tensor) -> Fragments:
        mask = token_ids != 0
        hidden = self.bert(input_ids=token_ids, attention_mask=mask.long()).last_hidden_state  # (C, W, hidden)
        return Fragments(self.linear(hidden), mask)  # (C, W, D)
