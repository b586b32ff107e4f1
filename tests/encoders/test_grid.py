"""The grid encoder: cells of a feature map, dropped while training, and the input that each backbone was trained on."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from lib.core.errors import InputError
from lib.encoders import IMAGE_ENCODERS, backbones
from lib.encoders.backbones import SOURCES, build_backbone
from lib.encoders.grid import GridEncoder

pytestmark = pytest.mark.usefixtures("single_thread")

GRID = IMAGE_ENCODERS["grid"]


class Pool(nn.Module):
    def forward(self, images):
        return nn.functional.avg_pool2d(images, 4)


def test_grid_cells_are_row_by_row_and_all_there_in_evaluation():
    encoder = GridEncoder(Pool(), 3, 6).eval()
    images = torch.randn(2, 3, 8, 12)
    fragments = encoder(images)
    assert fragments.features.shape == (2, 6, 6) and fragments.mask.all()
    torch.testing.assert_close(fragments.features[1, 4], encoder.fc(Pool()(images)[1, :, 1, 1]))


def test_grid_cells_are_dropped_as_often_as_the_paper_says():
    encoder = GridEncoder(Pool(), 3, 6).train()
    torch.manual_seed(3)
    kept = encoder.kept_cells(4000, 64)
    untouched = kept.all(1).mean()
    # P(u <= 0.2) plus the chance that no cell of a drawing image falls; mean share: integral of 0.2 u from 0.2 to 1
    u = torch.linspace(0.2, 1, 10001, dtype=torch.float64)
    assert abs(untouched - (0.2 + float(((1 - 0.2 * u) ** 64).mean() * 0.8))) < 0.02
    assert abs((~kept).mean() - 0.2 * (1 - 0.2**2) / 2) < 0.003


def test_an_image_that_would_lose_every_cell_keeps_them():
    encoder = GridEncoder(Pool(), 3, 6).train()
    assert encoder.kept_cells(4000, 1).all()
    pairs = encoder.kept_cells(4000, 2)
    assert pairs.any(1).all() and not pairs.all()


def test_dropping_a_cell_hides_it_and_changes_no_other():
    encoder, images = GridEncoder(Pool(), 3, 6), torch.randn(40, 3, 8, 8)
    training, evaluation = encoder.train()(images), encoder.eval()(images)
    assert not training.mask.all()
    assert torch.equal(training.features[training.mask], evaluation.features[training.mask])


def test_feature_maps_are_projected_in_the_weights_precision():
    encoder, images = GridEncoder(Pool(), 3, 6).eval(), torch.randn(2, 3, 8, 8)
    expected = encoder(images).features
    encoder.fc.double()
    assert encoder(images).features.dtype == torch.float64
    torch.testing.assert_close(encoder(images).features.float(), expected)


def test_fixed_blocks_are_the_backbones_alone_and_so_are_the_pretrained_parameters():
    encoder = GRID.make(8, backbone_source="tiny")
    everything = dict(encoder.named_parameters())
    pretrained = {name for name, p in everything.items() if any(p is one for one in encoder.pretrained_parameters())}
    assert pretrained == everything.keys() - {"fc.weight", "fc.bias"}
    encoder.fix_blocks(4)
    assert {name for name, p in everything.items() if p.requires_grad} == {"fc.weight", "fc.bias"}
    encoder.fix_blocks(3)
    assert {name.split(".")[1] for name in pretrained if everything[name].requires_grad} == {"layer4"}


# --- Weights ----------------------------------------------------------------------------------------------------------


def test_weights_are_read_where_the_machines_paths_are_given_and_random_else(tmp_path, monkeypatch):
    monkeypatch.setitem(backbones._NETWORKS, "wsl", backbones._NETWORKS["tiny"])
    trained = build_backbone("tiny")
    torch.save(trained.state_dict(), tmp_path / "weights.pth")
    loaded = GRID.make(8, {"backbone_path": tmp_path / "weights.pth"}, backbone_source="wsl").backbone
    assert all(torch.equal(value, trained.state_dict()[key]) for key, value in loaded.state_dict().items())
    assert not torch.equal(GRID.make(8, backbone_source="wsl").backbone.conv1.weight, trained.conv1.weight)


def test_the_detector_without_a_path_to_its_weights_asks_for_it(monkeypatch):
    monkeypatch.setitem(backbones._NETWORKS, "detector", backbones._NETWORKS["tiny"])
    with pytest.raises(InputError, match="no weights given; name them with --backbone_path"):
        GRID.make(8, {})


# --- Input ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", SOURCES)
def test_each_backbone_gets_the_pixels_it_was_trained_on(source):
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    if source == "detector":
        expected = image[:, :, ::-1] - np.array([102.9801, 115.9465, 122.7717])
    else:
        expected = (image / 255 - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])
    pixels = GRID.transform({"backbone_source": source, "input_scale_factor": 0.25})(image, None)
    np.testing.assert_allclose(pixels.permute(1, 2, 0), expected, rtol=0, atol=1e-4)


def test_the_side_of_the_input_follows_the_scale_factor_rounded_down():
    image = np.zeros((40, 30, 3), dtype=np.uint8)
    for factor, side in ((1.0, 256), (0.9, 230), (1.1, 281)):
        transform = GRID.transform({"backbone_source": "detector", "input_scale_factor": factor})
        assert transform(image, None).shape == (3, side, side)
        assert transform(image, np.random.default_rng(0)).shape == (3, side, side)


@pytest.mark.parametrize("factor", [0, 0.0, 0.003, None, "1"])
def test_a_scale_factor_that_leaves_no_pixel_is_refused_with_its_flag(factor):
    with pytest.raises(InputError, match="--input_scale_factor is .*expected a finite number from 0.00390625 to 64"):
        GRID.make(8, backbone_source="tiny", input_scale_factor=factor)
