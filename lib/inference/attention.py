"""The words of a caption and how they match the regions of an image."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lib.core.fragments import Fragments, Tokens
from lib.datasets.captions import TokenisedCaptions
from lib.distributed.runner import Runner


class Candidate(NamedTuple):
    """An image to score: its name in the output, the encoder's input, and what a picture of it needs."""

    name: str
    image: Fragments | Tensor  # one, without a batch axis
    path: Path | None = None  # the image file
    boxes: np.ndarray | None = None  # (R, 4)
    grid: bool = False  # its regions are the cells of a square grid
    pixels: np.ndarray | None = None  # (H, W, 3) what the encoder sees of the image, where that is not all of it


@torch.inference_mode()
def word_rows(
    runner: Runner, image: Fragments | Tensor, captions: TokenisedCaptions, index: int
) -> tuple[list[str], np.ndarray]:
    """The words of a caption, its frame included, and how they match the image's real regions (words, R): the mean over
    each word's tokens."""
    batch = image[None] if isinstance(image, Tensor) else Fragments(image.features[None], image.real[None])
    head = runner.model.similarity
    regions = head.prepare_images(runner.encode_images(batch.to(runner.device)))
    tokens = head.prepare_captions(runner.encode_captions(Tokens.padded([captions.ids(index)]).to(runner.device)))
    S = head.attention(regions, tokens)[0, 0].float().cpu().numpy()  # (W, R)
    S = S[:, regions.real[0]]
    words = captions.word_tokens(index)
    return [word for word, _ in words], np.stack([S[place].mean(0) for _, place in words])
