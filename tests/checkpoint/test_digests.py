"""Digests tell whether a checkpoint of ours is as it was written."""

from __future__ import annotations

import pytest
import torch

from lib.checkpoint import read_checkpoint, save_checkpoint
from lib.checkpoint.native import PLAIN, digests
from tests.attack.refusals import refuses
from tests.checkpoint.released.layouts import small_model


def content() -> dict:
    return {
        "model": {"a": torch.arange(6.0).reshape(2, 3), "b": torch.zeros(0), "c": torch.tensor(3)},
        "optimizer": [{"lr": 0.1, "state": torch.ones(2).bfloat16()}, (1, "text", None, True, b"bytes")],
        "position": {"random": [torch.zeros(3, dtype=torch.uint8)], "complex": torch.ones(1, dtype=torch.complex64)},
    }


def test_every_tensor_has_a_digest_by_its_place_and_plain_values_have_one_together():
    assert list(digests(content())) == [
        PLAIN, "model.a", "model.b", "model.c", "optimizer.0.state", "position.complex",
        "position.random.0",
    ]  # fmt: skip


def test_any_single_bit_of_a_tensor_changes_its_digest_alone():
    before = digests(content())
    for bit in range(6 * 32):
        changed = content()
        changed["model"]["a"].view(torch.uint8).reshape(-1)[bit // 8] ^= 1 << bit % 8
        after = digests(changed)
        assert [place for place in before if before[place] != after[place]] == ["model.a"]


CHANGES = {
    "a number": lambda c: c["optimizer"][0].update(lr=0.10000000000000002),
    "a type": lambda c: c["optimizer"].__setitem__(1, [1, "text", None, True, b"bytes"]),
    "the sign of zero": lambda c: c.update(zero=-0.0),
    "a key": lambda c: c.update({"model": c["model"] | {"d": 1}}),
    "a shape": lambda c: c["model"].update(a=c["model"]["a"].reshape(3, 2)),
    "the type of numbers": lambda c: c["model"].update(c=torch.tensor(3).int()),
}


@pytest.mark.parametrize("what", CHANGES)
def test_any_plain_value_changes_the_digest_of_plain_values(what):
    before, changed = content() | {"zero": 0.0}, content() | {"zero": 0.0}
    CHANGES[what](changed)
    assert digests(before)[PLAIN] != digests(changed)[PLAIN]


def test_the_order_of_keys_changes_nothing():
    reordered = dict(reversed(content().items()))
    assert digests(reordered) == digests(content())


def test_a_tensor_has_one_digest_however_it_lies_in_memory():
    rows = torch.arange(12.0).reshape(3, 4)
    assert digests({"a": rows.T.contiguous().T})["a"] == digests({"a": rows})["a"]
    assert digests({"a": torch.arange(5.0)[1:3]})["a"] == digests({"a": torch.tensor([1.0, 2.0])})["a"]


@pytest.mark.parametrize("legacy", [False, True])
def test_what_was_changed_after_writing_is_named(legacy, tmp_path):
    path = tmp_path / "a.pth"
    save_checkpoint(path, small_model("vse_infty"), epoch=3)
    whole = torch.load(path, weights_only=True)
    for change, named in (
        (lambda c: c["model"]["text_encoder.linear.bias"].add_(1), "(model.text_encoder.linear.bias)"),
        (lambda c: c.update(epoch=4), f"({PLAIN})"),
        (lambda c: c["digests"].update(other=5), "(other)"),
        (lambda c: c["digests"].pop("model.text_encoder.linear.bias"), "(model.text_encoder.linear.bias)"),
        (lambda c: c.pop("digests"), "digests missing"),
    ):
        changed = torch.load(path, weights_only=True) if path.exists() else whole
        change(changed)
        torch.save(changed, tmp_path / "b.pth", _use_new_zipfile_serialization=not legacy)
        refuses(lambda: read_checkpoint(tmp_path / "b.pth"), str(tmp_path / "b.pth"), named)
