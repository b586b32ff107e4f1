"""What each precision means for products of a GPU, for encoders and for evaluation."""

from __future__ import annotations

import pytest
import torch

from lib.core.errors import InputError
from lib.core.fragments import Fragments
from lib.core.precision import PRECISIONS, at_least_float32, encoding, for_product, set_precision

CPU = torch.device("cpu")


@pytest.fixture
def restored():
    """The settings of this process as they were."""
    backends = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [backend.allow_tf32 for backend in backends]
    yield
    for backend, allowed in zip(backends, before, strict=True):
        backend.allow_tf32 = allowed


@pytest.mark.parametrize("before", PRECISIONS)
@pytest.mark.parametrize(("precision", "allowed"), [("float32", False), ("tf32", True), ("bf16", True)])
def test_float32_means_float32_on_a_gpu_and_the_others_allow_tf32(restored, precision, allowed, before):
    set_precision(before)
    set_precision(precision)
    assert torch.backends.cuda.matmul.allow_tf32 is torch.backends.cudnn.allow_tf32 is allowed


@pytest.mark.parametrize("name", ["fp8", "", "Float32"])
def test_an_unknown_precision_is_refused_and_changes_nothing(restored, name):
    set_precision("tf32")
    with pytest.raises(InputError, match=f"--precision is '{name}', expected one of float32, tf32, bf16"):
        set_precision(name)
    assert torch.backends.cuda.matmul.allow_tf32 is True


@pytest.mark.parametrize("precision", PRECISIONS)
def test_encoders_run_in_bfloat16_in_bf16_alone(precision):
    x = torch.ones(2, 3)
    with encoding(precision, CPU):
        assert (x @ x.T).dtype == (torch.bfloat16 if precision == "bf16" else torch.float32)
        assert x.norm().dtype == torch.float32
    assert (x @ x.T).dtype == torch.float32


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [(torch.bfloat16, torch.float32), (torch.float32, torch.float32), (torch.float64, torch.float64)],
)
def test_encoded_fragments_leave_an_encoder_in_float32_at_least(dtype, expected):
    encoded = Fragments.full(torch.randn(2, 3, 4).to(dtype))
    found = at_least_float32(encoded)
    assert found.features.dtype == expected and found.real is encoded.real
    assert torch.equal(found.features, encoded.features.to(expected))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_evaluation_multiplies_in_bfloat16_in_bf16_alone(precision):
    prepared = Fragments.full(torch.randn(2, 3, 4))
    found = for_product(prepared, precision)
    if precision == "bf16":
        assert torch.equal(found.features, prepared.features.bfloat16()) and torch.equal(found.mask, prepared.mask)
    else:
        assert found is prepared
