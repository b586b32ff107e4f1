"""The configuration of a model as its weights tell it, since a released file states no BERT configuration."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor
from transformers import BertConfig

from lib.core.config import ModelConfig
from lib.core.errors import InputError, listed, shown
from lib.encoders.bert import bert_values
from lib.model import complete
from lib.similarity.aggregators import AGGREGATIONS

BERT_HEAD_SIZE = 64  # of every BERT release
_BERT = "text_encoder.bert."
_WORD_VECTORS, _GRU = "text_encoder.embed.weight", "text_encoder.gru."
_EMBED_SIZES = {"bigru": (f"{_GRU}weight_hh_l0", 1), "bert": ("text_encoder.linear.weight", 0)}
_BERT_SIZES = {
    "vocab_size": ("embeddings.word_embeddings.weight", 0),
    "hidden_size": ("embeddings.word_embeddings.weight", 1),
    "max_position_embeddings": ("embeddings.position_embeddings.weight", 0),
    "type_vocab_size": ("embeddings.token_type_embeddings.weight", 0),
    "intermediate_size": ("encoder.layer.0.intermediate.dense.weight", 0),
}
_BACKBONE = "image_encoder.backbone."
_BACKBONE_SHAPES = {  # blocks of layer1 to layer4, channels of the first bottleneck
    "detector": ([3, 4, 23, 3], 64),
    "wsl": ([3, 4, 23, 3], 256),
    "imagenet_res152": ([3, 8, 36, 3], 64),
    "tiny": ([1, 1, 1, 1], 4),
}


class Weights(NamedTuple):
    """A model under our key names, the file that it is from, and what that file calls a key."""

    tensors: dict[str, Tensor]
    path: Path
    named: Callable[[str], str]

    def size(self, key: str, axis: int) -> int:
        """Length of one axis of a weight; InputError when the file lacks it."""
        if key not in self.tensors or self.tensors[key].dim() <= axis:
            raise InputError(f"{self.path}: {self.named(key)} is missing or has too few axes")
        return self.tensors[key].shape[axis]

    def children(self, prefix: str) -> int:
        """How many different names follow `prefix`: the number of layers or blocks."""
        return len({key.removeprefix(prefix).split(".")[0] for key in self.tensors if key.startswith(prefix)})


def derived_config(
    weights: Weights, similarity: str, grid: bool, opt: dict[str, Any], bert_config: dict[str, Any] | None = None
) -> ModelConfig:
    """Sizes from the weights, the rest from `opt`, the settings in the file; InputError where they contradict.

    Entries that `opt` lacks get their defaults. Raises InputError also for weights that no configuration has.
    """

    stated = {name: value if isinstance(value, str | int | float | None) else str(value) for name, value in opt.items()}

    def agreed(name: str, found: Any) -> Any:
        if stated.get(name) not in (found, None):
            said = f"its opt says {name} {shown(stated[name])}, but its weights say {found}"
            raise InputError(f"{weights.path}: {said}; the file was altered")
        return found

    head = {"no_imgnorm": bool(stated.get("no_imgnorm")), "no_txtnorm": bool(stated.get("no_txtnorm"))}
    if similarity == "esl_h":
        head["kernel_size"] = agreed("kernel_size", heuristic_kernel_size(weights))
    elif similarity == "esl_a":
        head["kernel_size"] = adaptive_kernel_size(weights, stated.get("kernel_size"))
    agreed("precomp_enc_type", "backbone" if grid else "basic")
    if grid:
        images = {
            "backbone_source": _backbone_source(weights, stated.get("backbone_source")),
            "input_scale_factor": stated.get("input_scale_factor") or 1.0,
        }
    else:
        images = {"img_dim": agreed("img_dim", weights.size("image_encoder.fc.weight", 1))}
    text = "bigru" if _WORD_VECTORS in weights.tensors else "bert"
    embed_size = agreed("embed_size", weights.size(*_EMBED_SIZES[text]))
    if text == "bigru":
        texts = {name: agreed(name, found) for name, found in derived_bigru(weights).items()}
    else:
        texts = derived_bert(weights, bert_config)
    try:
        return complete(ModelConfig(similarity, "grid" if grid else "regions", text, embed_size, head, images, texts))
    except (InputError, TypeError) as error:
        raise InputError(f"{weights.path}: {shown(error, 400)}") from None


def derived_bert(weights: Weights, bert_config: dict[str, Any] | None = None) -> dict[str, Any]:
    """The values of a BertConfig that fit the weights.

    Shapes don't tell heads, activation and epsilon: they are those of `bert_config` when its sizes are the same, else
    heads of 64 and BERT's defaults. Raises InputError when there is no BERT in the weights, or when its hidden size is
    no multiple of 64 and no fitting `bert_config` is given.
    """
    sizes = {name: weights.size(_BERT + key, axis) for name, (key, axis) in _BERT_SIZES.items()}
    sizes["num_hidden_layers"] = weights.children(f"{_BERT}encoder.layer.")
    if bert_config and all(bert_config.get(name) == size for name, size in sizes.items()):
        return dict(bert_config)
    hidden = sizes["hidden_size"]
    if hidden % BERT_HEAD_SIZE:
        raise InputError(
            f"{weights.path}: BERT's hidden size {hidden} is no multiple of {BERT_HEAD_SIZE}, so its weights do not "
            "tell the number of attention heads; name the BERT folder whose config.json fits them with --bert_path"
        )
    return bert_values(BertConfig(**sizes, num_attention_heads=hidden // BERT_HEAD_SIZE))


def derived_bigru(weights: Weights) -> dict[str, Any]:
    """The sizes of a BiGRU and of its vocabulary."""
    layers = {key for key in weights.tensors if key.startswith(f"{_GRU}weight_ih_l") and "_reverse" not in key}
    return {
        "vocab_size": weights.size(_WORD_VECTORS, 0),
        "word_dim": weights.size(_WORD_VECTORS, 1),
        "num_layers": len(layers),
    }


def heuristic_kernel_size(weights: Weights) -> int:
    """The kernel size of ESL-H, the taps of its kernels."""
    return weights.size("similarity.image_aggregator.weights.0", 2)


def adaptive_kernel_size(weights: Weights, stated: int | None) -> int:
    """The kernel size s that gives the level sizes floor(D / s^k) of ESL-A; `stated` decides where several do."""
    levels = range(AGGREGATIONS + 1)
    sizes = [weights.size(f"similarity.correspondences.{k}.matrix", 0) for k in levels]
    fitting = [s for s in range(2, sizes[0] + 1) if sizes == [sizes[0] // s**k for k in levels]]
    if not fitting or stated not in (None, *fitting):
        told = f"its opt says kernel_size {shown(stated)}, which does not give" if fitting else "no kernel_size gives"
        raise InputError(f"{weights.path}: {told} the level sizes {', '.join(map(str, sizes))} of its weights")
    return fitting[0] if stated is None else stated


def _backbone_source(weights: Weights, stated: str | None) -> str:
    """The backbone whose blocks and widths the weights have; `stated` must be one of these."""
    blocks = [weights.children(f"{_BACKBONE}layer{k}.") for k in range(1, 5)]
    width = weights.size(f"{_BACKBONE}layer1.0.conv1.weight", 0)
    fitting = [name for name, shape in _BACKBONE_SHAPES.items() if shape == (blocks, width)]
    if not fitting or stated not in (None, *fitting):
        found = f"{', '.join(map(str, blocks))} blocks in layer1 to layer4 and {width} channels in the first block"
        told = f"its opt says backbone_source '{shown(stated)}', but its" if stated and fitting else "its"
        raise InputError(f"{weights.path}: {told} backbone has {found}, which is {listed(fitting) or 'not supported'}")
    return stated or fitting[0]
