"""Weights are loaded where all of them fit, and else named in one line."""

from __future__ import annotations

import pytest
import torch

from lib.core.errors import InputError
from lib.files.weights import check_fit, load_strictly
from tests.files.test_pytorch import Network


def misfit(network, weights, function=load_strictly, **options) -> str:
    """The message with which weights are refused, without the beginning that the caller gave."""
    with pytest.raises(InputError) as caught:
        function(network, weights, "a.pth: not the weights of a test", **options)
    text = str(caught.value)
    assert text.startswith("a.pth: not the weights of a test: ") and "\n" not in text
    return text.removeprefix("a.pth: not the weights of a test: ")


def weights_of(network) -> dict[str, torch.Tensor]:
    """Weights that fit a network and are not its own."""
    return {key: torch.full_like(tensor, 7) for key, tensor in network.state_dict().items()}


def test_a_network_takes_weights_that_fit_bit_for_bit():
    network = Network()
    weights = weights_of(network)
    load_strictly(network, weights, "a.pth")
    assert all(torch.equal(tensor, weights[key]) for key, tensor in network.state_dict().items())


def test_missing_left_over_and_misshapen_weights_are_named_in_one_message():
    weights = weights_of(Network())
    del weights["layer.bias"], weights["norm.weight"]
    weights |= {"mystery": torch.zeros(2), "layer.weight": torch.zeros(1, 2)}
    expected = (
        "2 keys missing (layer.bias, norm.weight); 1 key left over (mystery); "
        "1 key of another shape (layer.weight (1, 2), expected (3, 2))"
    )
    assert misfit(Network(), weights) == expected
    assert misfit(Network(), weights, check_fit) == expected


def test_many_keys_are_named_by_the_first_four():
    assert misfit(Network(), {}) == "7 keys missing (layer.weight, layer.bias, norm.weight, norm.bias, …)"


def test_a_value_that_is_no_tensor_is_named_by_its_type():
    weights = weights_of(Network()) | {"layer.bias": [0.0, 0.0, 0.0]}
    assert misfit(Network(), weights) == "1 key of another shape (layer.bias list, expected (3,))"


@pytest.mark.parametrize("kind", ["int64", "complex64", "bool"])
def test_weights_that_are_no_floats_are_refused_where_the_network_has_floats(kind):
    weights = weights_of(Network())
    weights["layer.bias"] = weights["layer.bias"].to(getattr(torch, kind))
    assert misfit(Network(), weights) == f"1 key of another type (layer.bias {kind}, expected float32)"


def test_floats_are_refused_where_the_network_counts_and_halves_are_taken_where_it_has_floats():
    weights = weights_of(Network()) | {"norm.num_batches_tracked": torch.tensor(1.5)}
    assert misfit(Network(), weights) == ("1 key of another type (norm.num_batches_tracked float32, expected int64)")
    load_strictly(Network(), {key: value.half() for key, value in weights_of(Network()).items()}
                  | {"norm.num_batches_tracked": torch.tensor(1)}, "a.pth")  # fmt: skip


def test_keys_with_strange_characters_stay_on_one_line():
    assert misfit(Network(), weights_of(Network()) | {"a\nb": torch.zeros(1)}) == "1 key left over (a?b)"


def test_messages_name_keys_as_the_file_does():
    weights = weights_of(Network()) | {"mystery": torch.zeros(2), "layer.weight": torch.zeros(1, 2)}
    del weights["layer.bias"]
    assert misfit(Network(), weights, named=lambda key: f"module.{key}") == (
        "1 key missing (module.layer.bias); 1 key left over (module.mystery); "
        "1 key of another shape (module.layer.weight (1, 2), expected (3, 2))"
    )


def test_a_network_is_not_touched_when_weights_do_not_fit():
    network = Network()
    before = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    weights = weights_of(network)
    weights["norm.bias"] = torch.zeros(4)  # the last parameter: those before it fit
    misfit(network, weights)
    assert all(torch.equal(tensor, before[key]) for key, tensor in network.state_dict().items())


def may_lack(key: str) -> bool:
    return key.endswith(("bias", "num_batches_tracked"))


def test_a_network_keeps_its_own_value_for_a_key_that_the_weights_may_lack():
    network = Network()
    own, weights = network.layer.bias.detach().clone(), weights_of(network)
    del weights["layer.bias"], weights["norm.num_batches_tracked"]
    load_strictly(network, weights, "a.pth", may_lack=may_lack)
    assert torch.equal(network.layer.bias, own) and network.norm.num_batches_tracked == 0
    assert network.norm.bias.tolist() == [7, 7, 7]  # may be lacking as well, but is there


def test_a_key_that_may_be_lacking_still_has_to_fit_and_no_other_may_be():
    weights = weights_of(Network()) | {"layer.bias": torch.zeros(4)}
    del weights["norm.bias"], weights["norm.weight"]
    assert misfit(Network(), weights, may_lack=may_lack) == (
        "1 key missing (norm.weight); 1 key of another shape (layer.bias (4,), expected (3,))"
    )


def test_a_network_without_memory_is_checked_all_the_same():
    with torch.device("meta"):
        network = Network()
    check_fit(network, weights_of(Network()), "a.pth")
    assert all(tensor.is_meta for tensor in network.state_dict().values())
    assert misfit(network, {}, check_fit).startswith("7 keys missing")
