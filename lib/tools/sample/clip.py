"""A tiny CLIP for pictures of 32 × 32 pixels, randomly initialised, with a byte-pair vocabulary of its own.

It has learned nothing. Word vectors are drawn far apart, as those of the tiny BERT are, and projections large enough
for features to differ.
"""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path

from lib.datasets.tokenisers.clip import clip_vocabulary, vocabulary_files
from lib.files.writing import atomic_write, write_json

EMBED_SIZE = 256  # the smallest that ESL's levels fit
LOGIT_SCALE = 4.6052  # log 100, as of every published CLIP
_TOWER = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 1}
_IMAGE = _TOWER | {"image_size": 32, "patch_size": 8}
_POSITIONS = 77
_STANDARD_DEVIATION = {
    "token_embedding": 0.5,
    "patch_embedding": 0.05,
    "text_projection": 0.2,
    "visual_projection": 0.2,
}


def write_clip(folder: Path, words: list[str], seed: int) -> None:
    """Write config.json, model.safetensors, vocab.json, merges.txt and tokenizer_config.json into `folder`.

    Each of the `words` is one token; other words are spelled in shorter pieces.
    """
    import torch
    from safetensors.torch import save_file
    from transformers import CLIPConfig, CLIPModel

    merges = word_merges(words)
    for name, text in vocabulary_files(merges).items():
        with atomic_write(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "CLIPTokenizer", "model_max_length": _POSITIONS})

    entries = len(clip_vocabulary(merges)["vocab"])
    text = {"vocab_size": entries, "max_position_embeddings": _POSITIONS, "bos_token_id": entries - 2,
            "eos_token_id": entries - 1}  # fmt: skip
    sizes = {"projection_dim": EMBED_SIZE, "logit_scale_init_value": LOGIT_SCALE}
    config = CLIPConfig(
        text_config=_TOWER | text | sizes, vision_config=_IMAGE | sizes, architectures=["CLIPModel"], **sizes
    )
    model = CLIPModel(config)  # biases are 0, scales of layer norms 1
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.ndim >= 2 or name.endswith("class_embedding"):
            deviation = _STANDARD_DEVIATION.get(name.split(".")[-2], 0.05)
            torch.nn.init.normal_(parameter, 0, deviation, generator)
    with atomic_write(folder / "config.json") as temporary:
        temporary.write_text(config.to_json_string(), encoding="utf-8")
    with atomic_write(folder / "model.safetensors") as temporary:
        save_file(model.state_dict(), temporary, metadata={"format": "pt"})


def word_merges(words: list[str]) -> list[tuple[str, str]]:
    """The merges of byte-pair encoding, the most frequent pair first, until each word is one token."""
    split, merges = [[*word[:-1], f"{word[-1]}</w>"] for word in words], []
    while pairs := Counter(pair for pieces in split for pair in itertools.pairwise(pieces)):
        merges.append(min(pairs, key=lambda pair: (-pairs[pair], pair)))
        split = [_merged(pieces, merges[-1]) for pieces in split]
    return merges


def _merged(pieces: list[str], pair: tuple[str, str]) -> list[str]:
    found = []
    for piece in pieces:
        if found and (found[-1], piece) == pair:
            found[-1] += piece
        else:
            found.append(piece)
    return found
