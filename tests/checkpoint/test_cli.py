"""python -m lib.checkpoint: conversion both ways, what a file is, one line for whatever goes wrong."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import BertConfig

from lib.checkpoint import convert, read_checkpoint, save_checkpoint
from lib.checkpoint.__main__ import main
from lib.core.errors import InputError
from tests.checkpoint.released.layouts import BERT, assert_same_tensors, released_content, small_model


@pytest.fixture
def released(tmp_path):
    torch.save(released_content("esl_h"), tmp_path / "released.pth")
    return tmp_path / "released.pth"


def failure(capsys, *argv) -> str:
    with pytest.raises(SystemExit) as caught:
        main([str(part) for part in argv])
    assert caught.value.code == 2
    printed = capsys.readouterr()
    assert "Traceback" not in printed.err and printed.out == ""
    return printed.err


def test_convert_writes_a_file_that_reads_as_the_same_model(released, tmp_path, capsys):
    main(["convert", str(released), str(tmp_path / "new folder" / "ours.pth"), "--to", "ours"])
    assert "released ESL-H, region features, BERT, embed_size 256" in capsys.readouterr().out
    one, other = read_checkpoint(released), read_checkpoint(tmp_path / "new folder" / "ours.pth")
    assert one.config == other.config and (one.origin, other.origin) == ("released", "ours")
    assert_same_tensors(one.model, other.model)
    assert_same_tensors(one.extras, other.extras)


def test_converting_to_the_released_layout_says_that_the_optimizer_is_left_out(tmp_path, capsys):
    model = small_model("vse_infty")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    save_checkpoint(tmp_path / "ours.pth", model, optimizer=optimizer)
    main(["convert", str(tmp_path / "ours.pth"), str(tmp_path / "released.pth"), "--to", "released"])
    assert "optimizer" in capsys.readouterr().out
    assert_same_tensors(read_checkpoint(tmp_path / "released.pth").model, model.state_dict())


def test_show_says_what_a_file_is(released, tmp_path, capsys):
    main(["show", str(released)])
    shown = capsys.readouterr().out
    for words in ("released ESL-H", "epoch 7, step 1234, best RSUM 512.5", "kernel_size 2", "hidden_size 64", "margin"):
        assert words in shown
    save_checkpoint(tmp_path / "ours.pth", small_model("vse_infty grid"))
    main(["show", str(tmp_path / "ours.pth")])
    assert "ours.pth: VSE∞, grid features (tiny), BERT, embed_size 16" in capsys.readouterr().out


def test_show_lists_the_settings_that_were_given(tmp_path, capsys):
    settings = {"optim": "adam", "margin": 0.0, "resume": None, "image_list": "", "max_violation": False}
    save_checkpoint(tmp_path / "a.pth", small_model("vse_infty"), settings={**settings, "odd": torch.zeros(2)})
    main(["show", str(tmp_path / "a.pth")])
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == "settings: margin 0.0, max_violation False, odd tensor([0., 0.]), optim adam"
    save_checkpoint(tmp_path / "a.pth", small_model("vse_infty"))
    main(["show", str(tmp_path / "a.pth")])
    assert capsys.readouterr().out.splitlines()[-1] == "settings: none"


def test_bert_path_tells_the_attention_heads(released, tmp_path, capsys):
    folder = tmp_path / "bert"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({**BERT, "num_attention_heads": 8, "model_type": "bert"}))
    main(["convert", str(released), str(tmp_path / "ours.pth"), "--to", "ours", "--bert_path", str(folder)])
    assert read_checkpoint(tmp_path / "ours.pth").config.text_options == {**BERT, "num_attention_heads": 8}
    capsys.readouterr()
    main(["show", str(released), "--bert_path", str(folder)])
    assert "num_attention_heads 8" in capsys.readouterr().out
    assert "--bert_path" in failure(capsys, "show", released, "--bert_path", tmp_path / "absent")


def test_a_hub_name_tells_the_attention_heads_as_its_folder_does(released, tmp_path, capsys, monkeypatch):
    hub = {"someone/bert": ({**BERT, "num_attention_heads": 8, "model_type": "bert"}, {})}
    monkeypatch.setattr(BertConfig, "get_config_dict", lambda name, **_: hub[name])
    main(["convert", str(released), str(tmp_path / "ours.pth"), "--to", "ours", "--bert_path", "someone/bert"])
    assert read_checkpoint(tmp_path / "ours.pth").config.text_options["num_attention_heads"] == 8


def test_a_folder_without_a_configuration_is_no_bert(released, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "empty", ""):
        assert "--bert_path" in failure(capsys, "show", released, "--bert_path", path)


def test_a_checkpoint_is_written_as_safetensors_and_read_back(tmp_path, capsys):
    model = small_model("vse_infty")
    save_checkpoint(tmp_path / "ours.pth", model, torch.optim.SGD(model.parameters(), lr=0.1), epoch=3, chosen_on="dev")
    main(["convert", str(tmp_path / "ours.pth"), str(tmp_path / "a.safetensors"), "--to", "safetensors"])
    printed = capsys.readouterr().out
    assert "written in safetensors, its configuration in the metadata" in printed and "optimizer" in printed
    main(["show", str(tmp_path / "a.safetensors")])
    assert "a.safetensors: VSE∞, region features, BERT, embed_size 16" in capsys.readouterr().out


def test_errors_are_one_line_and_exit_code_2(released, tmp_path, capsys):
    assert failure(capsys, "show", tmp_path / "absent.pth").count("\n") == 1
    assert "name another file" in failure(capsys, "convert", released, tmp_path / "." / "released.pth", "--to", "ours")
    assert "--to" in failure(capsys, "convert", released, tmp_path / "b.pth", "--to", "theirs")
    with pytest.raises(
        InputError,
        match="^--to is 'theirs', expected one of ours, released_bigru, released_clip, released, safetensors$",
    ):
        convert(released, tmp_path / "b.pth", "theirs")


def test_an_incomplete_file_is_not_converted_and_leaves_nothing_behind(released, tmp_path, capsys):
    content = torch.load(released, weights_only=False)
    del content["model"][2]["module.sims.calculator_1.masks_4.weight"]
    del content["model"][1]["module.linear.bias"]
    torch.save(content, released)
    text = failure(capsys, "convert", released, tmp_path / "ours.pth", "--to", "ours")
    assert "sim_vec: sims.calculator_1.masks_4.weight" in text and "txt_enc: linear.bias" in text
    assert [path.name for path in tmp_path.iterdir()] == ["released.pth"]
