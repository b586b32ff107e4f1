"""The tiny BERT: a whole model, a tokenizer that knows every caption."""

from __future__ import annotations

import torch
from transformers import AutoTokenizer, BertModel

from tests.tools.sample.conftest import lines


def test_bert_loads_with_a_fast_lower_casing_tokenizer_that_knows_every_caption(small):
    tokenizer = AutoTokenizer.from_pretrained(small / "bert")
    assert tokenizer.is_fast and tokenizer.pad_token_id == 0 and tokenizer.model_max_length == 512
    for dataset in ("coco", "f30k"):
        for caption in lines(small / dataset / "precomp" / "train_caps.txt"):
            pieces = tokenizer.tokenize(caption)
            assert "[UNK]" not in pieces and all(len(p.removeprefix("##")) > 1 or p in "a.,##s" for p in pieces)
    assert tokenizer.tokenize("Two RED boxes") == ["two", "red", "box", "##es"]
    assert tokenizer.tokenize("Zebra") == ["z", "##e", "##b", "##r", "##a"]
    ids = tokenizer("a ball", "a box")
    assert [tokenizer.decode([i]) for i in ids["input_ids"]][::3] == ["[CLS]", "[SEP]", "[SEP]"]
    assert ids["token_type_ids"] == [0, 0, 0, 0, 1, 1, 1]
    assert lines(small / "bert" / "vocab.txt") == [t for t, _ in sorted(tokenizer.vocab.items(), key=lambda x: x[1])]


def test_bert_loads_completely_and_tells_words_apart(small):
    bert, report = BertModel.from_pretrained(small / "bert", output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert bert.config.max_position_embeddings == 512
    words = AutoTokenizer.from_pretrained(small / "bert").convert_tokens_to_ids(["red", "blue", "ball", "star"])
    ids = torch.tensor([[2, word, 3] for word in words])
    with torch.no_grad():
        states = torch.nn.functional.normalize(
            bert.eval()(input_ids=ids).last_hidden_state[:, 1], dim=-1
        )  # (4, hidden)
    assert (states @ states.T - torch.eye(4)).abs().max() < 0.5
