"""The BERT encoder: lengths alone tell what is padding, and neither padding nor buckets change a result; and what is
read from a BERT folder."""

from __future__ import annotations

import json
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertModel

from lib.core.errors import InputError
from lib.core.fragments import Fragments, Tokens
from lib.encoders import TEXT_ENCODERS, bert
from lib.encoders.bert import (
    BertEncoder,
    bert_values,
    load_bert,
    load_bert_config,
    local_bert_values,
    read_bert_options,
)
from lib.encoders.fields import BERT as FIELDS
from lib.encoders.fields import DROPOUT
from tests.helpers import BERT

pytestmark = pytest.mark.usefixtures("single_thread")


def tiny_bert(**changes) -> BertModel:
    sizes = dict(vocab_size=60, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24)
    return BertModel(BertConfig(**{**sizes, "max_position_embeddings": 32, **changes}))


def padded(*captions: list[int], filler: int = 0) -> Tokens:
    """Captions of any lengths as Tokens, with `filler` for padding."""
    lengths = torch.tensor([len(caption) for caption in captions])
    ids = torch.full((len(captions), int(lengths.max())), filler)
    for row, caption in zip(ids, captions, strict=True):
        row[: len(caption)] = torch.tensor(caption)
    return Tokens(ids, lengths)


def assert_each_caption_is_encoded_as_alone(encoder: BertEncoder, *captions: list[int]) -> Fragments:
    together = encoder(padded(*captions))
    for row, caption in enumerate(captions):
        alone = encoder(padded(caption))
        padding = together.mask.shape[1] - len(caption)
        assert alone.mask.all() and together.mask[row].tolist() == [True] * len(caption) + [False] * padding
        torch.testing.assert_close(together.features[row, : len(caption)], alone.features[0], rtol=0, atol=1e-6)
    return together


def test_padding_and_other_captions_change_no_fragment_and_no_gradient():
    encoder = BertEncoder(tiny_bert(), 12).eval()
    short = [2, 7, 9, 3]
    alone, together = encoder(padded(short)), encoder(padded(short, list(range(5, 14)), list(range(20, 26))))
    assert together.mask.sum(1).tolist() == [4, 9, 6]
    torch.testing.assert_close(together.features[0, :4], alone.features[0], rtol=0, atol=1e-6)
    gradients = []
    for fragments in (alone, together):
        encoder.zero_grad()
        fragments.features[0, :4].square().sum().backward()
        gradients.append([p.grad.clone() for p in encoder.parameters() if p.grad is not None])
    for first, second in zip(*gradients, strict=True):
        torch.testing.assert_close(first, second, rtol=0, atol=1e-6 * max(1.0, float(first.abs().max())))


def test_an_id_0_within_the_length_of_a_caption_is_a_token_like_any_other():
    encoder = BertEncoder(tiny_bert(), 12).eval()
    inside, last, nothing_else = [2, 7, 0, 9, 3], [2, 7, 0], [0, 0]
    together = assert_each_caption_is_encoded_as_alone(encoder, inside, last, nothing_else, list(range(5, 12)))
    assert together.lengths.tolist() == [5, 3, 2, 7]
    assert (together.features[0, 2] != 0).any() and (together.features[1, 2] != 0).any()
    assert (together.features[~together.mask] == 0).all()


def test_a_trailing_id_0_is_padding_or_a_token_as_the_length_says():
    encoder = BertEncoder(tiny_bert(), 12).eval()
    ids = torch.tensor([[2, 7, 0]])
    token, padding = encoder(Tokens(ids, torch.tensor([3]))), encoder(Tokens(ids, torch.tensor([2])))
    assert (token.features[0, 2] != 0).any() and (padding.features[0, 2] == 0).all()
    assert not torch.allclose(token.features[0, :2], padding.features[0, :2], atol=1e-3)  # the others see it


def test_what_stands_in_the_padding_changes_nothing():
    encoder = BertEncoder(tiny_bert(), 12).eval()
    captions = ([2, 7, 9, 3], list(range(5, 14)), [2, 3])
    zeros, others = (encoder(padded(*captions, filler=filler)) for filler in (0, 41))
    assert torch.equal(zeros.features, others.features) and torch.equal(zeros.mask, others.mask)


def test_a_batch_may_be_padded_wider_than_its_longest_caption():
    encoder = BertEncoder(tiny_bert(), 12).eval()
    captions = padded([2, 7, 9, 3], [2, 3])
    wide = encoder(Tokens(torch.nn.functional.pad(captions.ids, (0, 5)), captions.lengths))
    assert wide.features.shape == (2, 9, 12) and (wide.features[~wide.mask] == 0).all()
    torch.testing.assert_close(wide.features[:, :4], encoder(captions).features)


def test_buckets_of_similar_length_give_the_fragments_and_gradients_of_one_batch(monkeypatch):
    encoder = BertEncoder(tiny_bert(), 12).eval()
    lengths = torch.tensor([9, 3, 14, 5, 5, 11, 2])
    batch = Tokens(torch.randint(0, 60, (7, 14)) * (torch.arange(14) < lengths[:, None]), lengths)
    results = []
    for tokens in (10**6, 10):  # one bucket, then several
        monkeypatch.setitem(bert.BUCKET_TOKENS, "cpu", tokens)
        encoder.zero_grad()
        fragments = encoder(batch)
        (fragments.features * torch.arange(12.0).cos()).sum().backward()
        results.append([fragments.features.detach(), *(p.grad for p in encoder.parameters() if p.grad is not None)])
    assert (results[0][0][~fragments.mask] == 0).all() and fragments.lengths.tolist() == lengths.tolist()
    for one, several in zip(*results, strict=True):
        torch.testing.assert_close(several, one, rtol=0, atol=1e-6 * max(1.0, float(one.abs().max())))


def test_captions_of_similar_length_pass_through_bert_together_in_few_buckets(monkeypatch):
    encoder, seen = BertEncoder(tiny_bert(), 12).eval(), []
    encoder.bert.embeddings.register_forward_pre_hook(
        lambda module, args, given: seen.append(tuple(given["input_ids"].shape)), with_kwargs=True
    )
    batch = Tokens(torch.ones(24, 20, dtype=torch.long), torch.tensor([3, 20] * 12))  # 276 tokens
    expected = {10**6: [(24, 20)], 130: [(12, 3), (12, 20)], 1: [(3, 3)] * 4 + [(3, 20)] * 4}
    for tokens, buckets in expected.items():
        monkeypatch.setitem(bert.BUCKET_TOKENS, "cpu", tokens)
        seen.clear()
        encoder(batch)
        assert seen == buckets


def test_the_pretrained_parameters_are_berts_alone():
    encoder = BertEncoder(tiny_bert(), 12)
    assert {id(p) for p in encoder.pretrained_parameters()} == {id(p) for p in encoder.bert.parameters()}
    assert len(encoder.pretrained_parameters()) == len(list(encoder.parameters())) - 2


# --- What is read from a folder ---------------------------------------------------------------------------------------


def test_the_values_of_a_folder_rebuild_its_network_and_win_over_those_given(sample):
    values = read_bert_options({"hidden_size": 7, "note": "kept"}, {"bert_path": sample / "bert"})
    assert values == {"note": "kept"} | bert_values(load_bert_config(sample / "bert"))
    assert bert_values(BertConfig(**{name: values[name] for name in FIELDS})) == {name: values[name] for name in FIELDS}


def test_the_weights_are_those_of_the_folder_or_random_where_no_paths_are_given(sample):
    part, paths = TEXT_ENCODERS["bert"], {"bert_path": sample / "bert"}
    options = part.read_options({}, paths)
    weights = load_file(sample / "bert" / "model.safetensors")
    loaded, random = (part.make(12, given, **options).bert.state_dict() for given in (paths, None))
    assert loaded.keys() == weights.keys() and all(torch.equal(value, weights[key]) for key, value in loaded.items())
    assert {key: value.shape for key, value in random.items()} == {key: value.shape for key, value in loaded.items()}
    embedding = "embeddings.word_embeddings.weight"
    assert not torch.equal(random[embedding], loaded[embedding])


@pytest.mark.parametrize(
    ("name", "whole"), [("encoder.layer.0.output.dense.weight", False), ("pooler.dense.weight", True)]
)
def test_a_weight_that_a_folder_lacks_is_never_made_up_unless_no_score_depends_on_it(sample, tmp_path, name, whole):
    folder = shutil.copytree(sample / "bert", tmp_path / "bert")
    weights = load_file(folder / "model.safetensors")
    del weights[name]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    if whole:
        assert torch.equal(load_bert(folder).embeddings.LayerNorm.weight, weights["embeddings.LayerNorm.weight"])
    else:
        with pytest.raises(InputError, match=f"--bert_path {folder}: not a BERT model .* it lacks {name}"):
            load_bert(folder)


def test_a_folder_in_half_precision_gives_a_bert_in_float32(sample, tmp_path):
    folder = shutil.copytree(sample / "bert", tmp_path / "bert")
    half = {key: value.half() for key, value in load_file(folder / "model.safetensors").items()}
    save_file(half, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"dtype": "float16"}))
    assert {parameter.dtype for parameter in load_bert(folder).parameters()} == {torch.float32}


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


def test_a_bert_that_is_no_folder_here_is_not_asked_for(sample, tmp_path):
    assert local_bert_values(None) is None
    assert local_bert_values("bert-base-uncased") is None and local_bert_values(tmp_path) is None
    assert local_bert_values(sample / "bert") == bert_values(load_bert_config(sample / "bert"))


def test_dropout_is_an_option_of_training_alone():
    assert TEXT_ENCODERS["bert"].training_only == tuple(DROPOUT)
    networks = [TEXT_ENCODERS["bert"].make(12, **BERT, **dict.fromkeys(DROPOUT, rate)) for rate in (0.0, 0.5)]
    networks[1].load_state_dict(networks[0].state_dict())
    captions = padded([2, 7, 9, 3], [2, 3])
    without, within = (network.eval()(captions).features for network in networks)
    assert torch.equal(without, within)
    assert not torch.equal(networks[1].train()(captions).features, within)
