"""Image and text encoders. A new one is a file with an ImageEncoder or TextEncoder, and a row here."""

from __future__ import annotations

from lib.command_line import positive
from lib.config import Option
from lib.encoders.backbones import SOURCES
from lib.encoders.bert import DROPOUT, bert_encoder, read_bert_options
from lib.encoders.bigru import bigru_encoder, check_bigru, read_bigru_options
from lib.encoders.encoder import ImageEncoderPart, TextEncoderPart
from lib.encoders.grid import check_grid, grid_encoder, grid_transform
from lib.encoders.regions import check_regions, region_encoder

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
}
