"""The contracts of encoders: what an encoder may leave out, and what the rows of the tables promise."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from lib.core.config import EncoderPart, Option
from lib.core.fragments import Fragments, Tokens
from lib.datasets.tokenisers import TOKENISERS
from lib.encoders import IMAGE_ENCODERS, TEXT_ENCODERS
from lib.encoders.encoder import ImageEncoder, TextEncoder
from tests.helpers import BERT, CLIP_IMAGE, CLIP_TEXT, SWIN, VIT

pytestmark = pytest.mark.usefixtures("single_thread")

PROCESSOR = {"input_size": 32, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
IMAGES = {
    "regions": {"img_dim": 5},
    "grid": {"backbone_source": "tiny", "input_scale_factor": 0.25},
    "clip": CLIP_IMAGE | {"clip_output": "tokens"},
    "vit": VIT | PROCESSOR,
    "swin": SWIN | PROCESSOR,
}
TEXTS = {
    "bert": BERT,
    "bigru": {"vocab_size": 10, "word_dim": 4},
    "clip": CLIP_TEXT | {"clip_output": "tokens"},
}


@pytest.mark.parametrize("contract", [ImageEncoder, TextEncoder])
def test_an_encoder_that_only_encodes_has_nothing_pretrained(contract):
    class Plain(contract):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(1))

    assert Plain().pretrained_parameters() == []


def test_an_image_encoder_that_only_encodes_has_no_blocks_to_fix_and_lets_its_batch_be_split():
    class Plain(ImageEncoder):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(1))

    encoder = Plain()
    encoder.fix_blocks(4)
    assert encoder.weight.requires_grad and not encoder.whole_batch


def test_a_row_completes_its_options_and_hands_on_the_paths():
    part = EncoderPart("plain", lambda *given: given, {"depth": Option(2, ""), "wide": Option(False, "")})
    assert part.make(8, depth=3) == (8, {"depth": 3, "wide": False}, None)
    assert part.make(8, {"bert_path": "here"}) == (8, {"depth": 2, "wide": False}, {"bert_path": "here"})
    assert part.read_options({"depth": 3}, {}) == {"depth": 3}


@pytest.mark.parametrize("name", IMAGE_ENCODERS)
def test_every_image_encoder_turns_what_its_row_reads_into_fragments(name):
    part = IMAGE_ENCODERS[name]
    options = part.complete(12, IMAGES[name])
    encoder = part.make(12, **IMAGES[name]).eval()
    assert isinstance(encoder, ImageEncoder)
    if part.transform is None:
        images = Fragments.full(torch.randn(2, 3, options["img_dim"]))
    else:
        transform, image = part.transform(options), np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)
        if hasattr(transform, "decode"):
            image = transform.decode(Image.fromarray(image))
        images = torch.stack([transform(image, None), transform(image, np.random.default_rng(0))])
    encoded = encoder(images)
    assert encoded.features.shape == (*encoded.mask.shape, 12) and encoded.count == 2
    assert encoded.mask.dtype == torch.bool and encoded.features.isfinite().all()


@pytest.mark.parametrize("name", TEXT_ENCODERS)
def test_every_text_encoder_turns_tokens_of_a_known_tokeniser_into_fragments(name):
    encoder = TEXT_ENCODERS[name].make(12, **TEXTS[name]).eval()
    captions = Tokens(torch.tensor([[2, 5, 6, 3], [2, 9, 3, 0]]), torch.tensor([4, 3]))
    encoded = encoder(captions)
    assert isinstance(encoder, TextEncoder) and TEXT_ENCODERS[name].tokeniser in TOKENISERS
    assert encoded.features.shape == (2, 4, 12) and encoded.features.isfinite().all()
    assert torch.equal(encoded.mask, captions.mask)
