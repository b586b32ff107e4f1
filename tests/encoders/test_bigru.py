"""The BiGRU encoder against a loop over time steps, and what padding and the rest of a batch must not change."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lib.core.errors import InputError
from lib.core.fragments import Tokens
from lib.core.functional import l2_normalize
from lib.encoders import TEXT_ENCODERS
from lib.encoders.bigru import BiGRUEncoder
from lib.files.vocabulary import vocabulary_text
from lib.similarity.gpo import GPO
from tests import reference
from tests.conftest import SHARED, needs_shared

pytestmark = pytest.mark.usefixtures("single_thread")

LENGTHS = [3, 7, 1, 5]  # in no order


def encoder_and_captions(layers: int = 1) -> tuple[BiGRUEncoder, Tokens]:
    encoder = BiGRUEncoder(20, 6, 8, layers).double()
    ids = torch.randint(0, 20, (len(LENGTHS), 7))
    ids[torch.arange(7) >= torch.tensor(LENGTHS)[:, None]] = 0
    return encoder, Tokens(ids, torch.tensor(LENGTHS))


def released_names(encoder: BiGRUEncoder) -> dict[str, torch.Tensor]:
    parameters = {name.replace("gru.", "rnn."): value for name, value in encoder.named_parameters()}
    return {name: value.detach().clone().requires_grad_() for name, value in parameters.items()}


def test_fragments_and_gradients_are_those_of_the_loop_over_time_steps():
    encoder, captions = encoder_and_captions()
    fragments = encoder(captions)
    weights = torch.randn_like(fragments.features)
    (fragments.features * weights).sum().backward()

    expected = released_names(encoder)
    total = 0.0
    for row, length in enumerate(LENGTHS):
        own = reference.bigru_encoder(captions.ids[row, :length].tolist(), expected)
        torch.testing.assert_close(fragments.features[row, :length], own, rtol=0, atol=1e-14)
        total = total + (own * weights[row, :length]).sum()
    total.backward()
    for name, parameter in encoder.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name.replace("gru.", "rnn.")].grad, rtol=0, atol=1e-13)


@pytest.mark.parametrize("layers", [1, 2])
def test_a_caption_alone_has_the_fragments_that_it_has_in_a_batch(layers):
    encoder, captions = encoder_and_captions(layers)
    together = encoder(captions).features
    for row, length in enumerate(LENGTHS):
        alone = encoder(Tokens(captions.ids[row : row + 1, :length], torch.tensor([length]))).features
        torch.testing.assert_close(together[row, :length], alone[0], rtol=0, atol=1e-14)


def test_padding_is_marked_by_lengths_alone_and_its_rows_are_zero():
    encoder, captions = encoder_and_captions()
    captions.ids[1, 2] = 0  # the noise of training may draw the padding's id
    fragments = encoder(captions)
    assert fragments.lengths.tolist() == LENGTHS
    assert (fragments.features[~fragments.mask] == 0).all() and (fragments.features[1, 2] != 0).all()
    wider = Tokens(torch.nn.functional.pad(captions.ids, (0, 3), value=5), captions.lengths)
    assert torch.equal(encoder(wider).features[:, :7], fragments.features)


def test_word_vectors_start_within_a_tenth_and_no_part_is_pretrained():
    encoder = TEXT_ENCODERS["bigru"].make(16, vocab_size=50)
    assert encoder.embed.weight.shape == (50, 300) and encoder.embed.padding_idx is None
    assert 0.09 < encoder.embed.weight.abs().max() <= 0.1
    assert encoder.pretrained_parameters() == []


def test_sizes_come_from_the_vocabulary_and_bad_ones_are_refused(tmp_path):
    part, file = TEXT_ENCODERS["bigru"], tmp_path / "vocab.json"
    file.write_text(vocabulary_text(["dog", "cat"]))
    assert part.read_options({"word_dim": 5}, {"vocab_path": file}) == {"word_dim": 5, "vocab_size": 7}
    with pytest.raises(InputError, match="needs the size of its vocabulary; --vocab_path"):
        part.complete(16, {})
    with pytest.raises(InputError, match="--num_layers is 0, expected a whole number from 1 to 64"):
        part.complete(16, {"vocab_size": 7, "num_layers": 0})


def test_known_words_start_with_the_vectors_of_a_file(tmp_path, capsys):
    (tmp_path / "vocab.json").write_text(vocabulary_text(["dog", "cat"]))
    (tmp_path / "vectors.txt").write_text("cat 1 2\nbird 3 4\n")
    paths = {"vocab_path": tmp_path / "vocab.json", "word_vectors": tmp_path / "vectors.txt"}
    weight = TEXT_ENCODERS["bigru"].make(16, paths, vocab_size=7, word_dim=2).embed.weight
    assert weight[5].tolist() == [1, 2]
    assert weight[[0, 1, 2, 3, 4, 6]].abs().max() <= 0.1
    assert capsys.readouterr().err == f"{tmp_path / 'vectors.txt'}: vectors for 1 of the vocabulary's 7 entries\n"


@needs_shared
@pytest.mark.parametrize(("dtype", "suffix"), [(torch.float32, ""), (torch.float64, "_f64")])
def test_fragments_pooling_and_gradients_are_those_of_the_released_encoder(dtype, suffix):
    golden = np.load(SHARED / "golden" / "golden_bigru.npz")
    encoder, pool = BiGRUEncoder(120, 300, 64).to(dtype), GPO(32, 32).to(dtype)
    for module, prefixes in ((encoder, ("embed.", "rnn.")), (pool, ("gpool.",))):
        weights = {name: torch.from_numpy(golden[name]) for name in golden.files if name.startswith(prefixes)}
        module.load_state_dict({n.replace("rnn.", "gru.").removeprefix("gpool."): w for n, w in weights.items()})

    fragments = encoder(Tokens(torch.from_numpy(golden["captions"]), torch.from_numpy(golden["lengths"])))
    fragments.features.retain_grad()
    pooled = pool(fragments)
    embedded = l2_normalize(pooled)
    (embedded * torch.from_numpy(golden["fixed_weights"]).to(dtype)).sum().backward()
    found = {"fragments": fragments.features, "pooled": pooled, "cap_emb": embedded}
    for name, value in found.items():
        assert_close(value, golden[f"{name}{suffix}"], 1e-6)
    assert_close(pool.pool_weights(fragments.lengths), golden[f"pool_weights{suffix}"][..., 0], 1e-6)

    gradients = {"fragments": fragments.features.grad}
    gradients |= {name.replace("gru.", "rnn."): parameter.grad for name, parameter in encoder.named_parameters()}
    gradients |= {f"gpool.{name}": parameter.grad for name, parameter in pool.named_parameters()}
    assert {f"grad.{name}" for name in gradients} == {n for n in golden.files if n.startswith("grad.")}
    for name, gradient in gradients.items():
        assert_close(gradient, golden[f"grad.{name}"], 1e-5)


def assert_close(found: torch.Tensor, expected: np.ndarray, tolerance: float) -> None:
    """`tolerance` is relative to the largest value."""
    expected = torch.from_numpy(expected).double()
    assert (found.detach().double() - expected).abs().max() <= tolerance * expected.abs().max()
