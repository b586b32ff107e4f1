"""The values of a transformer's configuration that its network depends on, and what they may be; others aren't read."""

from __future__ import annotations

from lib.core.values import Choice, Number, Several, Switch

WIDTH, LAYERS, HEADS = Number(int, 1, 1 << 16), Number(int, 1, 256), Number(int, 1, 1024)
ENTRIES, LENGTH, PIXELS = Number(int, 2, 1 << 24), Number(int, 2, 1 << 20), Number(int, 1, 1 << 14)
SHARE = Number(float, 0, 1)
ACTIVATION = Choice(
    ("gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh", "quick_gelu", "relu", "silu", "swish", "tanh")
)

DROPOUT = {"hidden_dropout_prob": SHARE, "attention_probs_dropout_prob": SHARE}
BERT = {
    "vocab_size": ENTRIES, "hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
    "intermediate_size": Number(int, 1, 1 << 18), "hidden_act": ACTIVATION, **DROPOUT,
    "max_position_embeddings": LENGTH, "type_vocab_size": Number(int, 1, 1024), "layer_norm_eps": SHARE,
}  # fmt: skip
_TOWER = {
    "hidden_size": WIDTH, "intermediate_size": Number(int, 1, 1 << 18), "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS, "hidden_act": ACTIVATION, "layer_norm_eps": SHARE, "projection_dim": WIDTH,
}  # fmt: skip
CLIP_IMAGE = _TOWER | {"image_size": PIXELS, "patch_size": PIXELS}
CLIP_TEXT = _TOWER | {"vocab_size": ENTRIES, "max_position_embeddings": LENGTH}
_PATCHES = {
    "image_size": PIXELS, "patch_size": PIXELS, "hidden_act": ACTIVATION, "layer_norm_eps": SHARE, "qkv_bias": Switch(),
    **DROPOUT,
}  # fmt: skip
VIT = _PATCHES | {
    "hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
    "intermediate_size": Number(int, 1, 1 << 18),
}  # fmt: skip
SWIN = _PATCHES | {
    "embed_dim": WIDTH, "depths": Several(LAYERS, 1, 8), "num_heads": Several(HEADS, 1, 8), "window_size": PIXELS,
    "mlp_ratio": Number(float, 0, 64, above=True), "drop_path_rate": SHARE, "use_absolute_embeddings": Switch(),
}  # fmt: skip
PROCESSOR = {  # of images, for range 0 to 1
    "image_mean": Several(Number(float, -10, 10), 3, 3),
    "image_std": Several(Number(float, 1e-3, 10), 3, 3),
}
