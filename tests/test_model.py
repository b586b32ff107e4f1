"""MatchingModel as a whole: built from a configuration, and blind to padding and to the rest of the batch."""

from __future__ import annotations

import json
import os
import shutil

import pytest
import torch

from lib.errors import InputError
from lib.fragments import Fragments
from lib.model import bert_values, build_model, load_bert, load_bert_config
from lib.training.losses import hinge_triplet_loss
from tests.helpers import BERT, HEADS, small_batch, small_config

pytestmark = pytest.mark.usefixtures("single_thread")


def double(config):
    """The model of a configuration in float64, in training mode with dropout off."""
    return build_model(config).double().train()


def batch(grid: bool = False) -> tuple:
    images, token_ids = small_batch(grid)
    return (images.double() if grid else images.to(torch.float64)), token_ids


def outcome(model, images, token_ids, keep=slice(None)) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Scores of the pairs in `keep`, and the gradients of their loss."""
    model.zero_grad()
    scores = model(images, token_ids)[:, keep]
    weights = torch.linspace(-1, 1, scores.numel(), dtype=scores.dtype).reshape(scores.shape)
    (scores * weights).sum().backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return scores.detach(), found


def assert_same(found, expected, tolerance: float = 1e-6) -> None:
    assert (found[0] - expected[0]).abs().max() <= tolerance
    assert found[1].keys() == expected[1].keys()
    largest = max(gradient.abs().max() for gradient in expected[1].values())
    for name, gradient in expected[1].items():
        assert (found[1][name] - gradient).abs().max() <= tolerance * max(gradient.abs().max(), 1e-3 * largest), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("similarity", HEADS)
def test_padding_words_and_regions_change_no_score_and_no_gradient(similarity, dtype):
    model = build_model(small_config(similarity, dropout=0.0)).to(dtype).train()
    images, token_ids = small_batch()
    images = images.to(dtype)
    expected = outcome(model, images, token_ids)
    features = torch.cat([images.features, torch.randn(7, 3, 16, dtype=dtype)], 1)
    mask = torch.cat([images.mask, torch.zeros(7, 3, dtype=torch.bool)], 1)
    padded = torch.cat([token_ids, torch.zeros(7, 4, dtype=torch.long)], 1)
    tolerance = 1e-6 if dtype == torch.float64 else 1e-4  # of gradients; scores in float32 stay within 1e-6 of theirs
    found = outcome(model, Fragments(features, mask), padded)
    assert_same(found, expected, tolerance)
    assert (found[0] - expected[0]).abs().max() <= 1e-6 * expected[0].abs().max().clamp(min=1)


@pytest.mark.parametrize("similarity", HEADS)
def test_other_captions_in_the_batch_change_no_score_and_no_gradient(similarity):
    model = double(small_config(similarity, dropout=0.0))
    images, token_ids = batch()
    longer = torch.randint(1, BERT["vocab_size"], (4, token_ids.shape[1] + 3))
    together = torch.cat([torch.nn.functional.pad(token_ids, (0, 3)), longer])
    assert_same(outcome(model, images, together, keep=slice(7)), outcome(model, images, token_ids))


@pytest.mark.parametrize("similarity", HEADS)
def test_other_images_in_the_batch_change_no_score_in_evaluation(similarity):
    model = build_model(small_config(similarity)).eval()
    images, token_ids = small_batch()
    with torch.no_grad():
        whole, some = model(images, token_ids), model(images.select(slice(3)), token_ids)
    torch.testing.assert_close(some, whole[:3], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("similarity", HEADS)
def test_zero_features_give_finite_scores_and_gradients(similarity):
    model = build_model(small_config(similarity)).train()
    images, token_ids = small_batch()
    images.features[:2] = 0
    with torch.no_grad():  # so that a zero region becomes a zero fragment
        model.image_encoder.mlp.output.weight.zero_()
        model.image_encoder.mlp.output.bias.zero_()
    loss = hinge_triplet_loss(model(images, token_ids), hardest=False)
    loss.backward()
    assert loss.isfinite() and all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("grid", [False, True])
@pytest.mark.parametrize("similarity", HEADS)
def test_the_model_scores_all_pairs_of_regions_or_raw_images_with_captions(similarity, grid):
    model = build_model(small_config(similarity, grid)).eval()
    images, token_ids = small_batch(grid)
    scores = model(images, token_ids[:5])
    assert scores.shape == (7, 5) and scores.isfinite().all()
    separately = model.score(model.image_encoder(images), model.text_encoder(token_ids[:5]))
    assert torch.equal(scores, separately)


def test_switching_off_a_norm_changes_the_scores_of_that_side_alone():
    images, token_ids = small_batch()
    scores = {}
    for switches in ((), ("no_imgnorm",), ("no_txtnorm",)):
        torch.manual_seed(1)
        model = build_model(small_config("vse_infty", **dict.fromkeys(switches, True))).eval()
        scores[switches] = model(images, token_ids).detach()
        sides = (
            model.similarity.embed_images(model.image_encoder(images)),
            model.similarity.embed_captions(model.text_encoder(token_ids)),
        )
        unit = [torch.allclose(side.norm(dim=1), torch.ones(7), atol=1e-5) for side in sides]
        assert unit == ["no_imgnorm" not in switches, "no_txtnorm" not in switches]
    assert not torch.allclose(scores[()], scores[("no_imgnorm",)])


# ---- building ----


def test_bert_fills_the_configuration_and_the_configuration_rebuilds_the_network(sample):
    model = build_model(small_config(bert={}), bert_path=sample / "bert")
    assert model.config.bert == bert_values(load_bert_config(sample / "bert"))
    rebuilt = build_model(model.config)
    assert {k: v.shape for k, v in rebuilt.state_dict().items()} == {k: v.shape for k, v in model.state_dict().items()}
    rebuilt.load_state_dict(model.state_dict())
    images, token_ids = small_batch()
    assert torch.equal(rebuilt.eval()(images, token_ids), model.eval()(images, token_ids))


def test_the_weights_of_bert_are_those_of_the_folder(sample):
    from safetensors.torch import load_file

    bert = build_model(small_config(bert={}), bert_path=sample / "bert").text_encoder.bert
    weights = load_file(sample / "bert" / "model.safetensors")
    assert weights.keys() == bert.state_dict().keys()
    assert all(torch.equal(value, weights[name]) for name, value in bert.state_dict().items())


def test_the_same_seed_builds_the_same_weights():
    first, second = ([torch.manual_seed(3), build_model(small_config())][1].state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("damage", ["nothing there", "no weights", "no configuration", "broken configuration"])
def test_a_bert_that_cannot_be_read_is_one_clear_line(sample, tmp_path, damage, capsys):
    folder = tmp_path / "bert"
    if damage != "nothing there":
        shutil.copytree(sample / "bert", folder)
    if damage == "no weights":
        os.unlink(folder / "model.safetensors")
    if damage == "no configuration":
        os.unlink(folder / "config.json")
    if damage == "broken configuration":
        (folder / "config.json").write_text(json.dumps({"model_type": "bert"})[:-3])
    capsys.readouterr()
    with pytest.raises(InputError, match=f"--bert_path {folder}") as error:
        load_bert(folder)
    assert "\n" not in str(error.value)
    assert capsys.readouterr() == ("", "")
