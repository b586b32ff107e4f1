"""The tiny CLIP: a whole model, and a token for each word."""

from __future__ import annotations

import torch
from transformers import CLIPModel

from lib.datasets.tokenisers.clip import load_clip_tokenizer
from tests.tools.sample.conftest import lines


def test_clip_loads_completely_and_has_a_token_for_each_word_of_every_caption(small):
    clip, report = CLIPModel.from_pretrained(small / "clip", output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert (clip.config.projection_dim, clip.config.vision_config.image_size) == (256, 32)
    assert not any(torch.equal(p, torch.zeros_like(p)) for p in clip.parameters() if p.ndim > 1)
    tokeniser = load_clip_tokenizer(small / "clip")
    assert len(tokeniser) == clip.config.text_config.vocab_size
    for caption in lines(small / "f30k" / "precomp" / "train_caps.txt"):
        words = [word for word in caption.lower().split() if not word.endswith("s")]
        assert [token.removesuffix("</w>") for token in tokeniser.tokenize(" ".join(words))] == words
    assert tokeniser.tokenize("Zebra") == ["z", "e", "b", "r", "a</w>"]
