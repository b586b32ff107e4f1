"""lib.encoders.resnet: the Caffe topology against a plain computation, and what altering leaves alone."""

from __future__ import annotations

import functools

import pytest
import torch
from torchvision.models import resnet101

from lib.encoders.resnet import caffe_style, tiny_resnet

pytestmark = pytest.mark.usefixtures("single_thread")


@functools.cache
def _caffe_resnet101():
    """Caffe's ResNet-101 without memory for its weights, built once and only read."""
    with torch.device("meta"):
        return caffe_style(resnet101())


def _bottleneck(block, x, stride):
    """A Caffe bottleneck in eval mode, spelled out: the stride sits in the first 1×1 convolution."""
    conv, norm = torch.nn.functional.conv2d, torch.nn.functional.batch_norm

    def bn(x, layer):
        return norm(x, layer.running_mean, layer.running_var, layer.weight, layer.bias, eps=1e-5)

    y = bn(conv(x, block.conv1.weight, stride=stride), block.bn1).relu()
    y = bn(conv(y, block.conv2.weight, padding=1), block.bn2).relu()
    y = bn(conv(y, block.conv3.weight), block.bn3)
    if block.downsample is not None:
        x = bn(conv(x, block.downsample[0].weight, stride=stride), block.downsample[1])
    return (y + x).relu()


@torch.no_grad()
def test_caffe_style_computes_what_caffe_computes():
    resnet = caffe_style(tiny_resnet()).eval()
    images = torch.randn(2, 3, 61, 64)
    x = torch.nn.functional.conv2d(images, resnet.conv1.weight, stride=2, padding=3)
    x = resnet.bn1(x).relu()
    # Without padding, in ceil mode: the last window hangs over the border.
    x = torch.nn.functional.max_pool2d(torch.nn.functional.pad(x, (0, 1, 0, 1), value=-torch.inf), 3, 2)
    for layer, stride in (("layer1", 1), ("layer2", 2), ("layer3", 2), ("layer4", 2)):
        for index, block in enumerate(getattr(resnet, layer)):
            x = _bottleneck(block, x, stride if index == 0 else 1)
    own = resnet.maxpool(resnet.relu(resnet.bn1(resnet.conv1(images))))
    own = resnet.layer4(resnet.layer3(resnet.layer2(resnet.layer1(own))))
    torch.testing.assert_close(own, x)


def test_caffe_style_moves_every_stride_of_resnet101_to_the_first_convolution():
    resnet = _caffe_resnet101()
    blocks = [block for layer in (resnet.layer1, resnet.layer2, resnet.layer3, resnet.layer4) for block in layer]
    assert len(blocks) == 33
    assert [block.conv1.stride for block in blocks if block.conv1.stride != (1, 1)] == [(2, 2)] * 3
    assert all(block.conv2.stride == (1, 1) for block in blocks)


def test_caffe_style_changes_no_key_and_no_shape():
    with torch.device("meta"):
        before = {key: value.shape for key, value in resnet101().state_dict().items()}
    after = {key: value.shape for key, value in _caffe_resnet101().state_dict().items()}
    assert before == after


def test_caffe_style_applied_twice_is_caffe_style():
    resnet = caffe_style(caffe_style(tiny_resnet()))
    assert resnet.layer2[0].conv1.stride == (2, 2)
    assert resnet.layer2[0].conv2.stride == (1, 1)


@pytest.mark.parametrize(("side", "cells"), [(224, 7), (256, 8), (512, 16), (64, 2)])
def test_feature_map_side_is_the_image_side_over_32(side, cells):
    resnet = _caffe_resnet101()
    x = resnet.maxpool(resnet.conv1(torch.empty(1, 3, side, side, device="meta")))
    x = resnet.layer4(resnet.layer3(resnet.layer2(resnet.layer1(x))))
    assert x.shape == (1, 2048, cells, cells)
