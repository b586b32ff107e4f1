"""CLIP-based models: the released training step by step, and every script on the sample's JPEGs."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lib.checkpoint import load_model, read_checkpoint
from lib.checkpoint.released_clip import name_of
from lib.datasets.loaders import TrainBatch
from lib.encoders import openai_clip
from lib.fragments import Tokens
from lib.parallel import Runner
from lib.training.engine import Trainer
from lib.training.losses import build_loss
from lib.training.optim import build_optimizer
from lib.training.schedule import CosineSchedule
from tests.conftest import SHARED, needs_shared


def released_state(model) -> dict[str, torch.Tensor]:
    """A model's weights under their released names."""
    state = {key: value.detach() for key, value in model.state_dict().items()}
    towers = {key.partition(".")[2]: value for key, value in state.items() if not key.startswith("similarity.")}
    found = {f"clip.{name}": value for name, value in openai_clip.to_openai(towers).items()}
    heads = {key: value for key, value in state.items() if key.startswith("similarity.")}
    return found | {name_of(key, model.config).removeprefix("state_dict: "): value for key, value in heads.items()}


@needs_shared
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])
def test_eight_steps_are_those_of_the_released_code(dtype, tolerance, single_thread):
    file = np.load(SHARED / "golden" / "clip_trajectory.npz")
    model = load_model(read_checkpoint(SHARED / "golden" / "clip_tiny_esl_h.pth")).to(dtype)
    with torch.no_grad():
        model.text_encoder.logit_scale.fill_(float(file["init_logit_scale"]))
    criterion = build_loss("contrastive", model, {})
    optimizer = build_optimizer(
        model, criterion, "transformers_adamw", float(file["noclip_lr"]), weight_decay=float(file["weight_decay"]),
        pretrained_rate=float(file["clip_lr"]),
    )  # fmt: skip
    assert {group["name"]: len(group["params"]) for group in optimizer.param_groups}.keys() == {
        "head",
        "text",
        "backbone",
    }
    schedule = CosineSchedule(embedding_warmup_epochs=0, staged=True, num_epochs=1)
    trainer = Trainer(
        Runner(model, [torch.device("cpu")]), criterion, optimizer, schedule, float(file["max_grad_norm"])
    )
    model.train()
    steps = int(file["num_training_steps"])
    for step, (images, captions) in enumerate(zip(file["images"], file["captions"], strict=True)):
        ids = torch.from_numpy(captions)
        tokens = Tokens(ids, torch.full((len(ids),), ids.shape[1]))
        images = torch.from_numpy(images).to(dtype)
        with torch.no_grad():
            sims = model(images, tokens).numpy()
        expected = file["sims_f64"][step]
        assert np.abs(sims - expected).max() <= tolerance * np.abs(expected).max()
        loss, norm = trainer.step(TrainBatch(images, tokens, torch.arange(len(ids))), schedule.at(0, step, steps))
        assert loss == pytest.approx(float(file["losses_f64"][step]), rel=tolerance)
        assert norm == pytest.approx(
            float(file["grad_norms_f64"][step]), rel=tolerance if dtype == torch.float64 else 1e-4
        )
        assert float(criterion.logit_scale.detach()) == pytest.approx(float(file["logit_scales_f64"][step]), rel=tolerance)
        rates = {group["name"]: group["lr"] for group in optimizer.param_groups}
        assert [rates["text"], rates["head"]] == pytest.approx(file["lr"][step].tolist(), rel=1e-12)
        assert rates["backbone"] == rates["text"]
    state = released_state(model)
    for name, total, square in zip(file["names"], file["final_sums_f64"], file["final_sumsq_f64"], strict=True):
        weight = state[str(name)].double()
        scale = float(weight.abs().sum())
        assert float(weight.sum()) == pytest.approx(float(total), abs=tolerance * scale), name
        assert float(weight.square().sum()) == pytest.approx(float(square), rel=max(tolerance, 1e-8)), name
    for name in (name for name in file if name.startswith("final.")):
        expected = torch.from_numpy(file[name]).double()
        error = (state[name.removeprefix("final.")].double() - expected).abs().max()
        assert error <= max(tolerance, 1e-7) * expected.abs().max(), name
