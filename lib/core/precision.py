"""The precision of a run: `float32`; `tf32`, products of a GPU in tf32; `bf16`, encoders in bfloat16 as well.

Norms, softmax, loss and the optimizer's state are float32 in each. In evaluation bf16 also multiplies the prepared
fragments of all pairs in bfloat16.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

from lib.core.config import PRECISIONS
from lib.core.errors import InputError
from lib.core.fragments import Fragments, Prepared


def set_precision(precision: str) -> None:
    """Sets the precision of this process's float32 products on GPUs. Raises InputError if the name is unknown."""
    if precision not in PRECISIONS:
        raise InputError(f"--precision is '{precision}', expected one of {', '.join(PRECISIONS)}")
    torch.backends.cuda.matmul.allow_tf32 = precision != "float32"
    torch.backends.cudnn.allow_tf32 = precision != "float32"


def encoding(precision: str, device: torch.device) -> AbstractContextManager:
    """The autocast context of encoders, one per thread."""
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()


def at_least_float32(encoded: Fragments) -> Fragments:
    """Encoded fragments as they leave an encoder, in float32 or float64."""
    features = encoded.features
    return Fragments(features.to(torch.promote_types(features.dtype, torch.float32)), encoded.real)


def for_product(prepared: Prepared, precision: str) -> Prepared:
    """Prepared items in the dtype of evaluation's products."""
    return prepared.to(torch.bfloat16) if precision == "bf16" else prepared
