"""Where a tokenizer's files lie: in a folder, in the hub's cache, in the hub; no test asks the hub itself."""

from __future__ import annotations

import huggingface_hub
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from lib.core.errors import InputError
from lib.datasets.tokenisers import load_tokenizer
from lib.datasets.tokenisers.hub import one_line, tokenizer_folder

BERT = (("tokenizer.json", "vocab.txt"), "--bert_path", "BERT")
CLIP = (("tokenizer.json", "vocab.json"), "--clip_path", "CLIP")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The hub's cache, a folder that holds what is written there; the hub itself can't be reached."""

    def unreachable(*args, **kwargs):
        raise ConnectionError("\nName or service not known\nand a long traceback")

    def cached(name, allow_patterns, local_files_only):
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", cached)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", unreachable)
    return tmp_path


@pytest.fixture
def hub(cache, monkeypatch):
    """A hub whose models hold what is written into the folder; yields the folder, and what was asked for."""
    folder, asked = cache / "snapshot", []
    folder.mkdir()
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *args, **kwargs: None)

    def download(name, allow_patterns, local_files_only=False):
        if local_files_only:
            raise LocalEntryNotFoundError("not in the cache")
        asked.append(allow_patterns)
        return folder

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    return folder, asked


@pytest.mark.parametrize("path", ["{}/missing", "./missing", "~/missing/bert", "one/two/three", "{}/file"])
def test_what_can_only_be_a_folder_is_never_looked_up_in_the_hub(tmp_path, monkeypatch, path):
    monkeypatch.setattr(huggingface_hub, "snapshot_download", None)
    (tmp_path / "file").touch()
    path = path.format(tmp_path)
    with pytest.raises(InputError) as caught:
        tokenizer_folder(path, *BERT)
    assert str(caught.value) == f"{path}: no such folder; --bert_path takes a BERT folder or a hub name"


def test_a_folder_needs_one_of_the_vocabulary_files(tmp_path):
    (tmp_path / "vocab.json").touch()
    with pytest.raises(InputError, match=f"{tmp_path}: neither tokenizer.json nor vocab.txt there; --bert_path needs"):
        tokenizer_folder(str(tmp_path), *BERT)
    assert tokenizer_folder(str(tmp_path), *CLIP) == tmp_path


def test_hub_name_without_network_is_one_clear_line(cache):
    with pytest.raises(InputError, match=r"\(Name or service not known\).*give its folder as --bert_path") as error:
        load_tokenizer("bert-base-uncased")
    assert "\n" not in str(error.value)


def test_hub_name_in_the_cache_needs_no_network(tokenizer, cache):
    tokenizer.save_pretrained(cache)
    assert load_tokenizer("bert-base-uncased").vocab_size == tokenizer.vocab_size


@pytest.mark.parametrize(
    ("kind", "files", "whole"),
    [
        (BERT, ["tokenizer.json"], True),
        (BERT, ["vocab.txt", "tokenizer_config.json"], True),
        (BERT, ["vocab.txt"], False),
        (CLIP, ["vocab.json", "merges.txt", "tokenizer_config.json"], True),
        (CLIP, ["vocab.json", "tokenizer_config.json"], False),
    ],
)
def test_a_tokenizer_is_taken_from_the_cache_only_where_all_its_files_are_there(cache, kind, files, whole):
    for name in files:
        (cache / name).touch()
    if whole:
        assert tokenizer_folder("some/model", *kind) == cache
    else:
        with pytest.raises(InputError, match="could not be fetched"):
            tokenizer_folder("some/model", *kind)


def test_no_weights_are_downloaded(hub):
    folder, asked = hub
    (folder / "vocab.txt").touch()
    assert tokenizer_folder("some/model", *BERT) == folder
    assert asked == [["tokenizer.json", "vocab.txt", "tokenizer_config.json", "special_tokens_map.json", "merges.txt"]]


def test_a_hub_model_without_a_vocabulary_is_refused(hub):
    with pytest.raises(
        InputError, match="some/model: the hub's model holds neither tokenizer.json nor vocab.json; give"
    ):
        tokenizer_folder("some/model", *CLIP)


def test_a_name_that_no_hub_model_can_have_is_refused():
    with pytest.raises(InputError, match="'my bert!' is neither a folder nor a hub name; --bert_path takes either"):
        tokenizer_folder("my bert!", *BERT)


@pytest.mark.parametrize(
    ("message", "line"), [("\n  \n first \nsecond", "first"), ("", "ValueError"), ("x" * 200, "x" * 160)]
)
def test_an_error_of_a_library_becomes_the_first_line_that_says_something(message, line):
    assert one_line(ValueError(message)) == line
