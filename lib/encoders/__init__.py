"""Image and text encoders. A new one is a file with an ImageEncoder or TextEncoder, and a row here."""

from __future__ import annotations

from lib.core.config import ImageEncoderPart, Option, TextEncoderPart, lazy
from lib.core.values import Number, positive
from lib.encoders import fields

SOURCES = ("detector", "wsl", "imagenet_res152", "tiny")  # of the grid encoder's backbones
SCALE = Number(float, 1 / 256, 64)  # of squares of 256 pixels

CLIP_OUTPUT = {
    "clip_output": Option(
        "pooled", "clip: one vector per item, or all its patches and word pieces", choices=("pooled", "tokens")
    )
}

INPUT_SIZE = {"input_size": Option(None, "vit, swin: side of the input (default: its processor's)", fields.PIXELS)}


def _transformer(label: str, build: str, read_options: str, own: dict) -> ImageEncoderPart:
    return ImageEncoderPart(
        f"{label} patches",
        lazy(build),
        INPUT_SIZE,
        lazy("lib.encoders.vision_transformers:check_transformer"),
        training_only=("input_size",),
        read_options=lazy(read_options),
        transform=lazy("lib.encoders.vision_transformers:transformer_transform"),
        fields=own | fields.PROCESSOR,
    )


IMAGE_ENCODERS = {
    "regions": ImageEncoderPart(
        "region features",
        lazy("lib.encoders.regions:region_encoder"),
        {"img_dim": Option(2048, "regions: size of a region feature", positive(int, 1 << 20))},
    ),
    "grid": ImageEncoderPart(
        "grid features",
        lazy("lib.encoders.grid:grid_encoder"),
        {
            "backbone_source": Option(
                "detector",
                "grid: BUTD ResNet-101, WSL ResNeXt-101, ImageNet ResNet-152, or a tiny random one for trials",
                choices=SOURCES,
            ),
            "input_scale_factor": Option(1.0, "grid: images are resized to squares of 256 * X pixels", SCALE),
        },
        training_only=("input_scale_factor",),
        transform=lazy("lib.encoders.grid:grid_transform"),
        describe=lambda options: f"grid features ({options['backbone_source']})",
    ),
    "clip": ImageEncoderPart(
        "CLIP images",
        lazy("lib.encoders.clip:clip_image_encoder"),
        CLIP_OUTPUT,
        lazy("lib.encoders.clip:check_clip"),
        read_options=lazy("lib.encoders.clip:read_image_options"),
        transform=lazy("lib.encoders.transforms:clip_transform"),
        fields=fields.CLIP_IMAGE,
        describe=lambda options: f"CLIP images ({options['clip_output']})",
    ),
    "vit": _transformer(
        "ViT",
        "lib.encoders.vision_transformers:vit_encoder",
        "lib.encoders.vision_transformers:read_vit_options",
        fields.VIT,
    ),
    "swin": _transformer(
        "Swin",
        "lib.encoders.vision_transformers:swin_encoder",
        "lib.encoders.vision_transformers:read_swin_options",
        fields.SWIN,
    ),
}

TEXT_ENCODERS = {
    "bert": TextEncoderPart(
        "BERT",
        lazy("lib.encoders.bert:bert_encoder"),
        training_only=tuple(fields.DROPOUT),
        read_options=lazy("lib.encoders.bert:read_bert_options"),
        tokeniser="wordpiece",
        fields=fields.BERT,
    ),
    "bigru": TextEncoderPart(
        "BiGRU",
        lazy("lib.encoders.bigru:bigru_encoder"),
        {
            "word_dim": Option(300, "bigru: size of a word vector", fields.WIDTH),
            "num_layers": Option(1, "bigru: layers of the GRU", positive(int, 64)),
        },
        lazy("lib.encoders.bigru:check_bigru"),
        read_options=lazy("lib.encoders.bigru:read_bigru_options"),
        tokeniser="scan",
        fields={"vocab_size": fields.ENTRIES},
    ),
    "clip": TextEncoderPart(
        "CLIP",
        lazy("lib.encoders.clip:clip_text_encoder"),
        CLIP_OUTPUT
        | {"cut_end": Option(False, "clip: cut the end token of a long caption too, as the released code does")},
        lazy("lib.encoders.clip:check_clip"),
        training_only=("cut_end",),
        read_options=lazy("lib.encoders.clip:read_text_options"),
        tokeniser="clip",
        fields=fields.CLIP_TEXT,
    ),
}
