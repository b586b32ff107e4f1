"""What a checkpoint says of itself, and which values count as its tensors."""

from __future__ import annotations

import pytest
import torch

from lib.checkpoint.checkpoint import Checkpoint, dense_tensors
from lib.core.errors import InputError
from tests.checkpoint.released.layouts import small_config


def refusal(values) -> str:
    with pytest.raises(InputError) as caught:
        dense_tensors(values, "a.pth: extras")
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    "kind, words",
    [("esl_a", "ESL-A, region features, BERT, embed_size 256"),
     ("esl_h", "ESL-H, region features, BERT, embed_size 256"),
     ("vse_infty grid", "VSE∞, grid features (tiny), BERT, embed_size 16")],
)  # fmt: skip
def test_a_checkpoint_says_what_it_is_and_where_it_comes_from_unless_it_is_ours(kind, words):
    assert Checkpoint(small_config(kind), {}).description == words
    assert Checkpoint(small_config(kind), {}, origin="released").description == f"released {words}"


def test_ordinary_tensors_of_every_type_are_taken_without_their_gradients():
    values = {
        "float": torch.ones(2, requires_grad=True), "half": torch.ones(2).half(), "count": torch.tensor(3),
        "mask": torch.tensor([True]), "view": torch.arange(6).view(2, 3).T, "none": torch.zeros(0, 4),
    }  # fmt: skip
    found = dense_tensors(values, "a.pth: extras")
    assert list(found) == list(values)
    for key, tensor in values.items():
        assert found[key].dtype == tensor.dtype and torch.equal(found[key], tensor) and not found[key].requires_grad


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_anything_but_an_ordinary_tensor_is_refused_by_its_name():
    for value in (
        3,
        [1.0],
        None,
        torch.zeros(2, 2).to_sparse(),
        torch.quantize_per_tensor(torch.zeros(2), 1.0, 0, torch.qint8),
        torch.zeros(2, device="meta"),
    ):
        assert refusal({"a": torch.zeros(1), "bad": value}) == (
            "a.pth: extras holds 'bad', which is no ordinary tensor; expected a state dict"
        )
    assert "holds '(1, 2)', which is no ordinary tensor" in refusal({(1, 2): torch.zeros(1)})
    assert "holds 'a?b', which is no ordinary tensor" in refusal({"a\nb": 3})


def test_what_is_no_dict_is_refused_by_its_type():
    assert refusal([torch.zeros(1)]) == "a.pth: extras is a list, expected a dict of tensors"
