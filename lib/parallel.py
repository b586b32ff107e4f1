"""Several GPUs in one process, giving the numbers of one.

The text encoder and the grid encoder split their batch by items. The region encoder stays whole on the first GPU: it
is two small layers, and its BatchNorm needs the statistics of the whole batch. Scoring splits the images and hands
every GPU all captions, so the (B, B) matrix, and with it every negative, is the same as on one GPU.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.parallel import data_parallel, parallel_apply, replicate

from lib.errors import InputError
from lib.fragments import Fragments
from lib.model import MatchingModel


def visible_devices(device: str | None = None) -> list[torch.device]:
    """The named device alone, else all visible GPUs, else the CPU. Raises InputError for a device that is not here."""
    if device is not None:
        try:
            named = torch.device(device)
            torch.empty(1, device=named)
        except (RuntimeError, AssertionError, NotImplementedError) as error:
            reason = str(error).split("\n")[0].split(". ")[0]
            raise InputError(f"--device '{device}' can't be used ({reason}); expected cpu, cuda or cuda:N") from None
        return [named]
    if torch.cuda.is_available():
        return [torch.device("cuda", index) for index in range(torch.cuda.device_count())]
    return [torch.device("cpu")]


class InCallersPrecision(nn.Module):
    """An encoder for data_parallel, whose threads would otherwise run autocast in its default type, float16."""

    def __init__(self, encoder: nn.Module):
        super().__init__()
        self.encoder = encoder
        self.enabled, self.dtype = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")

    def forward(self, items) -> Fragments:
        with torch.autocast("cuda", dtype=self.dtype, enabled=self.enabled):
            return self.encoder(items)


class PairScorer(nn.Module):
    """A similarity head as one module call: encoded images and captions in, scores (B, C) out."""

    def __init__(self, head: nn.Module):
        super().__init__()
        self.head = head

    def forward(self, images: Fragments, captions: Fragments) -> Tensor:
        return self.head.score(self.head.prepare_images(images), self.head.prepare_captions(captions))


class Runner:
    """Runs a MatchingModel on one device or several; the model's parameters live on the first."""

    def __init__(self, model: MatchingModel, devices: list[torch.device]):
        self.model = model.to(devices[0])
        self.devices = devices
        self.device = devices[0]

    def encode_images(self, images: Fragments | Tensor) -> Fragments:
        encoder = self.model.image_encoder
        if len(self.devices) == 1 or not self.model.config.grid:
            return encoder(images)
        return data_parallel(InCallersPrecision(encoder), images, self.devices)

    def encode_captions(self, token_ids: Tensor) -> Fragments:
        if len(self.devices) == 1:
            return self.model.text_encoder(token_ids)
        return data_parallel(InCallersPrecision(self.model.text_encoder), token_ids, self.devices)

    def score(self, images: Fragments, captions: Fragments) -> Tensor:
        """Scores (B, C) of encoded images and captions on the first device."""
        if len(self.devices) == 1:
            return self.model.score(images, captions)
        scorers = replicate(PairScorer(self.model.similarity), self.devices)
        return score_in_parts(scorers, self.devices, images, captions)


def score_in_parts(
    scorers: list[nn.Module], devices: list[torch.device], images: Fragments, captions: Fragments
) -> Tensor:
    """Scores (B, C) on the first device: each scorer gets an equal share of the images and all captions."""
    shares = [Fragments(*share) for share in zip(*(x.chunk(len(scorers)) for x in images), strict=True)]
    used = list(zip(scorers, shares, devices, strict=False))  # fewer shares than devices when images are few
    inputs = [(share.to(device), captions.to(device)) for _, share, device in used]
    if devices[0].type == "cpu":
        parts = [scorer(*pair) for (scorer, _, _), pair in zip(used, inputs, strict=True)]
    else:
        parts = parallel_apply([scorer for scorer, _, _ in used], inputs, devices=[device for *_, device in used])
    return torch.cat([part.to(devices[0]) for part in parts])  # (B, C)
