"""Image and text encoders. A new one is a file with an ImageEncoder or TextEncoder, and a row here."""

from __future__ import annotations

from functools import partial

from lib.command_line import positive
from lib.config import Option
from lib.encoders.backbones import SOURCES
from lib.encoders.bert import DROPOUT, bert_encoder, read_bert_options
from lib.encoders.bigru import bigru_encoder, check_bigru, read_bigru_options
from lib.encoders.clip import (
    OUTPUTS,
    check_clip,
    clip_image_encoder,
    clip_text_encoder,
    read_image_options,
    read_text_options,
)
from lib.encoders.clip_transform import clip_transform
from lib.encoders.encoder import ImageEncoderPart, TextEncoderPart
from lib.encoders.grid import check_grid, grid_encoder, grid_transform
from lib.encoders.regions import check_regions, region_encoder
from lib.encoders.vision_transformers import (
    SWIN,
    VIT,
    Kind,
    check_transformer,
    read_transformer_options,
    transformer_encoder,
    transformer_transform,
)

CLIP_OUTPUT = {
    "clip_output": Option("pooled", "clip: one vector an item, or all its patches and word pieces", choices=OUTPUTS)
}

INPUT_SIZE = {"input_size": Option(None, "vit, swin: side of the input (default: its processor's)", positive(int))}


def _transformer(kind: Kind) -> ImageEncoderPart:
    return ImageEncoderPart(
        f"{kind.label} patches",
        partial(transformer_encoder, kind),
        INPUT_SIZE,
        check_transformer,
        training_only=("input_size",),
        read_options=partial(read_transformer_options, kind),
        transform=transformer_transform,
    )


IMAGE_ENCODERS = {
    "regions": ImageEncoderPart(
        "region features",
        region_encoder,
        {"img_dim": Option(2048, "regions: size of a region feature", positive(int))},
        check_regions,
    ),
    "grid": ImageEncoderPart(
        "grid features",
        grid_encoder,
        {
            "backbone_source": Option(
                "detector",
                "grid: BUTD ResNet-101, WSL ResNeXt-101, ImageNet ResNet-152, or a tiny random one for trying things",
                choices=SOURCES,
            ),
            "input_scale_factor": Option(1.0, "grid: images are resized to squares of 256 * X pixels", positive(float)),
        },
        check_grid,
        training_only=("input_scale_factor",),
        transform=grid_transform,
        describe=lambda options: f"grid features ({options['backbone_source']})",
    ),
    "clip": ImageEncoderPart(
        "CLIP images",
        clip_image_encoder,
        CLIP_OUTPUT,
        check_clip,
        read_options=read_image_options,
        transform=clip_transform,
        describe=lambda options: f"CLIP images ({options['clip_output']})",
    ),
    "vit": _transformer(VIT),
    "swin": _transformer(SWIN),
}

TEXT_ENCODERS = {
    "bert": TextEncoderPart(
        "BERT", bert_encoder, training_only=DROPOUT, read_options=read_bert_options, tokeniser="wordpiece"
    ),
    "bigru": TextEncoderPart(
        "BiGRU",
        bigru_encoder,
        {
            "word_dim": Option(300, "bigru: size of a word vector", positive(int)),
            "num_layers": Option(1, "bigru: layers of the GRU", positive(int)),
        },
        check_bigru,
        read_options=read_bigru_options,
        tokeniser="scan",
    ),
    "clip": TextEncoderPart(
        "CLIP",
        clip_text_encoder,
        CLIP_OUTPUT
        | {"cut_end": Option(False, "clip: cut the end token of a long caption too, as the released code does")},
        check_clip,
        training_only=("cut_end",),
        read_options=read_text_options,
        tokeniser="clip",
    ),
}
