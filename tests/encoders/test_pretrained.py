"""Models in Hugging Face form: whole or refused in one line, of the right kind, in float32, without noise."""

from __future__ import annotations

import json
import logging
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertModel, CLIPConfig
from transformers.utils import logging as transformers_logging

from lib.core.errors import InputError
from lib.encoders.fields import BERT as FIELDS
from lib.encoders.pretrained import load_pretrained, own_config, quiet_transformers, whole_model
from tests.helpers import BERT


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A tiny BERT in a folder."""
    folder = tmp_path_factory.mktemp("bert")
    BertModel(BertConfig(**BERT), add_pooling_layer=False).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    """A copy of it, to be changed."""
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((saved / name).read_bytes())
    return tmp_path


def change(folder, name: str, tensor=None) -> None:
    """Put another tensor in the place of one, or none."""
    weights = load_file(folder / "model.safetensors")
    del weights[name]
    save_file(weights | ({} if tensor is None else {name: tensor}), folder / "model.safetensors", {"format": "pt"})


def whole(path) -> BertModel:
    return whole_model(BertModel, own_config(BertConfig, FIELDS, path), path, add_pooling_layer=False)


def test_weights_are_those_of_the_folder_in_float32_also_where_they_were_saved_in_half_precision(folder):
    weights = load_file(folder / "model.safetensors")
    found = whole(str(folder)).state_dict()
    assert found.keys() == weights.keys() and all(torch.equal(found[key], weights[key]) for key in weights)
    half = {key: value.to(torch.bfloat16) for key, value in weights.items()}
    save_file(half, folder / "model.safetensors", {"format": "pt"})
    found = whole(str(folder)).state_dict()
    assert all(found[key].dtype == torch.float32 and torch.equal(found[key], half[key].float()) for key in half)


@pytest.mark.parametrize(("tensor", "said"), [(None, "it lacks"), (torch.ones(3), "of another shape .*:")])
def test_a_missing_or_misshapen_weight_is_refused_by_name_and_never_made_up(folder, tensor, said):
    name = "encoder.layer.0.output.dense.bias"
    change(folder, name, tensor)
    with pytest.raises(
        InputError, match=f"--bert_path {folder}: not a BERT model in Hugging Face form .*{said} {name}"
    ):
        load_pretrained("--bert_path", folder, whole)


def test_a_configuration_of_another_kind_of_model_is_refused(folder):
    assert own_config(BertConfig, FIELDS, str(folder)).hidden_size == BERT["hidden_size"]
    with pytest.raises(ValueError, match="its model_type is bert, expected clip"):
        own_config(CLIPConfig, {}, str(folder))
    (folder / "config.json").write_text(json.dumps({"hidden_size": 8}))  # as BERT's oldest files have it
    assert own_config(BertConfig, FIELDS, str(folder)).hidden_size == 8
    (folder / "config.json").write_text(json.dumps({"size": 8}))
    with pytest.raises(ValueError, match="its config.json says nothing of vocab_size, hidden_size"):
        own_config(BertConfig, FIELDS, str(folder))


def test_nothing_but_the_known_values_reaches_the_library(folder):
    """Its own reader would make a table of a billion labels, or change the network behind the checkpoint's back."""
    values = json.loads((folder / "config.json").read_text())
    strange = {"num_labels": 10**9, "auto_map": {"AutoModel": "x.Y"}, "quantization_config": {"bits": 4},
               "is_decoder": True, "dtype": "float16", "_attn_implementation": "flash_attention_2"}  # fmt: skip
    (folder / "config.json").write_text(json.dumps(values | strange))
    config = own_config(BertConfig, FIELDS, str(folder))
    assert not config.is_decoder and config.num_labels == 2
    assert all(
        getattr(config, name, None) in (None, False, "eager", "sdpa") for name in strange if name != "num_labels"
    )
    assert whole(str(folder)).dtype == torch.float32


@pytest.mark.parametrize(
    ("name", "value"),
    [("num_hidden_layers", 10**9), ("hidden_size", 2**40), ("vocab_size", -1), ("vocab_size", 1e4),
     ("hidden_act", "eval"), ("hidden_dropout_prob", 2), ("layer_norm_eps", None), ("num_attention_heads", True)],
)  # fmt: skip
def test_a_value_out_of_its_bounds_is_refused_before_memory_is_taken(folder, name, value):
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | {name: value}))
    with pytest.raises(InputError, match=f"--bert_path {folder}: .*{name} is .*, expected (a|one of) "):
        load_pretrained("--bert_path", folder, whole)


def test_whatever_goes_wrong_is_one_line_with_the_flag_and_what_would_be_right(tmp_path):
    def fail(path):
        raise KeyError("a  long " + "x" * 500)

    with pytest.raises(InputError) as caught:
        load_pretrained("--clip_path", tmp_path, fail, "CLIP")
    message = str(caught.value)
    assert message.startswith(f"--clip_path {tmp_path}: not a CLIP model in Hugging Face form (KeyError: 'a long xxx")
    assert "\n" not in message and len(message) < 400
    assert message.endswith("give a folder with config.json, model.safetensors and the vocabulary")
    with pytest.raises(InputError, match="missing: no such folder, and a hub model of that name could not be loaded"):
        load_pretrained("--clip_path", tmp_path / "missing", fail, "CLIP")


def test_loading_says_nothing_and_leaves_the_verbosity_as_it_was(folder, capfd):
    hub, before = logging.getLogger("huggingface_hub"), transformers_logging.get_verbosity()
    hub.setLevel(logging.INFO)
    try:
        with pytest.raises(ZeroDivisionError), quiet_transformers():
            transformers_logging.get_logger("transformers").warning("not shown")
            hub.warning("not shown")
            raise ZeroDivisionError
        assert (transformers_logging.get_verbosity(), hub.level) == (before, logging.INFO)
    finally:
        hub.setLevel(logging.NOTSET)
    save_file(load_file(folder / "model.safetensors") | {"more": torch.ones(1)}, folder / "model.safetensors",
              {"format": "pt"})  # fmt: skip
    load_pretrained("--bert_path", folder, whole)
    sys.stdout.flush()
    assert capfd.readouterr() == ("", "")
