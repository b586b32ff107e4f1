"""The region encoder against the released model, and its blindness to dropped and padded regions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from lib.core.config import ModelConfig
from lib.core.errors import InputError
from lib.core.fragments import Fragments
from lib.encoders import IMAGE_ENCODERS
from lib.encoders.regions import RegionEncoder, projection
from lib.model import complete
from tests.conftest import SHARED, needs_shared

pytestmark = pytest.mark.usefixtures("single_thread")


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
        assert torch.equal(encoded.mask, mask)
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
    assert encoder.double()(Fragments.full(x)).features.dtype == torch.float64


def test_an_image_depends_on_its_batch_while_training_so_a_batch_is_never_split():
    encoder = RegionEncoder(8, 6).train()
    x = torch.randn(4, 3, 8)
    together, alone = encoder(Fragments.full(x)).features[:2], encoder(Fragments.full(x[:2])).features
    assert encoder.whole_batch and not torch.allclose(together, alone)


def test_a_new_projection_is_uniform_in_the_released_bounds_without_bias():
    linear, bound = projection(50, 100), (6 / 150) ** 0.5
    weight = linear.weight.detach().numpy()
    assert (linear.bias == 0).all()
    assert 0.99 * bound < abs(weight).max() <= bound
    assert abs(weight.mean()) < 0.02 * bound
    assert weight.std() == pytest.approx(bound / 3**0.5, rel=0.02)


@pytest.mark.parametrize("embed_size", [1, 0, -3])
def test_an_embedding_too_small_for_a_hidden_unit_is_refused_with_its_flag(embed_size):
    assert IMAGE_ENCODERS["regions"].make(2, img_dim=4).mlp.hidden.out_features == 1
    with pytest.raises(InputError, match=f"--embed_size is {embed_size}, expected a whole number from 2 to 65536"):
        complete(ModelConfig("vse_infty", embed_size=embed_size))


@pytest.mark.parametrize("img_dim", [0, -1, "many", None])
def test_features_without_a_size_are_refused_with_their_flag(img_dim):
    with pytest.raises(InputError, match=f"--img_dim is {img_dim}, expected a whole number from 1 to 1048576"):
        IMAGE_ENCODERS["regions"].make(8, img_dim=img_dim)
