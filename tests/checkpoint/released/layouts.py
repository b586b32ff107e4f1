"""Released files as their documentation describes them, written down apart from the code under test.

Key names and shapes are those of the released ESL-H, ESL-A and VSE-infinity models, at sizes that suit a test.
"""

from __future__ import annotations

import argparse
import copy
import functools
from collections import OrderedDict

import torch

from lib.core.config import ModelConfig
from lib.model import MatchingModel, build_model, complete

BERT = {
    "vocab_size": 40, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 1, "intermediate_size": 48,
    "hidden_act": "gelu", "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1,
    "max_position_embeddings": 12, "type_vocab_size": 2, "layer_norm_eps": 1e-12,
}  # fmt: skip
IMG_DIM = 24
EMBED_SIZE = {"esl_a": 256, "esl_h": 256, "vse_infty": 16}
KINDS = ("esl_a", "esl_h", "vse_infty", "vse_infty grid", "esl_a grid", "esl_h grid")


def small_config(kind: str) -> ModelConfig:
    similarity, _, grid = kind.partition(" ")
    encoder, images = ("grid", {"backbone_source": "tiny"}) if grid else ("regions", {"img_dim": IMG_DIM})
    return complete(ModelConfig(similarity, encoder, "bert", EMBED_SIZE[similarity], {}, images, dict(BERT)))


def small_model(kind: str) -> MatchingModel:
    """One of our models with random values everywhere, BatchNorm statistics included; the same ones each time."""
    return copy.deepcopy(_small_model(kind))


@functools.cache
def _small_model(kind: str) -> MatchingModel:
    model = build_model(small_config(kind))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.copy_(random_like(tensor.shape, tensor.dtype, generator))
    return model.eval()


def random_like(shape, dtype=torch.float32, generator=None) -> torch.Tensor:
    if dtype == torch.int64:
        return torch.randint(1, 1000, tuple(shape), generator=generator)
    return torch.rand(tuple(shape), generator=generator) + 0.1


def released_shapes(kind: str, embed_size: int | None = None, img_dim: int = IMG_DIM, bert: dict = BERT, s: int = 2,
                    resnet=((1, 1, 1, 1), 1, 4)) -> list[dict[str, tuple]]:  # fmt: skip
    """Keys and shapes of [img_enc, txt_enc, sim_vec?] without "module."; `resnet` = blocks, groups, width per group."""
    similarity, _, grid = kind.partition(" ")
    size = embed_size or EMBED_SIZE[similarity]
    image, text = {}, {}
    if grid:
        image |= _resnet_shapes(*resnet)
        image |= {"image_encoder.fc.weight": (size, 2048), "image_encoder.fc.bias": (size,)}
    else:
        image |= {"fc.weight": (size, img_dim), "fc.bias": (size,)}
        for layer, (into, out) in enumerate(((img_dim, size // 2), (size // 2, size))):
            image |= {f"mlp.layers.{layer}.weight": (out, into), f"mlp.layers.{layer}.bias": (out,)}
        for layer, out in enumerate((size // 2, size)):
            image |= _batch_norm(f"mlp.bns.{layer}", out)
    text |= _bert_shapes(bert)
    text |= {"linear.weight": (size, bert["hidden_size"]), "linear.bias": (size,)}
    if similarity == "vse_infty":
        for part, prefix in ((image, "image_encoder.gpool" if grid else "gpool"), (text, "gpool")):
            for direction in ("", "_reverse"):
                part |= {f"{prefix}.gru.weight_{x}_l0{direction}": (96, 32) for x in ("ih", "hh")}
                part |= {f"{prefix}.gru.bias_{x}_l0{direction}": (96,) for x in ("ih", "hh")}
            part[f"{prefix}.linear.weight"] = (1, 32)
        return [image, text]
    head, sizes = {}, [size // s**k for k in range(9)]
    for modality, short in (("text", "txt"), ("image", "img")):
        for k in range(1, 9):
            levels = f"plus_encoder.encoders_1.{modality}_levels"
            if similarity == "esl_a":
                head[f"{levels}.masks_{k}.weight"] = (sizes[k], sizes[k - 1])
            else:
                head[f"{levels}.kernel_{short}_{k}.weight"] = (4, 1, s)
    head["sims.calculator_1.sim_eval.weight"] = (1, 9)
    head |= {f"sims.calculator_1.{name}.weight": (1, 1) for name in ("temp_scale", "temp_scale_1", "temp_scale_2")}
    for k in range(9):
        head[f"sims.calculator_1.masks_{k}.weight"] = (sizes[k], sizes[k])
        head |= {f"sims.calculator_1.lynorm_{k}.{name}": (sizes[k], sizes[k]) for name in ("weight", "bias")}
    return [image, text, head]


def _batch_norm(name: str, size: int) -> dict[str, tuple]:
    vectors = {f"{name}.{entry}": (size,) for entry in ("weight", "bias", "running_mean", "running_var")}
    return {**vectors, f"{name}.num_batches_tracked": ()}


def _bert_shapes(bert: dict) -> dict[str, tuple]:
    hidden, inner = bert["hidden_size"], bert["intermediate_size"]
    shapes = {
        "bert.embeddings.word_embeddings.weight": (bert["vocab_size"], hidden),
        "bert.embeddings.position_embeddings.weight": (bert["max_position_embeddings"], hidden),
        "bert.embeddings.token_type_embeddings.weight": (bert["type_vocab_size"], hidden),
        "bert.embeddings.LayerNorm.weight": (hidden,),
        "bert.embeddings.LayerNorm.bias": (hidden,),
        "bert.pooler.dense.weight": (hidden, hidden),
        "bert.pooler.dense.bias": (hidden,),
    }
    for layer in range(bert["num_hidden_layers"]):
        dense = {f"attention.self.{name}": (hidden, hidden) for name in ("query", "key", "value")}
        dense["attention.output.dense"] = (hidden, hidden)
        dense |= {"intermediate.dense": (inner, hidden), "output.dense": (hidden, inner)}
        for name, shape in dense.items():
            shapes[f"bert.encoder.layer.{layer}.{name}.weight"] = shape
            shapes[f"bert.encoder.layer.{layer}.{name}.bias"] = shape[:1]
        for name in ("attention.output", "output"):
            shapes[f"bert.encoder.layer.{layer}.{name}.LayerNorm.weight"] = (hidden,)
            shapes[f"bert.encoder.layer.{layer}.{name}.LayerNorm.bias"] = (hidden,)
    return shapes


def _resnet_shapes(blocks: tuple[int, ...], groups: int, width_per_group: int) -> dict[str, tuple]:
    """The layers of a ResNet of bottlenecks, each under both of its released names."""
    stem = {"conv1.weight": (64, 3, 7, 7), **_batch_norm("bn1", 64)}
    into, resnet = 64, dict(stem)
    for stage, count in enumerate(blocks, start=1):
        planes = 64 * 2 ** (stage - 1)
        width = planes * width_per_group // 64 * groups
        for block in range(count):
            name = f"layer{stage}.{block}"
            resnet[f"{name}.conv1.weight"] = (width, into, 1, 1)
            resnet[f"{name}.conv2.weight"] = (width, width // groups, 3, 3)
            resnet[f"{name}.conv3.weight"] = (4 * planes, width, 1, 1)
            for norm, size in (("bn1", width), ("bn2", width), ("bn3", 4 * planes)):
                resnet |= _batch_norm(f"{name}.{norm}", size)
            if block == 0:
                resnet[f"{name}.downsample.0.weight"] = (4 * planes, into, 1, 1)
                resnet |= _batch_norm(f"{name}.downsample.1", 4 * planes)
            into = 4 * planes
    shapes = {f"backbone.resnet.{key}": shape for key, shape in resnet.items()}
    shapes |= {"backbone.resnet.fc.weight": (1000, 2048), "backbone.resnet.fc.bias": (1000,)}
    return shapes | {second_name(key): shape for key, shape in shapes.items() if second_name(key) != key}


def second_name(key: str) -> str:
    """Where a layer of backbone.resnet lies in backbone.base (conv1, bn1, ReLU, max-pool, layers 1 to 3) or .top."""
    places = {"conv1": "base.0", "bn1": "base.1", "layer1": "base.4", "layer2": "base.5", "layer3": "base.6",
              "layer4": "top.0"}  # fmt: skip
    for name, place in places.items():
        if key.startswith(f"backbone.resnet.{name}."):
            return key.replace(f"resnet.{name}.", f"{place}.", 1)
    return key


def released_content(kind: str, **sizes) -> dict:
    """A whole released file with random values, the same ones each time; both names of a backbone layer share one
    tensor. A test may alter the dicts, not the tensors."""
    tensors = _cached_tensors(kind) if not sizes else _tensors(kind, **sizes)
    dicts = [OrderedDict((f"module.{key}", tensor) for key, tensor in part.items()) for part in tensors]
    return {"epoch": 7, "model": dicts, "best_rsum": 512.5, "opt": released_opt(kind), "Eiters": 1234}


def _tensors(kind: str, **sizes) -> list[dict[str, torch.Tensor]]:
    generator, parts = torch.Generator().manual_seed(0), []
    for shapes in released_shapes(kind, **sizes):
        part = {}
        for key, shape in shapes.items():
            dtype = torch.int64 if key.endswith("num_batches_tracked") else torch.float32
            part[key] = random_like(shape, dtype, generator)
        twice = {second_name(key): tensor for key, tensor in part.items() if second_name(key) != key}
        parts.append(part | twice)
    return parts


_cached_tensors = functools.cache(_tensors)


def released_opt(kind: str) -> argparse.Namespace:
    similarity, _, grid = kind.partition(" ")
    opt = argparse.Namespace(
        data_name="f30k_precomp", batch_size=128, margin=0.2, img_dim=IMG_DIM, embed_size=EMBED_SIZE[similarity],
        no_imgnorm=False, no_txtnorm=False, precomp_enc_type="backbone" if grid else "basic", backbone_path="",
        backbone_source="tiny" if grid else "detector", input_scale_factor=1, resume="",
    )  # fmt: skip
    if similarity != "vse_infty":
        opt.kernel_size = 2
    return opt


def assert_same_tensors(a: dict, b: dict) -> None:
    """Both hold the same keys with the same types, shapes and bits."""
    assert set(a) == set(b), sorted(set(a) ^ set(b))
    for key in a:
        assert a[key].dtype == b[key].dtype and a[key].shape == b[key].shape and torch.equal(a[key], b[key]), key


def assert_same_released(a: dict, b: dict) -> None:
    assert {key: a[key] for key in a if key != "model"} == {key: b[key] for key in b if key != "model"}
    for one, other in zip(a["model"], b["model"], strict=True):
        assert_same_tensors(one, other)
