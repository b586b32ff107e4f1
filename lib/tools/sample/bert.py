"""A tiny BERT with a WordPiece vocabulary of its own, randomly initialised and saved in Hugging Face form.

A matcher trains BERT at a tenth of its learning rate, so in a short training the random word vectors hardly move. They
are therefore drawn far apart (standard deviation 1), positions and segments close together, and the one layer mixes
neighbours only mildly.
"""

from __future__ import annotations

import string
from pathlib import Path

from lib.files import atomic_write, write_json

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_MAX_LENGTH = 512
_STANDARD_DEVIATION = {"word_embeddings": 1.0, "position_embeddings": 0.1, "token_type_embeddings": 0.1}
_STANDARD_DEVIATION_OF_LAYERS = 0.05


def wordpiece_vocabulary(words: list[str]) -> list[str]:
    """Special tokens, punctuation, letters and digits (alone and as continuations, to split unknown words), then words.

    A word that is another word with s or es stays out: it is split into its stem and ##s or ##es.
    """
    characters = string.punctuation + string.digits + string.ascii_lowercase
    continuations = [f"##{character}" for character in string.digits + string.ascii_lowercase] + ["##es"]
    known = set(words)
    stems = [word for word in words if not any(word.removesuffix(end) in known - {word} for end in ("s", "es"))]
    return list(dict.fromkeys([*SPECIAL_TOKENS, *characters, *continuations, *stems]))


def write_bert(folder: str | Path, words: list[str], seed: int, hidden_size: int = 128) -> None:
    """Write config.json, model.safetensors, vocab.txt, tokenizer.json and tokenizer_config.json into `folder`."""
    folder = Path(folder)
    vocabulary = wordpiece_vocabulary(words)
    _write_tokenizer(folder, vocabulary)
    _write_model(folder, len(vocabulary), seed, hidden_size)


def _write_tokenizer(folder: Path, vocabulary: list[str]) -> None:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    with atomic_write(folder / "vocab.txt") as temporary:
        temporary.write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    ids = {piece: number for number, piece in enumerate(vocabulary)}
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", ids["[CLS]"]), ("[SEP]", ids["[SEP]"])],
    )
    with atomic_write(folder / "tokenizer.json") as temporary:
        temporary.write_text(tokenizer.to_str(pretty=True) + "\n", encoding="utf-8")
    names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    settings = {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": _MAX_LENGTH}
    write_json(folder / "tokenizer_config.json", settings | dict(zip(names, SPECIAL_TOKENS, strict=True)))


def _write_model(folder: Path, vocab_size: int, seed: int, hidden_size: int) -> None:
    import torch
    from safetensors.torch import save_file
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=2 * hidden_size,
        max_position_embeddings=_MAX_LENGTH,
    )
    config.architectures = ["BertModel"]
    model = BertModel(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(".bias"):
                parameter.zero_()
            elif "LayerNorm" in name:
                parameter.fill_(1)
            else:
                deviation = _STANDARD_DEVIATION.get(name.split(".")[-2], _STANDARD_DEVIATION_OF_LAYERS)
                parameter.normal_(0, deviation, generator=generator)
    weights = {name: value.contiguous() for name, value in model.state_dict().items()}
    with atomic_write(folder / "config.json") as temporary:
        temporary.write_text(config.to_json_string(), encoding="utf-8")
    with atomic_write(folder / "model.safetensors") as temporary:
        save_file(weights, temporary, metadata={"format": "pt"})
