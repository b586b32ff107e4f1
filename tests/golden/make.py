"""Makes `released.npz` from the full golden values: `python -m tests.golden.make FOLDER`, FOLDER with the full set.

What released models produced stays as it was: image and caption embeddings and scores of the released-layout ESL-A
checkpoint, pooled vectors of GPO, values and gradients of the loss. Weights are made smaller without changing what the
model computes by more than a millionth:

* of each row of a P_k the two largest entries stay; the others share the rest of the row's norm, below both;
* the two largest correspondence matrices are stored after their LayerNorm, as its bias, with weight and matrix 0;
* rows of BERT's embeddings that no caption uses, and its pooler, are 0;
* 18 bits of a float's fraction stay.

ESL-H has no full set: its scores are those of tests/reference.py in float64, for random kernels and contribution
degrees on the same embeddings.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch

from tests import reference

IMAGES, FRACTION = 2, 18
PARTS = ("img_enc", "txt_enc", "sim_vec")
KERNELS = "plus_encoder.encoders_1.{side}_levels.kernel_{name}_{k}.weight"


def main(source: Path, target: Path) -> None:
    golden, arrays = source, {}
    with torch.serialization.safe_globals([argparse.Namespace]):
        released = torch.load(golden / "checkpoint_tiny64_esl_a.pth", weights_only=True)
    with np.load(golden / "checkpoint_tiny64_esl_a_io.npz") as io:
        captions = io["captions"]
        arrays |= {"images": io["images"][:IMAGES], "captions": captions.astype(np.int16), "cap_lens": io["cap_lens"]}
        arrays |= {"img_emb": io["img_emb"][:IMAGES, :4], "sims": io["sims_f64"][:IMAGES]}
        arrays["cap_emb"] = io["cap_emb"][:, 0]
        embeddings = torch.from_numpy(io["img_emb"][:IMAGES]).double(), torch.from_numpy(io["cap_emb"]).double()
    for part, weights in zip(PARTS, released["model"], strict=True):
        for key, value in smaller(weights, np.unique(captions), captions.shape[1]).items():
            arrays[f"{part}/{key}"] = rounded(value.numpy()) if value.is_floating_point() else value.numpy()
    arrays |= esl_h(arrays, *embeddings)
    with np.load(golden / "golden_gpo.npz") as gpo:
        names = [name for name in gpo if not name.startswith("grad.") and name not in ("fixed_weights", "pe")]
        arrays |= {f"gpo/{name}": gpo[name] for name in names}
    with np.load(golden / "golden_loss.npz") as loss:
        arrays |= {f"loss/{name}": loss[name] for name in loss}
    np.savez_compressed(target, **{name: planes(value) for name, value in arrays.items()})


def smaller(weights: dict, used_ids: np.ndarray, positions: int) -> dict:
    """The weights of a part with less to store, computing the same."""
    weights = {key: value.clone() for key, value in weights.items()}
    for key, value in weights.items():
        if "_levels.masks_" in key:
            weights[key] = sparse(value)
        elif key.endswith("word_embeddings.weight"):
            value[np.setdiff1d(np.arange(len(value)), used_ids)] = 0
        elif key.endswith("position_embeddings.weight"):
            value[positions:] = 0
        elif "pooler" in key:
            value.zero_()
    for k in (0, 1) if "module.sims.calculator_1.lynorm_0.bias" in weights else ():
        names = [f"module.sims.calculator_1.{name}" for name in (f"masks_{k}.weight", f"lynorm_{k}.weight")]
        bias = f"module.sims.calculator_1.lynorm_{k}.bias"
        matrix, weight = (weights[name].double() for name in names)
        weights[bias] = reference.correspondence(matrix, weight, weights[bias].double()).float()
        for name in names:
            weights[name].zero_()
    return weights


def sparse(rows: torch.Tensor) -> torch.Tensor:
    """Rows of a P_k with the same two largest entries and the same norm, all other entries equal and below them."""
    rows = rows.double()
    if rows.shape[1] <= 2:
        return rows.float()
    largest = rows.topk(2, dim=1)
    rest = (rows.square().sum(1) - largest.values.square().sum(1)).sqrt() / (rows.shape[1] - 2) ** 0.5
    dense = -rest[:, None].expand_as(rows).clone()
    assert (largest.values > dense[:, :1]).all()
    return dense.scatter(1, largest.indices, largest.values).float()


def rounded(values: np.ndarray) -> np.ndarray:
    """float32 values with the lowest bits of their fraction 0."""
    unit = 1 << (23 - FRACTION)
    return ((np.ascontiguousarray(values, np.float32).view(np.uint32) + unit // 2) & ~np.uint32(unit - 1)).view(
        np.float32
    )


def esl_h(arrays: dict, images: torch.Tensor, captions: torch.Tensor) -> dict[str, np.ndarray]:
    """Random ESL-H weights beside the correspondence matrices that are there, and the reference's scores with them."""
    random = np.random.default_rng(0)
    added = {
        KERNELS.format(side=side, name=name, k=k): random.uniform(-0.7, 0.7, (4, 1, 2)).astype(np.float32)
        for side, name in (("image", "img"), ("text", "txt"))
        for k in range(1, 9)
    }
    added["sims.calculator_1.sim_eval.weight"] = random.uniform(-0.3, 0.3, (1, 9)).astype(np.float32)
    added["sims.calculator_1.temp_scale_1.weight"] = np.full((1, 1), 0.2, np.float32)
    added["sims.calculator_1.temp_scale_2.weight"] = np.full((1, 1), 1.5, np.float32)
    shared = {key.removeprefix("sim_vec/module."): value for key, value in arrays.items() if key.startswith("sim_vec/")}
    parameters = {key: torch.from_numpy(value).double() for key, value in (shared | added).items()}
    words = [caption[:length] for caption, length in zip(captions, arrays["cap_lens"].tolist(), strict=True)]
    scores = reference.esl_scores(list(images), words, parameters, "h", normalise=False)
    return {f"esl_h/{key}": value for key, value in added.items()} | {"esl_h_sims": scores.numpy()}


def planes(values: np.ndarray) -> np.ndarray:
    """float32 values as their four bytes, plane by plane: it compresses better. Other types as they are."""
    if values.dtype != np.float32:
        return values
    return np.moveaxis(np.ascontiguousarray(values)[..., None].view(np.uint8), -1, 0)  # (4, ...)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(__file__).with_name("released.npz"))
