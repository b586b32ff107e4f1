"""ResNet-101 as Caffe has it, made by altering torchvision's network, and a tiny network of the same topology.

The bottom-up attention detector (Anderson et al., CVPR 2018) comes from Caffe: its stages halve the resolution in their
first 1×1 convolution, where torchvision does so in the 3×3, and its max-pool has no padding.
"""

from __future__ import annotations

from torch import nn
from torchvision.models.resnet import Bottleneck, ResNet


def caffe_style(resnet: ResNet) -> ResNet:
    """Give torchvision's bottleneck ResNet the topology of Caffe's, in place; no weight changes its name or shape.

    Feature maps keep the size ceil(side / 32) for sides divisible by 4 (released VSE∞ code).
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
