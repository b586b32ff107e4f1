"""MatchingModel (two encoders and a similarity head) and build_model, the one place that loads pre-trained parts."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
from pathlib import Path

from torch import Tensor, nn
from transformers import BertConfig, BertModel
from transformers.utils import logging as transformers_logging

from lib.config import ModelConfig
from lib.encoders.backbones import CHANNELS, build_backbone
from lib.encoders.bert import BertEncoder
from lib.encoders.image import GridEncoder, RegionEncoder
from lib.errors import InputError
from lib.fragments import Fragments
from lib.similarity import esl_a, esl_h
from lib.similarity.gpo import GPO
from lib.similarity.vse_infty import PooledSimilarity

BERT_FIELDS = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "hidden_act",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "max_position_embeddings",
    "type_vocab_size",
    "layer_norm_eps",
)


class MatchingModel(nn.Module):
    """An image encoder, a text encoder and a similarity head; `config` is what build_model rebuilds it from."""

    def __init__(self, image_encoder: nn.Module, text_encoder: nn.Module, similarity: nn.Module, config: ModelConfig):
        super().__init__()
        self.image_encoder = image_encoder
        self.text_encoder = text_encoder
        self.similarity = similarity
        self.config = config

    def forward(self, images: Fragments | Tensor, captions: Tensor) -> Tensor:
        """Scores (B, C) of all pairs: images as Fragments of regions or (B, 3, H, W), captions as token ids (C, W)."""
        return self.score(self.image_encoder(images), self.text_encoder(captions))

    def score(self, images: Fragments, captions: Fragments) -> Tensor:
        """Scores (B, C) of encoded images and captions."""
        head = self.similarity
        return head.score(head.prepare_images(images), head.prepare_captions(captions))


def build_model(
    config: ModelConfig,
    bert_path: str | Path | None = None,
    backbone_path: str | Path | None = None,
    pretrained: bool = True,
) -> MatchingModel:
    """Build the network of `config`.

    `bert_path` names a pre-trained BERT (hub name or folder), which then fills `config.bert`; without it BERT is made
    from `config.bert` with random weights, for a checkpoint to fill. The same holds for the grid backbone and
    `pretrained`. Raises InputError when a part can't be loaded.
    """
    if bert_path is not None:
        bert = load_bert(bert_path)
        config = dataclasses.replace(config, bert=bert_values(bert.config))
    else:
        bert = BertModel(BertConfig(**config.bert))
    if config.grid:
        backbone = build_backbone(config.backbone_source, backbone_path, pretrained=pretrained)
        image_encoder = GridEncoder(backbone, CHANNELS, config.embed_size)
    else:
        image_encoder = RegionEncoder(config.img_dim, config.embed_size)
    return MatchingModel(image_encoder, BertEncoder(bert, config.embed_size), build_similarity(config), config)


def build_similarity(config: ModelConfig) -> nn.Module:
    """The similarity head of `config`."""
    switches = {"normalize_images": not config.no_imgnorm, "normalize_captions": not config.no_txtnorm}
    if config.similarity == "vse_infty":
        return PooledSimilarity(GPO(32, 32), GPO(32, 32), **switches)
    return {"esl_a": esl_a, "esl_h": esl_h}[config.similarity](config.embed_size, config.kernel_size, **switches)


def load_bert(bert_path: str | Path) -> BertModel:
    """A pre-trained BERT from a folder in Hugging Face form or a hub name; InputError where there is none."""
    with quiet_transformers():
        try:
            return BertModel.from_pretrained(str(bert_path), add_pooling_layer=True)
        except Exception as error:
            raise bert_error(bert_path, error) from None


def load_bert_config(bert_path: str | Path) -> BertConfig:
    """The configuration alone of a BERT folder or hub name; InputError where there is none."""
    with quiet_transformers():
        try:
            return BertConfig.from_pretrained(str(bert_path))
        except Exception as error:
            raise bert_error(bert_path, error) from None


def local_bert_values(bert_path: str | Path) -> dict | None:
    """`bert_values` of the configuration in --bert_path, where that is a folder that holds one."""
    if not (Path(bert_path) / "config.json").is_file():
        return None
    return bert_values(load_bert_config(bert_path))


def bert_values(config: BertConfig) -> dict:
    """The plain values of a BertConfig that the network depends on."""
    return {name: getattr(config, name) for name in BERT_FIELDS}


def bert_error(bert_path: str | Path, error: Exception) -> InputError:
    """One line for whatever went wrong while BERT was read."""
    if not os.path.isdir(bert_path):
        where = f"--bert_path {bert_path}: no such folder, and a hub model of that name could not be loaded"
    else:
        where = f"--bert_path {bert_path}: not a BERT model in Hugging Face form"
    reason = " ".join(str(error).split())[:160]
    return InputError(
        f"{where} ({type(error).__name__}: {reason}); "
        "give a folder with config.json, model.safetensors and the vocabulary"
    )


@contextlib.contextmanager
def quiet_transformers():
    """Keep transformers' and the hub's warnings and progress bars off the console while a part loads."""
    before = transformers_logging.get_verbosity()
    hub = logging.getLogger("huggingface_hub")
    hub_before = hub.level
    transformers_logging.set_verbosity(transformers_logging.CRITICAL)
    transformers_logging.disable_progress_bar()
    hub.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        transformers_logging.set_verbosity(before)
        hub.setLevel(hub_before)
