"""Values that released models produced, in the repository: tests/golden/released.npz, made by tests/golden/make.py."""

from __future__ import annotations

import argparse
import collections
from pathlib import Path

import numpy as np
import pytest
import torch

from lib.checkpoint import load_model, read_checkpoint
from lib.core.fragments import Fragments, Tokens
from lib.core.functional import l2_normalize
from lib.distributed.runner import Runner
from lib.encoders.fields import BERT as FIELDS
from lib.similarity import HEADS
from lib.similarity.gpo import GPO
from lib.training.losses import HingeTriplet
from tests.golden.make import KERNELS, PARTS

VALUE = 1e-5  # relative to the largest value, as the released code's own float32 allows
TWO_HEADS = {"num_attention_heads": 2}


@pytest.fixture(scope="module")
def golden() -> dict[str, torch.Tensor]:
    with np.load(Path(__file__).parent / "golden" / "released.npz", allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    return {name: torch.from_numpy(whole(value)) for name, value in arrays.items()}


def whole(values: np.ndarray) -> np.ndarray:
    """float32 lies as four planes of bytes (4, ...)."""
    if values.dtype != np.uint8:
        return values
    return np.moveaxis(values, 0, -1).copy().view(np.float32).reshape(values.shape[1:])


def under(golden: dict[str, torch.Tensor], prefix: str) -> collections.OrderedDict:
    return collections.OrderedDict(
        (name.removeprefix(prefix), value) for name, value in golden.items() if name.startswith(prefix)
    )


def assert_close(found, expected, tolerance: float = VALUE) -> None:
    expected = torch.as_tensor(expected).double()
    assert (torch.as_tensor(found).detach().double() - expected).abs().max() <= tolerance * expected.abs().max()


@pytest.fixture(scope="module")
def released_file(golden, tmp_path_factory) -> Path:
    """A checkpoint as the released ESL code writes it."""
    opt = argparse.Namespace(
        embed_size=256, kernel_size=2, img_dim=256, precomp_enc_type="basic", no_imgnorm=False, no_txtnorm=False
    )
    path = tmp_path_factory.mktemp("released") / "model_best.pth"
    parts = [under(golden, f"{part}/") for part in PARTS]
    torch.save({"epoch": 3, "model": parts, "best_rsum": 123.4, "opt": opt, "Eiters": 42}, path)
    return path


@pytest.fixture(scope="module")
def model(released_file, tmp_path_factory):
    """The checkpoint's model; its BERT has two attention heads, which only a configuration can tell."""
    from transformers import BertConfig

    checkpoint = read_checkpoint(released_file)
    sizes = {name: checkpoint.config.text_options[name] for name in FIELDS} | TWO_HEADS
    folder = tmp_path_factory.mktemp("bert")
    BertConfig(**sizes).save_pretrained(folder)
    checkpoint = read_checkpoint(released_file, {"bert_path": folder})
    assert checkpoint.description == "released ESL-A, region features, BERT, embed_size 256"
    return load_model(checkpoint).eval()


@pytest.fixture(scope="module")
def encoded(golden, model) -> tuple[Fragments, Fragments]:
    runner = Runner(model, [torch.device("cpu")])
    with torch.no_grad():
        images = runner.encode_images(Fragments.full(golden["images"]))
        return images, runner.encode_captions(Tokens(golden["captions"].long(), golden["cap_lens"]))


def test_encoders_give_the_embeddings_of_the_released_checkpoint(golden, encoded):
    images, captions = encoded
    assert_close(l2_normalize(images.features)[:, :4], golden["img_emb"])
    assert_close(l2_normalize(captions.features)[:, 0], golden["cap_emb"])


@pytest.mark.parametrize("kernels", ["auto", "torch", "plain"])
def test_esl_a_gives_the_scores_of_the_released_checkpoint(golden, model, encoded, kernels):
    head = model.similarity
    head.backend = head.backend._replace(kernels=kernels)
    assert_close(head(*encoded), golden["sims"])


def test_esl_h_gives_the_scores_of_the_reference(golden, model, encoded):
    """The full set has no ESL-H scores: these are of tests/reference.py, which ESL-A's released values confirm."""
    head = HEADS["esl_h"].make(256).eval()
    state = {name: value for name, value in model.similarity.state_dict().items() if "aggregator" not in name}
    for k in range(1, 9):
        for side, name, ours in (("image", "img", "image"), ("text", "txt", "caption")):
            kernel = golden[f"esl_h/{KERNELS.format(side=side, name=name, k=k)}"]
            state[f"{ours}_aggregator.weights.{k - 1}"] = kernel
    calculator = "esl_h/sims.calculator_1."
    state["contribution.p"] = golden[f"{calculator}sim_eval.weight"][0]
    state["contribution.sigma"] = golden[f"{calculator}temp_scale_1.weight"].view(())
    state["contribution.log_sharpness"] = golden[f"{calculator}temp_scale_2.weight"].view(())
    head.load_state_dict(state)
    assert_close(head(*encoded), golden["esl_h_sims"])


def test_gpo_gives_the_pooled_vectors_and_weights_of_the_released_one(golden):
    gpo = GPO(32, 32)
    gpo.load_state_dict(under(golden, "gpo/gpo."))
    lengths = golden["gpo/lengths"].long()
    mask = torch.arange(golden["gpo/features"].shape[1]) < lengths[:, None]
    assert_close(gpo(Fragments(golden["gpo/features"], mask)), golden["gpo/pooled"])
    assert_close(gpo.pool_weights(lengths.numpy()), golden["gpo/pool_weights"][..., 0])


@pytest.mark.parametrize(("mode", "hardest"), [("sum", False), ("max", True)])
def test_the_loss_has_the_released_value_and_gradient(golden, mode, hardest):
    scores = golden["loss/scores"].clone().requires_grad_()
    loss = HingeTriplet(float(golden["loss/margin"]))(scores, hardest)
    loss.backward()
    assert_close(loss, golden[f"loss/{mode}.loss_f64"])
    assert_close(scores.grad, golden[f"loss/{mode}.grad"])


def test_the_reduced_set_stays_below_a_megabyte():
    assert (Path(__file__).parent / "golden" / "released.npz").stat().st_size < 1_000_000
