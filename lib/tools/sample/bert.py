"""A tiny BERT with a WordPiece vocabulary of its own, randomly initialised and saved in Hugging Face form.

A matcher trains BERT at a tenth of its learning rate, so in a short training the random word vectors hardly move. They
are therefore drawn far apart (standard deviation 1), positions and segments close together, and the one layer mixes
neighbours only mildly.
"""

from __future__ import annotations

import string
from pathlib import Path

from lib.files.writing import atomic_write, write_json

_SPECIAL_TOKENS = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
_SIZES = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 1, "num_attention_heads": 2}
_STANDARD_DEVIATION = {"word_embeddings": 1.0, "position_embeddings": 0.1, "token_type_embeddings": 0.1}


def write_bert(folder: Path, words: list[str], seed: int) -> None:
    """Write config.json, model.safetensors, vocab.txt, tokenizer.json and tokenizer_config.json into `folder`.

    The vocabulary holds special tokens, punctuation, letters and digits (alone and as continuations, to split unknown
    words), then `words`; one of them with s or es is split into itself and ##s or ##es.
    """
    import torch
    from safetensors.torch import save_file
    from transformers import BertConfig, BertModel, BertTokenizer

    characters = string.digits + string.ascii_lowercase
    continuations = [f"##{character}" for character in characters] + ["##es"]
    pieces = dict.fromkeys([*_SPECIAL_TOKENS.values(), *string.punctuation, *characters, *continuations, *words])
    tokenizer = BertTokenizer(vocab={piece: number for number, piece in enumerate(pieces)})
    with atomic_write(folder / "vocab.txt") as temporary:
        temporary.write_text("\n".join(pieces) + "\n", encoding="utf-8")
    with atomic_write(folder / "tokenizer.json") as temporary:
        temporary.write_text(tokenizer.backend_tokenizer.to_str(pretty=True) + "\n", encoding="utf-8")
    settings = {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": 512}
    write_json(folder / "tokenizer_config.json", settings | _SPECIAL_TOKENS)

    config = BertConfig(vocab_size=len(pieces), architectures=["BertModel"], **_SIZES)  # 512 positions
    model = BertModel(config)  # biases are 0, scales of layer norms 1
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, 0, _STANDARD_DEVIATION.get(name.split(".")[-2], 0.05), generator)
    with atomic_write(folder / "config.json") as temporary:
        temporary.write_text(config.to_json_string(), encoding="utf-8")
    with atomic_write(folder / "model.safetensors") as temporary:
        save_file(model.state_dict(), temporary, metadata={"format": "pt"})
