"""The optimizers, their parameter groups, and what a step of each moves."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lib.model import build_model
from lib.training import optim
from lib.training.losses import HingeTriplet
from lib.training.optim import OPTIMIZERS, build_optimizer, set_learning_rates
from tests.helpers import HEADS, small_config

pytestmark = pytest.mark.usefixtures("single_thread")
LOSS = HingeTriplet()


class LearnedLoss(nn.Module):
    """A loss with a parameter of its own."""

    def __init__(self):
        super().__init__()
        self.temperature = nn.Parameter(torch.ones(3))


def optimizer_of(grid: bool, name: str, rate: float = 1e-3, similarity: str = "vse_infty", loss: nn.Module = LOSS):
    model = build_model(small_config(similarity, grid)).double()
    return model, build_optimizer(model, loss, name, rate, backbone_lr_factor=0.02)


def group_of(key: str) -> str:
    """The group that the parameter `key` of a model belongs to."""
    parts = {"text_encoder.bert.": "text", "image_encoder.backbone.": "backbone"}
    return next((name for prefix, name in parts.items() if key.startswith(prefix)), "head")


def moved(model, optimizer, gradient: float) -> dict[str, dict[str, torch.Tensor]]:
    """Take a step in which every gradient is `gradient`: by group and name, how far each parameter went down."""
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, gradient)
    optimizer.step()
    found = {"head": {}, "text": {}, "backbone": {}}
    for name, parameter in model.named_parameters():
        found[group_of(name)][name] = before[name] - parameter.detach()
    return found


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("grid", [False, True])
@pytest.mark.parametrize("similarity", HEADS)
def test_every_parameter_of_model_and_loss_is_in_exactly_one_group(similarity, grid, name):
    loss = LearnedLoss()
    model, optimizer = optimizer_of(grid, name, similarity=similarity, loss=loss)
    grouped = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == {id(p) for module in (model, loss) for p in module.parameters()}
    head = next(group for group in optimizer.param_groups if group["name"] == "head")
    assert any(parameter is loss.temperature for parameter in head["params"])


@pytest.mark.parametrize(
    ("name", "grid", "expected"),
    [
        ("adam", False, {"head": 5e-4, "text": 5e-5}),
        ("adam", True, {"head": 5e-4, "text": 5e-5, "backbone": 1e-5}),
        ("sgd", False, {"head": 5e-4, "text": 5e-4}),
        ("sgd", True, {"head": 5e-4, "text": 5e-4, "backbone": 1e-5}),
    ],
)
@pytest.mark.parametrize("similarity", HEADS)
def test_bert_and_backbone_have_their_own_rates_and_all_else_the_full_one(similarity, name, grid, expected):
    model, optimizer = optimizer_of(grid, name, 5e-4, similarity)
    groups = {group["name"]: group for group in optimizer.param_groups}
    assert list(groups) == list(expected)
    assert {name: group["lr"] for name, group in groups.items()} == pytest.approx(expected)
    assert {name: group["base_lr"] for name, group in groups.items()} == pytest.approx(expected)
    group_by_id = {id(p): group["name"] for group in groups.values() for p in group["params"]}
    for key, parameter in model.named_parameters():
        assert group_by_id[id(parameter)] == group_of(key), key  # every projection trains at the full rate


def test_a_frozen_backbone_keeps_its_place_in_the_optimizer():
    model = build_model(small_config(grid=True))
    model.image_encoder.fix_blocks(4)
    optimizer = build_optimizer(model, LOSS, "adam", 1e-3)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(model.parameters()))


@pytest.mark.parametrize("grid", [False, True])
def test_adam_is_adamw_with_weight_decay_on_everything(grid):
    model, optimizer = optimizer_of(grid, "adam")
    assert type(optimizer) is torch.optim.AdamW
    assert [group["weight_decay"] for group in optimizer.param_groups] == [1e-4] * (3 if grid else 2)


def test_sgd_on_regions_has_momentum_without_nesterov_at_the_full_rate_for_bert_too():
    model, optimizer = optimizer_of(False, "sgd")
    assert type(optimizer) is torch.optim.SGD
    for velocity in (1.0, 1.9, 2.71):  # 1 + 0.9 times the velocity before
        steps = moved(model, optimizer, 1.0)
        assert steps["head"] and steps["text"] and not steps["backbone"]
        for name, step in (steps["head"] | steps["text"]).items():
            torch.testing.assert_close(step, torch.full_like(step, 1e-3 * velocity), rtol=0, atol=1e-12, msg=name)


def test_sgd_on_raw_images_has_nesterovs_momentum_at_the_full_rate_for_bert_too():
    model, optimizer = optimizer_of(True, "sgd")
    for velocity in (1.9, 2.71):  # 1 + 0.9 times the velocity that holds after this step
        steps = moved(model, optimizer, 1.0)
        for name, step in (steps["head"] | steps["text"]).items():
            torch.testing.assert_close(step, torch.full_like(step, 1e-3 * velocity), rtol=0, atol=1e-12, msg=name)
    assert all(group["momentum"] == 0.9 and group["nesterov"] for group in optimizer.param_groups)


@pytest.mark.parametrize("grid", [False, True])
def test_sgd_decays_the_weights_of_the_backbone_alone(grid):
    model, optimizer = optimizer_of(grid, "sgd", rate=1.0)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    steps = moved(model, optimizer, 0.0)
    for name, step in (steps["head"] | steps["text"]).items():
        assert not step.any(), name
    assert bool(steps["backbone"]) == grid
    for name, step in steps["backbone"].items():  # Nesterov takes the first velocity 1.9 times
        torch.testing.assert_close(step, 1.9 * 0.02 * 1e-4 * before[name], rtol=1e-6, atol=1e-15, msg=name)
    assert not grid or any(step.any() for step in steps["backbone"].values())


def test_a_new_row_is_an_optimizer_by_its_name(monkeypatch):
    monkeypatch.setitem(optim.OPTIMIZERS, "slow", lambda groups: torch.optim.SGD(groups, momentum=0.5))
    _, optimizer = optimizer_of(False, "slow")
    assert [(group["name"], group["momentum"]) for group in optimizer.param_groups] == [("head", 0.5), ("text", 0.5)]
    assert all(group["weight_decay"] == 1e-4 for group in optimizer.param_groups)  # which the groups bring


@pytest.mark.parametrize(
    ("name", "decays"),
    [("adam", {"head": 0.03, "text": 0.03, "backbone": 0.03}), ("sgd", {"head": 0, "text": 0, "backbone": 0.03})],
)
def test_another_weight_decay_is_that_of_the_groups_that_decay(name, decays):
    optimizer = build_optimizer(build_model(small_config("vse_infty", True)), LOSS, name, 1e-3, weight_decay=0.03)
    assert {group["name"]: group["weight_decay"] for group in optimizer.param_groups} == decays


@pytest.mark.parametrize(("name", "text"), [("adam", 1e-4), ("sgd", 1e-3)])
def test_a_factor_is_taken_of_each_groups_own_rate_and_not_of_the_factor_before(name, text):
    _, optimizer = optimizer_of(True, name)
    for factor in (1, 0.1, 0.1, 1, 0.1):
        set_learning_rates(optimizer, factor)
        rates = [group["lr"] for group in optimizer.param_groups]
        assert rates == pytest.approx([1e-3 * factor, text * factor, 2e-5 * factor])


def test_transformers_adamw_follows_its_rule_with_a_count_of_steps_for_each_weight():
    weights = [nn.Parameter(torch.randn(3).double()) for _ in range(3)]
    optimizer = OPTIMIZERS["transformers_adamw"]([{"params": weights, "lr": 0.01, "weight_decay": 0.2}])
    expected = [weight.detach().clone() for weight in weights]
    moments = [[torch.zeros(3).double(), torch.zeros(3).double(), 0] for _ in weights]
    for step in range(5):
        for place, weight in enumerate(weights):
            weight.grad = torch.randn(3).double() * 1e-6 if place == 0 or (place == 1 and step > 1) else None
            if weight.grad is not None:  # the eps of 1e-6 shows: gradients are as small
                m, v, n = moments[place]
                m, v, n = 0.9 * m + 0.1 * weight.grad, 0.999 * v + 0.001 * weight.grad**2, n + 1
                moments[place] = m, v, n
                rate = 0.01 * (1 - 0.999**n) ** 0.5 / (1 - 0.9**n)
                expected[place] = (expected[place] - rate * m / (v.sqrt() + 1e-6)) * (1 - 0.01 * 0.2)
        optimizer.step()
    for weight, value in zip(weights, expected, strict=True):
        assert torch.allclose(weight.detach(), value, rtol=1e-12)
    assert weights[2] not in optimizer.state


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_rate_for_pretrained_parts_takes_the_place_of_their_shares(name):
    model = build_model(small_config("vse_infty", grid=True))
    optimizer = build_optimizer(model, LOSS, name, 1e-3, pretrained_rate=1e-6)
    rates = {group["name"]: (group["lr"], group["base_lr"]) for group in optimizer.param_groups}
    assert rates == {"head": (1e-3, 1e-3), "text": (1e-6, 1e-6), "backbone": (1e-6, 1e-6)}


def test_what_a_loss_does_after_a_step_follows_the_optimizers():
    class Counting(LearnedLoss):
        seen = ()

        def after_step(self):
            self.seen = (*self.seen, float(self.temperature[0].detach()))

    loss = Counting()
    _, optimizer = optimizer_of(False, "adam", loss=loss)
    loss.temperature.grad = torch.ones(3)
    optimizer.step()
    assert loss.seen == (float(loss.temperature[0].detach()),) != (1.0,)
