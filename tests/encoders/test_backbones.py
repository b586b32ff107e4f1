"""lib.encoders.backbones: shapes and trainable stages at full topology, weight files, BatchNorm, freezing."""

from __future__ import annotations

import functools
import re
import urllib.error

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision.models import resnet101

from lib.core.errors import InputError
from lib.encoders import backbones
from lib.encoders.backbones import SOURCES, Backbone, build_backbone, caffe_style, tiny_resnet
from tests.conftest import SHARED, needs_shared

pytestmark = pytest.mark.usefixtures("single_thread")

FULL = ("detector", "wsl", "imagenet_res152")
PARAMETERS = {"detector": 42_500_160, "wsl": 86_742_336, "imagenet_res152": 58_143_808}  # without the classifier
TRAINABLE = {
    4: (),
    3: ("layer4",),
    2: ("layer3", "layer4"),
    1: ("layer2", "layer3", "layer4"),
    0: ("conv1", "bn1", "layer1", "layer2", "layer3", "layer4"),
}


@functools.cache
def _meta(source: str) -> Backbone:
    """A full backbone without memory for its weights, built once; a test may fix as many of its blocks as it likes."""
    with torch.device("meta"):
        return build_backbone(source, pretrained=False)


def _tiny() -> Backbone:
    """A tiny backbone whose BatchNorm statistics are not those of a new one."""
    backbone = build_backbone("tiny")
    for module in backbone.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 2)
    return backbone


def _write_detector(backbone: Backbone, path) -> dict:
    """Save a backbone as the detector's file has it: {"base": conv1, bn1, relu, maxpool, layer1..3; "top": layer4}."""
    base = nn.Sequential(
        backbone.conv1, backbone.bn1, backbone.relu, backbone.maxpool, backbone.layer1, backbone.layer2, backbone.layer3
    )
    content = {"base": base.state_dict(), "top": nn.Sequential(backbone.layer4).state_dict()}
    torch.save(content, path)
    return content


@pytest.fixture
def tiny_networks(monkeypatch):
    """Every source has the tiny network's weights, so that files stay small; the topologies are tested elsewhere."""
    for source in FULL:
        monkeypatch.setitem(backbones._NETWORKS, source, backbones._NETWORKS["tiny"])


# --- Topology ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", FULL)
@pytest.mark.parametrize(("side", "cells"), [(224, 7), (512, 16)])
def test_feature_map_of_each_full_backbone_is_2048_channels_at_a_32nd_of_the_side(source, side, cells):
    assert _meta(source)(torch.empty(2, 3, side, side, device="meta")).shape == (2, 2048, cells, cells)


@pytest.mark.parametrize("source", FULL)
def test_number_of_weights_of_each_full_backbone(source):
    assert sum(parameter.numel() for parameter in _meta(source).parameters()) == PARAMETERS[source]


def test_only_the_detector_has_caffe_strides():
    assert _meta("detector").layer2[0].conv1.stride == (2, 2)
    assert _meta("wsl").layer2[0].conv1.stride == (1, 1)
    assert _meta("imagenet_res152").layer2[0].conv1.stride == (1, 1)
    assert _meta("detector").maxpool.padding == 0
    assert _meta("wsl").maxpool.padding == 1


def test_tiny_backbone_gives_finite_features_of_2048_channels():
    features = build_backbone("tiny")(torch.randn(2, 3, 64, 64))
    assert features.shape == (2, 2048, 2, 2)
    assert features.isfinite().all() and features.std() > 0


@needs_shared
def test_detector_has_exactly_the_weights_of_the_released_grid_model():
    released = {}
    for line in (SHARED / "golden" / "keys_vse_grid.txt").read_text(encoding="utf-8").splitlines():
        if match := re.match(r"0\timg_enc\tmodule\.backbone\.resnet\.(\S+)\t(\([^\t]*\))\t", line):
            released[match[1]] = match[2]
    own = {key: str(tuple(value.shape)) for key, value in _meta("detector").state_dict().items()}
    assert own == {key: shape for key, shape in released.items() if not key.startswith("fc.")}


# --- Trainable stages -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", FULL)
@pytest.mark.parametrize("fixed_blocks", TRAINABLE)
def test_trainable_stages_of_each_full_backbone(source, fixed_blocks):
    backbone = _meta(source)
    backbone.fix_blocks(fixed_blocks)
    trainable = {name.split(".")[0] for name, parameter in backbone.named_parameters() if parameter.requires_grad}
    frozen = {name.split(".")[0] for name, parameter in backbone.named_parameters() if not parameter.requires_grad}
    assert trainable == set(TRAINABLE[fixed_blocks])
    assert not trainable & frozen


def test_blocks_that_were_fixed_train_again_when_they_are_freed():
    backbone = _tiny()
    for count in (4, 2, 0):
        backbone.fix_blocks(count)
        trainable = {name.split(".")[0] for name, parameter in backbone.named_parameters() if parameter.requires_grad}
        assert trainable == set(TRAINABLE[count])


@pytest.mark.parametrize("fixed_blocks", TRAINABLE)
def test_gradients_reach_exactly_the_trainable_stages(fixed_blocks):
    backbone = _tiny()
    backbone.fix_blocks(fixed_blocks)
    features = backbone(torch.randn(2, 3, 64, 64))
    if fixed_blocks < 4:
        features.square().mean().backward()
    with_gradient = {
        name.split(".")[0] for name, parameter in backbone.named_parameters() if parameter.grad is not None
    }
    assert with_gradient == set(TRAINABLE[fixed_blocks])
    assert all(parameter.grad is not None for parameter in backbone.parameters() if parameter.requires_grad)


def test_frozen_stages_run_without_gradient_bookkeeping():
    backbone, seen = _tiny(), {}
    for name in ("conv1", "layer1", "layer2", "layer3", "layer4"):

        def note(module, inputs, output, name=name):
            assert output.requires_grad == torch.is_grad_enabled()
            seen[name] = output.requires_grad

        getattr(backbone, name).register_forward_hook(note)
    backbone.fix_blocks(3)
    backbone(torch.randn(1, 3, 64, 64))
    assert seen == {"conv1": False, "layer1": False, "layer2": False, "layer3": False, "layer4": True}
    backbone.fix_blocks(4)
    assert not backbone(torch.randn(1, 3, 64, 64)).requires_grad


def test_freezing_changes_no_feature():
    backbone, images = _tiny(), torch.randn(1, 3, 64, 64)
    features = []
    for fixed_blocks in TRAINABLE:
        backbone.fix_blocks(fixed_blocks)
        features.append(backbone(images).detach())
    assert all(torch.equal(features[0], other) for other in features[1:])


def test_unknown_number_of_fixed_blocks_is_refused():
    for count in (-1, 5):
        with pytest.raises(ValueError, match=f"{count} fixed blocks, expected 0 to 4"):
            build_backbone("tiny").fix_blocks(count)


# --- BatchNorm and precision ------------------------------------------------------------------------------------------


def test_batch_norm_stays_in_eval_mode_while_training():
    backbone = _tiny()
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    wrapped = nn.Sequential(backbone).train()
    assert backbone.training
    assert not any(module.training for module in backbone.modules() if isinstance(module, nn.BatchNorm2d))
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(wrapped(images)[:1], wrapped(images[:1]))  # no statistics of the batch
    assert all(torch.equal(before[key], value) for key, value in backbone.state_dict().items())


def test_a_new_backbone_has_batch_norm_in_eval_mode():
    assert not any(m.training for m in build_backbone("tiny").modules() if isinstance(m, nn.BatchNorm2d))


def test_the_feature_map_is_float32_in_lower_precision_too():
    images = torch.randn(1, 3, 64, 64)
    with torch.autocast("cpu", torch.bfloat16):
        features = _tiny()(images)
    assert features.dtype == torch.float32 and features.isfinite().all()


# --- Weight files -----------------------------------------------------------------------------------------------------


def test_detector_weights_load_from_base_and_top(tmp_path, tiny_networks):
    trained, images = _tiny(), torch.randn(1, 3, 64, 64)
    _write_detector(trained, tmp_path / "weights.pth")
    loaded = build_backbone("detector", tmp_path / "weights.pth")
    assert torch.equal(loaded(images), trained(images))


def test_full_detector_file_maps_onto_every_weight():
    backbone = _meta("detector")
    base = nn.Sequential(
        backbone.conv1, backbone.bn1, backbone.relu, backbone.maxpool, backbone.layer1, backbone.layer2, backbone.layer3
    )
    content = {"base": base.state_dict(), "top": nn.Sequential(backbone.layer4).state_dict()}
    renamed = backbones._torchvision_names(content, "detector", "file")
    assert {key: value.shape for key, value in renamed.items()} == {
        key: value.shape for key, value in backbone.state_dict().items()
    }


@pytest.mark.parametrize("source", ["wsl", "imagenet_res152"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_plain_state_dicts_load_and_their_classifier_is_ignored(tmp_path, tiny_networks, source, prefix):
    trained, images = _tiny(), torch.randn(1, 3, 64, 64)
    content = {**trained.state_dict(), "fc.weight": torch.zeros(1000, 2048), "fc.bias": torch.zeros(1000)}
    torch.save({prefix + key: value for key, value in content.items()}, tmp_path / "weights.pth")
    assert torch.equal(build_backbone(source, tmp_path / "weights.pth")(images), trained(images))


def _flat(content: dict) -> dict:
    return {f"{part}.{key}": value for part, weights in content.items() for key, value in weights.items()}


@pytest.mark.parametrize("form", ["plain", "state_dict", "model", "module", "safetensors"])
@pytest.mark.parametrize("source", ["detector", "wsl"])
def test_weights_load_whatever_they_are_wrapped_in(form, source, tmp_path, tiny_networks):
    trained, images, path = _tiny(), torch.randn(1, 3, 64, 64), tmp_path / "weights.any"
    content = _write_detector(trained, path) if source == "detector" else trained.state_dict()
    if form == "safetensors":
        save_file(_flat(content) if source == "detector" else content, path)
    else:
        flat = _flat(content) if source == "detector" and form == "module" else content
        wrapped = {"state_dict": {"state_dict": content, "epoch": 3}, "model": {"model": content, "optimizer": {}},
                   "module": {"state_dict": {f"module.{key}": value for key, value in flat.items()}}}  # fmt: skip
        torch.save(wrapped.get(form, content), path)
    assert torch.equal(build_backbone(source, path)(images), trained(images))


def test_a_key_with_and_without_module_is_refused(tmp_path, tiny_networks):
    content = _tiny().state_dict()
    torch.save(content | {"module.conv1.weight": content["conv1.weight"] + 1}, tmp_path / "weights.pth")
    with pytest.raises(InputError, match="a key twice, with and without 'module.'"):
        build_backbone("wsl", tmp_path / "weights.pth")


def test_files_without_batch_counters_load(tmp_path, tiny_networks):
    trained = _tiny()
    content = {key: value for key, value in trained.state_dict().items() if not key.endswith("num_batches_tracked")}
    torch.save(content, tmp_path / "weights.pth")
    loaded = build_backbone("wsl", tmp_path / "weights.pth")
    assert torch.equal(loaded.bn1.running_mean, trained.bn1.running_mean)


def test_missing_and_left_over_and_misshapen_keys_are_named(tmp_path, tiny_networks):
    path = tmp_path / "weights.pth"
    content = _write_detector(_tiny(), path)
    del content["base"]["5.0.conv1.weight"]
    content["base"]["7.weight"] = torch.zeros(1)
    content["top"]["0.0.bn1.bias"] = torch.zeros(3)
    torch.save(content, path)
    with pytest.raises(InputError) as error:
        build_backbone("detector", path)
    for part in (
        f"{path}: not the weights of backbone_source detector: ",
        "1 key missing (layer2.0.conv1.weight)",
        "1 key left over (base.7.weight)",
        "1 key of another shape (layer4.0.bn1.bias (3,), expected (",
    ):
        assert part in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_of_another_backbone_is_refused(tmp_path, tiny_networks):
    path = tmp_path / "weights.pth"
    _write_detector(_tiny(), path)
    with pytest.raises(InputError, match="plain torchvision state dict.*found keys base, top"):
        build_backbone("wsl", path)
    torch.save(_tiny().state_dict(), path)
    with pytest.raises(InputError, match='under "base" and "top".*found keys conv1.weight'):
        build_backbone("detector", path)
    torch.save(torch.zeros(3), path)
    with pytest.raises(InputError, match="holds a Tensor, expected a state dict"):
        build_backbone("imagenet_res152", path)


class _Unpickled:
    def __reduce__(self):
        return print, ("this must not run",)


def test_a_weight_file_cannot_run_code(tmp_path, tiny_networks, capsys):
    torch.save({"base": _Unpickled(), "top": {}}, tmp_path / "weights.pth")
    with pytest.raises(InputError, match="weights.pth: refused, .*could run code"):
        build_backbone("detector", tmp_path / "weights.pth")
    assert "must not run" not in capsys.readouterr().out


def test_a_broken_or_absent_weight_file_is_named(tmp_path, tiny_networks):
    (tmp_path / "weights.pth").write_bytes(b"not a checkpoint")
    with pytest.raises(InputError, match="weights.pth: is not a PyTorch file"):
        build_backbone("detector", tmp_path / "weights.pth")
    with pytest.raises(InputError, match="absent.pth: no such file"):
        build_backbone("detector", tmp_path / "absent.pth")


def test_detector_without_a_file_asks_for_backbone_path(tiny_networks):
    with pytest.raises(InputError, match="--backbone_path"):
        build_backbone("detector")


@pytest.mark.parametrize("source", ["wsl", "imagenet_res152"])
def test_no_network_is_one_line_that_names_backbone_path(tiny_networks, monkeypatch, source):
    def no_network(*args, **kwargs):
        raise urllib.error.URLError("Temporary failure in name resolution")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", no_network)
    with pytest.raises(InputError, match="could not be downloaded.*--backbone_path") as error:
        build_backbone(source)
    assert "\n" not in str(error.value)


def test_downloads_go_through_the_hub_with_hash_check_and_without_free_unpickling(tiny_networks, monkeypatch):
    calls = {}

    def hub(url, **options):
        calls[url] = options
        return _tiny().state_dict()

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", hub)
    build_backbone("wsl")
    build_backbone("imagenet_res152")
    assert [url.rsplit("/", 1)[1] for url in calls] == ["ig_resnext101_32x8-c38310e5.pth", "resnet152-394f9c45.pth"]
    assert all(options["check_hash"] and options["weights_only"] for options in calls.values())


def test_pretrained_false_reads_no_file(tiny_networks):
    backbone = build_backbone("detector", "absent.pth", pretrained=False)
    assert all(parameter.requires_grad for parameter in backbone.parameters())


def test_unknown_source_is_an_input_error_that_lists_the_known_ones():
    with pytest.raises(InputError, match="detector, wsl, imagenet_res152, tiny"):
        build_backbone("vgg")
    assert SOURCES == ("detector", "wsl", "imagenet_res152", "tiny")


# --- Caffe's topology -------------------------------------------------------------------------------------------------


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
