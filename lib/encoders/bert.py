"""The BERT text encoder, and BERT's weights and configuration from a folder or the hub.

Letters: C captions, W word pieces ([CLS] and [SEP] included), D embedding size.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import BertConfig, BertModel

from lib.core.fragments import Fragments, Tokens, on_device
from lib.encoders.encoder import TextEncoder
from lib.encoders.fields import BERT
from lib.encoders.pretrained import load_pretrained, own_config, whole_model

BUCKET_TOKENS = {"cpu": 512, "cuda": 4096}  # tokens that keep the device busy; a smaller bucket only adds overhead
MOST_BUCKETS = 8


class BertEncoder(TextEncoder):
    """BERT's last hidden state projected to D: Tokens (C, W) -> Fragments (C, W, D).

    A batch is encoded in buckets of similar length, each cut to its longest caption, so that little padding passes
    through BERT; it changes no result. The rows of padding are 0.
    """

    def __init__(self, bert: nn.Module, embed_size: int):
        super().__init__()
        self.bert = bert
        self.linear = nn.Linear(bert.config.hidden_size, embed_size)

    def forward(self, captions: Tokens) -> Fragments:
        order = np.argsort(captions.lengths, kind="stable")  # (C,)
        lengths, width = captions.lengths[order], captions.ids.shape[1]
        ids = captions.ids.index_select(0, on_device(order, captions.ids.device))  # (C, W)
        buckets = [
            self._encode(Tokens(ids[start:stop, : lengths[stop - 1]], lengths[start:stop]))
            for start, stop in _buckets(lengths, ids.device)
        ]  # each (c, w, D)
        features = torch.cat([pad(bucket, (0, 0, 0, width - bucket.shape[1])) for bucket in buckets])  # (C, W, D)
        back = on_device(np.argsort(order), ids.device)  # (C,)
        return Fragments(features.index_select(0, back), captions.real)

    def _encode(self, tokens: Tokens) -> Tensor:
        if tokens.real.all():
            return self.linear(self.bert(input_ids=tokens.ids).last_hidden_state)  # (c, w, D)
        mask = tokens.mask
        seen = mask[:, None, None, :].expand(-1, 1, mask.shape[1], -1)  # (c, 1, w, w), at which BERT won't look
        hidden = self.bert(input_ids=tokens.ids, attention_mask=seen).last_hidden_state  # (c, w, hidden)
        return self.linear(hidden).masked_fill(~mask[..., None], 0.0)  # (c, w, D)

    def pretrained_parameters(self) -> list[nn.Parameter]:
        return list(self.bert.parameters())


def _buckets(lengths: np.ndarray, device: torch.device) -> list[tuple[int, int]]:
    """Where captions of ascending `lengths` are cut into equal buckets, as few as keep the device busy."""
    tokens = BUCKET_TOKENS.get(device.type, BUCKET_TOKENS["cuda"])
    size = -(-len(lengths) // min(MOST_BUCKETS, max(1, int(lengths.sum()) // tokens)))  # captions of a bucket
    return [(start, min(start + size, len(lengths))) for start in range(0, len(lengths), size)]


def bert_encoder(embed_size: int, options: dict, paths: dict | None) -> BertEncoder:
    bert = load_bert(paths["bert_path"]) if paths else BertModel(BertConfig(**options))
    return BertEncoder(bert, embed_size)


def read_bert_options(options: dict, paths: dict) -> dict[str, Any]:
    """The values of the BERT in --bert_path; InputError where there is none."""
    return options | bert_values(load_bert_config(paths["bert_path"]))


def local_bert_values(bert_path: str | Path | None) -> dict[str, Any] | None:
    """`bert_values` of the configuration in `bert_path`, where that is a folder that holds one."""
    if bert_path is None or not (Path(bert_path) / "config.json").is_file():
        return None
    return bert_values(load_bert_config(bert_path))


def bert_values(config: BertConfig) -> dict[str, Any]:
    """The plain values of a BertConfig that the network depends on."""
    return {name: getattr(config, name) for name in BERT}


def load_bert(bert_path: str | Path) -> BertModel:
    """A pre-trained BERT from a folder in Hugging Face form or a hub name; InputError where there is none."""
    config = load_bert_config(bert_path)
    load = partial(whole_model, BertModel, config, unused=("pooler.",), add_pooling_layer=True)
    return load_pretrained("--bert_path", bert_path, load)


def load_bert_config(bert_path: str | Path) -> BertConfig:
    """The configuration alone of a BERT folder or hub name; InputError where there is none."""
    return load_pretrained("--bert_path", bert_path, partial(own_config, BertConfig, BERT))
