"""The region encoder and the grid encoder."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from lib.encoders.image import GridEncoder, RegionEncoder
from lib.fragments import Fragments
from tests.conftest import SHARED, needs_shared


@needs_shared
def test_region_encoder_agrees_with_the_released_model_in_eval_and_train_mode():
    golden = {
        k: torch.tensor(v) for k, v in np.load(SHARED / "golden/golden_imgenc_esl.npz").items() if v.dtype.kind in "fi"
    }
    names = {"fc.weight": "fc.weight", "fc.bias": "fc.bias"}
    for ours, theirs in (("hidden", "layers.0"), ("output", "layers.1"), ("norm", "bns.0")):
        for part in ("weight", "bias") + (
            ("running_mean", "running_var", "num_batches_tracked") if ours == "norm" else ()
        ):
            names[f"mlp.{ours}.{part}"] = f"mlp.{theirs}.{part}"
    for mode, prefix in ((False, ""), (True, "train.")):
        encoder = RegionEncoder(64, 32)
        encoder.load_state_dict({ours: golden["img_enc." + theirs] for ours, theirs in names.items()})
        encoder.train(mode)
        features = encoder(Fragments.full(golden["images"])).features
        output = nn.functional.normalize(features, dim=-1)
        expected = golden[prefix + "output"]
        assert (output - expected).abs().max() <= 1e-5 * expected.abs().max()
        (output * golden["fixed_weights"]).sum().backward()
        for ours, parameter in encoder.named_parameters():
            if mode and ours == "mlp.hidden.bias":
                continue  # its true gradient is 0 before BatchNorm: the released value is rounding noise
            expected = golden[f"{prefix}grad.img_enc.{names[ours]}"]
            assert (parameter.grad - expected).abs().max() <= 1e-4 * expected.abs().max(), ours
    for ours, buffer in encoder.named_buffers():
        expected = golden[f"train.buffer.img_enc.{names[ours]}"]
        assert (buffer - expected).abs().max() <= 1e-5 * expected.abs().max(), ours


def test_dropped_and_padded_regions_touch_nothing():
    torch.manual_seed(0)
    x = torch.randn(3, 5, 8)
    mask = torch.tensor([[True] * 5, [True, False, True, True, False], [False, True, False, False, False]])
    results = []
    for filler in (0.0, 7.0):
        torch.manual_seed(1)
        encoder = RegionEncoder(8, 6).train()
        features = x.masked_fill(~mask[..., None], filler).requires_grad_()
        encoded = encoder(Fragments(features, mask))
        encoded.features.square().sum().backward()
        assert (encoded.features[~mask] == 0).all() and (features.grad[~mask] == 0).all()
        results.append([encoded.features.detach(), *(p.grad for p in encoder.parameters()), *encoder.buffers()])
    for first, second in zip(*results, strict=True):
        assert torch.equal(first, second)
    packed = RegionEncoder(8, 6).train()
    packed.load_state_dict(
        {**encoder.state_dict(), "mlp.norm.running_mean": torch.zeros(3), "mlp.norm.running_var": torch.ones(3)}
    )
    alone = packed(Fragments.full(x[mask][None])).features[0]
    torch.testing.assert_close(alone, results[0][0][mask])


def test_half_precision_features_are_encoded_in_the_weights_precision():
    encoder = RegionEncoder(8, 6).eval()
    x = torch.randn(2, 3, 8).half()
    assert torch.equal(encoder(Fragments.full(x)).features, encoder(Fragments.full(x.float())).features)


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
    mask = encoder.cell_mask(4000, 64)
    untouched = mask.all(1).float().mean()
    # P(u <= 0.2) plus the chance that no cell of a drawing image falls; mean share: integral of 0.2 u from 0.2 to 1
    u = torch.linspace(0.2, 1, 10001, dtype=torch.float64)
    assert abs(untouched - (0.2 + float(((1 - 0.2 * u) ** 64).mean() * 0.8))) < 0.02
    assert abs((~mask).float().mean() - 0.2 * (1 - 0.2**2) / 2) < 0.003
