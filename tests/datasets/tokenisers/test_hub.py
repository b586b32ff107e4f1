"""Where a tokenizer's files lie when a hub name is given."""

from __future__ import annotations

import pytest

from lib.datasets.tokenisers import load_tokenizer
from lib.errors import InputError


def test_hub_name_without_network_is_one_clear_line(monkeypatch):
    import huggingface_hub

    def unreachable(*args, **kwargs):
        raise ConnectionError("Name or service not known\nand a long traceback")

    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *args: None)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", unreachable)
    with pytest.raises(InputError, match="Name or service not known.*give its folder") as error:
        load_tokenizer("bert-base-uncased")
    assert "\n" not in str(error.value)


def test_hub_name_in_the_cache_needs_no_network(tokenizer, tmp_path, monkeypatch):
    import huggingface_hub

    tokenizer.save_pretrained(tmp_path)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda name, file: str(tmp_path / file))
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", None)
    assert load_tokenizer("bert-base-uncased").vocab_size == tokenizer.vocab_size
