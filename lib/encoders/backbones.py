"""Backbones of the grid encoder: ResNets up to their last stage, where their weights come from, and which stages train.

Letters: B images, H and W side lengths in pixels or cells.
"""

from __future__ import annotations

import urllib.error
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.models import ResNet152_Weights, resnet101, resnet152, resnext101_32x8d
from torchvision.models.resnet import Bottleneck, ResNet

from lib.core.errors import InputError, listed
from lib.encoders import SOURCES
from lib.encoders.stages import Stages, fix_stages
from lib.files.pytorch import read_file
from lib.files.weights import load_strictly, state_dict_of

CHANNELS = 2048  # of every backbone's feature map


def caffe_style(resnet: ResNet) -> ResNet:
    """Give torchvision's bottleneck ResNet the topology of Caffe's, in place; no weight changes its name or shape.

    The stages of Caffe's halve the resolution in their first 1×1 convolution, where torchvision's do so in the 3×3, and
    its max-pool has no padding. Feature maps have ceil(side / 32) cells a side where 4 divides it (released VSE∞ code).
    """
    resnet.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=0, ceil_mode=True)
    for block in resnet.modules():
        if isinstance(block, Bottleneck):
            block.conv1.stride = (block.stride, block.stride)
            block.conv2.stride = (1, 1)
    return resnet


def tiny_resnet() -> ResNet:
    """One narrow bottleneck per stage with random weights: 2048 output channels at a small part of ResNet-101's cost.

    For tests and demonstrations; it has learned nothing.
    """
    return ResNet(Bottleneck, [1, 1, 1, 1], width_per_group=4)


_NETWORKS = {
    "detector": lambda: caffe_style(resnet101()),  # bottom-up attention (BUTD), Anderson et al., CVPR 2018
    "wsl": resnext101_32x8d,  # Instagram hashtags, Mahajan et al., ECCV 2018
    "imagenet_res152": resnet152,
    "tiny": lambda: caffe_style(tiny_resnet()),  # random weights, for tests and demonstrations alone
}
_URLS = {
    "wsl": "https://download.pytorch.org/models/ig_resnext101_32x8-c38310e5.pth",
    "imagenet_res152": ResNet152_Weights.IMAGENET1K_V1.url,
}

# The detector's file holds two state dicts, numbered by the position of each module (2 and 3 are ReLU and max-pool).
_DETECTOR_NAMES = {
    "base": {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3"},
    "top": {"0": "layer4"},
}


class Backbone(nn.Module):
    """A ResNet without pooling and classifier: images (B, 3, H, W) → features (B, 2048, H/32, W/32), float32 at least.

    Parameters keep torchvision's names. BatchNorm always stays in eval mode.
    """

    def __init__(self, resnet: ResNet):
        super().__init__()
        self.conv1, self.bn1, self.relu, self.maxpool = resnet.conv1, resnet.bn1, resnet.relu, resnet.maxpool
        self.layer1, self.layer2, self.layer3, self.layer4 = resnet.layer1, resnet.layer2, resnet.layer3, resnet.layer4
        self.fix_blocks(0)
        self.train(self.training)

    @property
    def stages(self) -> Stages:
        """The five stages in order: the stem, then layer1 to layer4."""
        stem = [self.conv1, self.bn1, self.relu, self.maxpool]
        return [stem, [self.layer1], [self.layer2], [self.layer3], [self.layer4]]

    def fix_blocks(self, count: int) -> None:
        """Freeze the stem and the first `count` blocks, which then run without gradient bookkeeping."""
        self.first_trainable = fix_stages(self.stages, count)

    def forward(self, images: Tensor) -> Tensor:
        if images.is_cuda:
            images = images.contiguous(memory_format=torch.channels_last)
        with torch.no_grad():
            x = self._run(self.stages[: self.first_trainable], images)
        x = self._run(self.stages[self.first_trainable :], x)  # (B, 2048, H/32, W/32)
        return x.to(torch.promote_types(x.dtype, torch.float32))

    @staticmethod
    def _run(stages: Stages, x: Tensor) -> Tensor:
        for stage in stages:
            for module in stage:
                x = module(x)
        return x

    def train(self, mode: bool = True) -> Backbone:
        """Switch the mode of everything but BatchNorm, which keeps its running statistics (released VSE∞ code)."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self

    def _apply(self, fn, recurse: bool = True) -> Backbone:
        """What `.to`, `.cuda` and `.half` call: on a GPU the convolution weights lie channels-last, as the images
        do."""
        super()._apply(fn, recurse)
        if self.conv1.weight.is_cuda:
            super()._apply(lambda t: t.contiguous(memory_format=torch.channels_last) if t.dim() == 4 else t, recurse)
        return self


def build_backbone(source: str, backbone_path: str | Path | None = None, pretrained: bool = True) -> Backbone:
    """Build the backbone `source` (one of SOURCES) with its published weights, every stage trainable.

    `backbone_path` names a local weight file, of PyTorch or safetensors: {"base", "top"} of state dicts (or keys that
    begin so) for the detector, which has no default; a torchvision state dict for the others, which otherwise download
    theirs. `pretrained=False` leaves the weights random, for a checkpoint to fill in. "tiny" always has random weights.
    Raises InputError for a missing, wrong or incomplete file.
    """
    if source not in _NETWORKS:
        raise InputError(f"backbone_source {source!r}: expected one of {', '.join(SOURCES)}")
    backbone = Backbone(_NETWORKS[source]())
    if not pretrained or source == "tiny":
        return backbone
    if backbone_path:
        origin, content = str(backbone_path), _read(backbone_path, source)
    elif source == "detector":
        raise InputError(
            "backbone_source detector: no weights given; name them with --backbone_path "
            "(usually <root>/weights/original_updown_backbone.pth)"
        )
    else:
        origin, content = _URLS[source], _download(_URLS[source], source)
    weights = _torchvision_names(content, source, origin)
    # The batch counters are unused in eval mode, and files of old PyTorch versions lack them.
    where = f"{origin}: not the weights of backbone_source {source}"
    load_strictly(backbone, weights, where, may_lack=lambda key: key.endswith("num_batches_tracked"))
    return backbone


def _read(path: str | Path, source: str):
    try:
        return read_file(path)
    except InputError as error:
        raise InputError(f"{error}; --backbone_path names the file with the weights of {source}") from None


def _download(url: str, source: str):
    try:
        return torch.hub.load_state_dict_from_url(url, map_location="cpu", check_hash=True, weights_only=True)
    except (urllib.error.URLError, OSError, RuntimeError) as error:
        reason = str(error).strip().split("\n")[0]
        raise InputError(
            f"backbone_source {source}: {url} could not be downloaded ({reason}); "
            "download it on a machine with network and name the file with --backbone_path"
        ) from None


def _torchvision_names(content, source: str, origin: str) -> dict[str, Tensor]:
    """Rename the content of a weight file to torchvision's names, without the classifier and `module.` prefixes."""
    weights = state_dict_of(content, origin)
    for part in _DETECTOR_NAMES:
        if isinstance(inside := weights.pop(part, None), Mapping):
            weights |= {f"{part}.{key}": value for key, value in state_dict_of(inside, origin).items()}
    is_detector = {key.partition(".")[0] for key in weights} == set(_DETECTOR_NAMES)
    if is_detector != (source == "detector"):
        detectors, others = 'two state dicts under "base" and "top"', "a plain torchvision state dict"
        expected = detectors if source == "detector" else others
        found = "base, top" if is_detector else listed(list(weights)) or "none"
        raise InputError(
            f"{origin}: expected {expected} for backbone_source {source}, found keys {found}; "
            "name the right file with --backbone_path"
        )
    if is_detector:
        return {_from_detector(key): value for key, value in weights.items()}
    return {key: value for key, value in weights.items() if key not in ("fc.weight", "fc.bias")}


def _from_detector(key: str) -> str:
    part, number, rest = (key.split(".", 2) + ["", ""])[:3]
    name = _DETECTOR_NAMES[part].get(number)
    return f"{name}.{rest}" if name else key
