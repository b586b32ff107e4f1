"""The BERT encoder."""

from __future__ import annotations

import torch
from transformers import BertConfig, BertModel

from lib.encoders import bert as text
from lib.encoders.bert import BertEncoder


def tiny_bert(**changes) -> BertModel:
    sizes = dict(vocab_size=60, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24)
    return BertModel(BertConfig(**{**sizes, "max_position_embeddings": 32, **changes}))


def test_padding_and_other_captions_change_no_fragment_and_no_gradient():
    encoder = BertEncoder(tiny_bert(), 12).eval()
    short = torch.tensor([[2, 7, 9, 3]])
    batch = torch.zeros(3, 9, dtype=torch.long)
    batch[0, :4], batch[1], batch[2, :6] = short[0], torch.arange(5, 14), torch.arange(20, 26)
    alone, together = encoder(short), encoder(batch)
    assert together.mask.sum(1).tolist() == [4, 9, 6]
    torch.testing.assert_close(together.features[0, :4], alone.features[0], rtol=0, atol=1e-6)
    gradients = []
    for fragments in (alone, together):
        encoder.zero_grad()
        fragments.features[0, :4].square().sum().backward()
        gradients.append([p.grad.clone() for p in encoder.parameters() if p.grad is not None])
    for first, second in zip(*gradients, strict=True):
        torch.testing.assert_close(first, second, rtol=0, atol=1e-6 * max(1.0, float(first.abs().max())))


def test_buckets_of_similar_length_give_the_fragments_and_gradients_of_one_batch(monkeypatch):
    encoder = BertEncoder(tiny_bert(), 12).eval()
    lengths = torch.tensor([9, 3, 14, 5, 5, 11, 2])
    batch = torch.randint(1, 60, (7, 14)) * (torch.arange(14) < lengths[:, None])
    results = []
    for tokens in (10**6, 10):  # one bucket, then several
        monkeypatch.setitem(text.BUCKET_TOKENS, "cpu", tokens)
        encoder.zero_grad()
        fragments = encoder(batch)
        (fragments.features * torch.arange(12.0).cos()).sum().backward()
        results.append([fragments.features.detach(), *(p.grad for p in encoder.parameters() if p.grad is not None)])
    assert (results[0][0][~fragments.mask] == 0).all()
    for one, several in zip(*results, strict=True):
        torch.testing.assert_close(several, one, rtol=0, atol=1e-6 * max(1.0, float(one.abs().max())))
