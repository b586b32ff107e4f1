"""Files of version 1 of our format load as the models they were, and their runs go on.

`version_1` writes out what that version held: names, shapes and order of the weights, one flat configuration, the
optimizer's groups. The scores were computed by the code of that version.
"""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch

from lib.checkpoint import convert, load_for, load_model, read_checkpoint, save_checkpoint
from lib.checkpoint.upgrade import VERSION, upgrade
from lib.core.config import ModelConfig
from lib.core.errors import InputError
from lib.core.fragments import Fragments, Tokens
from lib.datasets.loaders import TrainBatch
from lib.distributed.runner import Runner
from lib.files.pytorch import read_file
from lib.training import fit
from lib.training.engine import Trainer
from lib.training.losses import HingeTriplet
from lib.training.optim import build_optimizer
from lib.training.resuming import resume
from lib.training.run import Run
from lib.training.schedule import Schedule
from tests.checkpoint.released.layouts import assert_same_tensors

pytestmark = pytest.mark.usefixtures("single_thread")

BERT = {
    "vocab_size": 20, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24,
    "hidden_act": "gelu", "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1,
    "max_position_embeddings": 12, "type_vocab_size": 2, "layer_norm_eps": 1e-12,
}  # fmt: skip
FLAT = {  # configurations as version 1 wrote them: every field, whether the model uses it or not
    "esl_h": {
        "similarity": "esl_h", "embed_size": 256, "kernel_size": 2, "img_dim": 6, "no_imgnorm": False,
        "no_txtnorm": True, "precomp_enc_type": "basic", "backbone_source": "detector", "input_scale_factor": 1.0,
        "bert": BERT,
    },
    "vse_infty": {
        "similarity": "vse_infty", "embed_size": 8, "kernel_size": 2, "img_dim": 6, "no_imgnorm": True,
        "no_txtnorm": False, "precomp_enc_type": "basic", "backbone_source": "detector", "input_scale_factor": 1.0,
        "bert": BERT,
    },
    "esl_a grid": {
        "similarity": "esl_a", "embed_size": 256, "kernel_size": 2, "img_dim": 2048, "no_imgnorm": False,
        "no_txtnorm": False, "precomp_enc_type": "backbone", "backbone_source": "tiny", "input_scale_factor": 0.25,
        "bert": BERT,
    },
}  # fmt: skip
PRESENT = {
    "esl_h": ModelConfig("esl_h", "regions", "bert", 256, {"kernel_size": 2, "no_imgnorm": False, "no_txtnorm": True},
                         {"img_dim": 6}, BERT),
    "vse_infty": ModelConfig("vse_infty", "regions", "bert", 8, {"no_imgnorm": True, "no_txtnorm": False},
                             {"img_dim": 6}, BERT),
    "esl_a grid": ModelConfig("esl_a", "grid", "bert", 256,
                              {"kernel_size": 2, "no_imgnorm": False, "no_txtnorm": False},
                              {"backbone_source": "tiny", "input_scale_factor": 0.25}, BERT),
}  # fmt: skip
KINDS = tuple(FLAT)


# ---- what version 1 wrote ----


def linear(name: str, out: int, *into: int) -> dict[str, tuple]:
    return {f"{name}.weight": (out, *into), f"{name}.bias": (out,)}


def norm(name: str, *size: int) -> dict[str, tuple]:
    return {f"{name}.weight": size, f"{name}.bias": size}


def batch_norm(name: str, size: int) -> dict[str, tuple]:
    statistics = {f"{name}.running_mean": (size,), f"{name}.running_var": (size,), f"{name}.num_batches_tracked": ()}
    return norm(name, size) | statistics


def region_encoder(size: int) -> dict[str, tuple]:
    encoder = "image_encoder"
    return {
        **linear(f"{encoder}.fc", size, 6), **linear(f"{encoder}.mlp.hidden", size // 2, 6),
        **batch_norm(f"{encoder}.mlp.norm", size // 2), **linear(f"{encoder}.mlp.output", size, size // 2),
    }  # fmt: skip


def grid_encoder(size: int) -> dict[str, tuple]:
    backbone, into = "image_encoder.backbone", 64
    shapes = {f"{backbone}.conv1.weight": (64, 3, 7, 7), **batch_norm(f"{backbone}.bn1", 64)}
    for layer, width, out in ((1, 4, 256), (2, 8, 512), (3, 16, 1024), (4, 32, 2048)):
        block = f"{backbone}.layer{layer}.0"
        shapes |= {f"{block}.conv1.weight": (width, into, 1, 1), **batch_norm(f"{block}.bn1", width)}
        shapes |= {f"{block}.conv2.weight": (width, width, 3, 3), **batch_norm(f"{block}.bn2", width)}
        shapes |= {f"{block}.conv3.weight": (out, width, 1, 1), **batch_norm(f"{block}.bn3", out)}
        shapes |= {f"{block}.downsample.0.weight": (out, into, 1, 1), **batch_norm(f"{block}.downsample.1", out)}
        into = out
    return shapes | linear("image_encoder.fc", size, 2048)


def text_encoder(size: int) -> dict[str, tuple]:
    bert = "text_encoder.bert"
    layer = f"{bert}.encoder.layer.0"
    return {
        f"{bert}.embeddings.word_embeddings.weight": (20, 16),
        f"{bert}.embeddings.position_embeddings.weight": (12, 16),
        f"{bert}.embeddings.token_type_embeddings.weight": (2, 16), **norm(f"{bert}.embeddings.LayerNorm", 16),
        **linear(f"{layer}.attention.self.query", 16, 16), **linear(f"{layer}.attention.self.key", 16, 16),
        **linear(f"{layer}.attention.self.value", 16, 16), **linear(f"{layer}.attention.output.dense", 16, 16),
        **norm(f"{layer}.attention.output.LayerNorm", 16), **linear(f"{layer}.intermediate.dense", 24, 16),
        **linear(f"{layer}.output.dense", 16, 24), **norm(f"{layer}.output.LayerNorm", 16),
        **linear(f"{bert}.pooler.dense", 16, 16), **linear("text_encoder.linear", size, 16),
    }  # fmt: skip


def esl_head(adaptive: bool) -> dict[str, tuple]:
    shapes: dict[str, tuple] = {"similarity.log_scale": ()}
    sizes = (256, 128, 64, 32, 16, 8, 4, 2, 1)
    for side in ("image", "caption"):
        for k in range(8):
            shape = (sizes[k + 1], sizes[k]) if adaptive else (4, 1, 2)
            shapes[f"similarity.{side}_aggregator.weights.{k}"] = shape
    for k, size in enumerate(sizes):
        shapes[f"similarity.correspondences.{k}.matrix"] = (size, size)
        shapes |= norm(f"similarity.correspondences.{k}.norm", size, size)
    shapes["similarity.contribution.p"] = (9,)
    return shapes if adaptive else shapes | {"similarity.contribution.sigma": (),
                                             "similarity.contribution.log_sharpness": ()}  # fmt: skip


def pooling_head() -> dict[str, tuple]:
    shapes: dict[str, tuple] = {}
    for pool in ("similarity.image_pool", "similarity.caption_pool"):
        for direction in ("", "_reverse"):
            shapes |= {f"{pool}.gru.weight_{x}_l0{direction}": (96, 32) for x in ("ih", "hh")}
            shapes |= {f"{pool}.gru.bias_{x}_l0{direction}": (96,) for x in ("ih", "hh")}
        shapes[f"{pool}.linear.weight"] = (1, 32)
    return shapes


SHAPES = {
    "esl_h": region_encoder(256) | text_encoder(256) | esl_head(adaptive=False),
    "vse_infty": region_encoder(8) | text_encoder(8) | pooling_head(),
    "esl_a grid": grid_encoder(256) | text_encoder(256) | esl_head(adaptive=True),
}
SETTINGS = {  # flags of a run: some count, some are free to change, some were of other models, one has gone
    "data_name": "f30k", "val_split": "dev", "learning_rate": 5e-4, "optim": "adam", "margin": 0.2, "workers": 4,
    "precomp_enc_type": "basic", "kernel_size": 2, "img_dim": 2048, "backbone_source": "detector",
    "input_scale_factor": 1.0, "no_imgnorm": False, "no_kernels": True,
}  # fmt: skip
EXTRAS = {  # what a converted released file keeps; the entry is absent where there is nothing to keep
    "esl_h": {"img_enc.mlp.bns.1.weight": (256,), "img_enc.mlp.bns.1.running_var": (256,)},
    "vse_infty": None,
    "esl_a grid": {"img_enc.backbone.resnet.fc.bias": (1000,)},
}


def numbers(stream: np.random.RandomState, key: str, shape: tuple) -> torch.Tensor:
    """A weight, from a stream that every version of numpy gives."""
    if key.endswith("num_batches_tracked"):
        return torch.tensor(5)
    values = stream.standard_normal(shape) / max(1, np.prod(shape[1:])) ** 0.5
    return torch.tensor(np.abs(values) + 0.5 if key.endswith("running_var") else values, dtype=torch.float32)


def group_of(key: str) -> str:
    return "bert" if ".bert." in key else "backbone" if ".backbone." in key else "head"


def parameters_of(kind: str) -> dict[str, list[str]]:
    """The parameters of each of the optimizer's groups, in the order in which their states are numbered."""
    parameters = [key for key in SHAPES[kind] if "running_" not in key and "num_batches" not in key]
    groups = {name: [key for key in parameters if group_of(key) == name] for name in ("head", "bert", "backbone")}
    return {name: keys for name, keys in groups.items() if keys}


def version_1(kind: str) -> dict:
    """A whole file of version 1 in the middle of a run; a test may alter its dicts, not its tensors."""
    return _dicts_copied(_content(kind))


def _dicts_copied(value):
    if isinstance(value, dict):
        return {key: _dicts_copied(item) for key, item in value.items()}
    return [_dicts_copied(item) for item in value] if isinstance(value, list) else value


@functools.cache
def _content(kind: str) -> dict:
    stream = np.random.RandomState(3)
    model = {key: numbers(stream, key, shape) for key, shape in SHAPES[kind].items()}
    state, groups = {}, []
    for name, keys in parameters_of(kind).items():
        rate = {"head": 5e-4, "bert": 5e-5, "backbone": 5e-6}[name]
        places = list(range(len(state), len(state) + len(keys)))
        groups.append({
            "name": name, "lr": rate, "base_lr": rate, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 1e-4,
            "amsgrad": False, "maximize": False, "foreach": None, "capturable": False, "differentiable": False,
            "fused": None, "decoupled_weight_decay": True, "params": places,
        })  # fmt: skip
        for place, key in zip(places, keys, strict=True):
            mean = numbers(stream, key, SHAPES[kind][key]) * 0.1
            state[place] = {"step": torch.tensor(40.0), "exp_avg": mean, "exp_avg_sq": mean.square() + 0.01}
    content = {
        "format": "esl-checkpoint", "version": 1, "config": FLAT[kind], "model": model,
        "optimizer": {"state": state, "param_groups": groups}, "epoch": 3, "step": 40, "best_rsum": 321.5,
        "settings": SETTINGS,
    }  # fmt: skip
    if EXTRAS[kind]:
        content["released_extras"] = {key: numbers(stream, key, shape) for key, shape in EXTRAS[kind].items()}
    return content


@pytest.fixture
def write(tmp_path):
    """Writes a file of version 1 after a change to its content; returns its path."""

    def writer(kind, change=lambda content: None):
        content = version_1(kind)
        change(content)
        torch.save(content, tmp_path / "checkpoint.pth")
        return tmp_path / "checkpoint.pth"

    return writer


def refusal(path) -> str:
    """The message with which a file is refused, without its path in front."""
    with pytest.raises(InputError) as caught:
        read_checkpoint(path)
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)
    return str(caught.value).removeprefix(f"{path}: ")


# ---- the model ----


def pairs(kind: str) -> tuple[Fragments | torch.Tensor, Tokens]:
    """Two images and two captions, padded."""
    stream = np.random.RandomState(4)
    captions = Tokens(torch.tensor([[2, 7, 9, 11, 3], [2, 5, 3, 0, 0]]), torch.tensor([5, 3]))
    if "grid" in kind:
        return torch.tensor(stream.standard_normal((2, 3, 64, 64)), dtype=torch.float32), captions
    features = torch.tensor(stream.standard_normal((2, 3, 6)), dtype=torch.float32)
    return Fragments(features, torch.tensor([[True, True, True], [True, True, False]])), captions


BEFORE = {
    "esl_h": [[3.5144096, 4.0168318], [-3.0316445, -1.5281961]],
    "vse_infty": [[-1.2096884, -1.1267538], [0.2487771, 0.3441610]],
    "esl_a grid": [[-0.4214613, 6.5117474], [-0.4233743, 6.5073853]],
}
AFTER = {  # one more step
    "esl_h": [[3.5204790, 4.0228829], [-2.9977484, -1.4977341]],
    "vse_infty": [[-1.2096884, -1.1267209], [0.2443184, 0.3397206]],
    "esl_a grid": [[-0.3233700, 6.5373602], [-0.3253634, 6.5330124]],
}


def assert_scores(model, kind: str, expected: list) -> None:
    with torch.no_grad():
        found = model.eval()(*pairs(kind))
    expected = torch.tensor(expected)
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max(), found.tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_of_version_1_loads_bit_for_bit_and_scores_as_it_did(kind, write):
    content, path = version_1(kind), write(kind)
    checkpoint = read_checkpoint(path)
    assert checkpoint.config == PRESENT[kind]
    assert (checkpoint.epoch, checkpoint.step, checkpoint.best_rsum) == (3, 40, 321.5)
    assert checkpoint.settings == SETTINGS and checkpoint.origin == "ours" and checkpoint.path == path
    assert checkpoint.criterion == {}  # the losses of then had no parameters
    assert_same_tensors(checkpoint.extras, content.get("released_extras", {}))
    model = load_model(checkpoint)
    assert_same_tensors(model.state_dict(), content["model"])
    assert list(checkpoint.model) == list(content["model"])
    assert_scores(model, kind, BEFORE[kind])


def trainer_for(kind: str, checkpoint) -> Trainer:
    model, criterion = load_for(PRESENT[kind], checkpoint).eval(), HingeTriplet()  # eval: without random draws
    optimizer = build_optimizer(model, criterion, "adam", 1e-3)
    return Trainer(Runner(model, [torch.device("cpu")]), criterion, optimizer, Schedule())


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_of_version_1_makes_the_step_that_it_would_have_made(kind, write, tmp_path):
    content, checkpoint = version_1(kind), read_checkpoint(write(kind))
    trainer, run = trainer_for(kind, checkpoint), Run(tmp_path, {"data_name": "f30k", "val_split": "dev"})
    resume(run, trainer, checkpoint)
    model, optimizer = trainer.runner.model, trainer.optimizer
    assert (run.epoch, run.step, run.best_rsum) == (3, 40, 321.5)

    rates = {"head": 1e-3, "text": 1e-4, "backbone": 1e-5}
    assert {group["name"]: group["base_lr"] for group in optimizer.param_groups} == {
        name.replace("bert", "text"): rates[name.replace("bert", "text")] for name in parameters_of(kind)
    }
    weights, states = dict(model.named_parameters()), content["optimizer"]["state"]
    places = [key for keys in parameters_of(kind).values() for key in keys]
    assert set(places) == set(weights)
    for place, key in enumerate(places):
        assert_same_tensors(optimizer.state[weights[key]], states[place])

    images, captions = pairs(kind)
    trainer.step(TrainBatch(images, captions, torch.arange(2)), Schedule().at(0, 0, 1))
    assert_scores(model, kind, AFTER[kind])


def test_a_run_of_version_1_goes_on_with_a_note_on_what_was_changed_and_nothing_else(write, tmp_path, monkeypatch):
    lines = []
    monkeypatch.setattr(fit.logger, "info", lambda text, *values: lines.append(text % values))
    checkpoint = read_checkpoint(write("vse_infty"))
    unused = dict.fromkeys(("precomp_enc_type", "kernel_size", "backbone_source", "input_scale_factor"))
    now = {**SETTINGS, **unused, "img_dim": 2048, "learning_rate": 1e-3, "workers": 1, "kernels": "torch"}
    del now["no_kernels"]
    resume(Run(tmp_path, now), trainer_for("vse_infty", checkpoint), checkpoint)
    assert lines == [
        f"note: --learning_rate was 0.0005 when {checkpoint.path} was written and is 0.001 now",
        f"resumed {checkpoint.path}: epoch 3, step 40, best RSUM 321.5",
    ]


@pytest.mark.parametrize("kind", ["esl_h", "vse_infty"])
def test_a_file_of_version_1_is_written_anew_in_the_present_one(kind, write, tmp_path):
    old = read_checkpoint(write(kind))
    convert(old.path, tmp_path / "new.pth", "ours")
    assert read_file(tmp_path / "new.pth")["version"] == VERSION
    new = read_checkpoint(tmp_path / "new.pth")
    assert (new.config, new.epoch, new.step, new.best_rsum, new.settings) == (
        old.config, old.epoch, old.step, old.best_rsum, old.settings,
    )  # fmt: skip
    assert_same_tensors(new.model, old.model)
    assert_same_tensors(new.extras, old.extras)
    assert new.optimizer["param_groups"] == old.optimizer["param_groups"]
    assert new.optimizer["state"].keys() == old.optimizer["state"].keys()
    for place, state in old.optimizer["state"].items():
        assert_same_tensors(new.optimizer["state"][place], state)


def test_tensors_that_only_released_files_hold_go_back_to_the_released_layout(write, tmp_path):
    convert(write("esl_h"), tmp_path / "released.pth", "released")
    image = read_file(tmp_path / "released.pth")["model"][0]
    for key, tensor in version_1("esl_h")["released_extras"].items():
        assert torch.equal(image[key.replace("img_enc.", "module.")], tensor)


def test_a_best_model_of_version_1_has_no_optimizer(write):
    checkpoint = read_checkpoint(write("vse_infty", lambda content: content.update(optimizer=None)))
    assert checkpoint.optimizer is None
    load_model(checkpoint)


def test_content_of_the_present_version_stays_as_it_is(write, tmp_path):
    save_checkpoint(tmp_path / "new.pth", load_model(read_checkpoint(write("vse_infty"))))
    content = read_file(tmp_path / "new.pth")
    assert upgrade(content, VERSION) is content


# ---- what is refused ----


def test_an_entry_of_the_configuration_that_no_version_had_is_an_entry_of_no_model(write):
    path = write("esl_h", lambda content: content["config"].update(shape="round", depth=3))
    assert refusal(path) == "its configuration has entries of no model (depth, shape); the file was altered"


def test_a_version_that_is_not_yet_known_is_a_reason_to_update(write):
    path = write("esl_h", lambda content: content.update(version=VERSION + 1))
    assert refusal(path) == f"its format is of version {VERSION + 1}, expected {VERSION}; update this code"


def test_an_altered_file_of_version_1_is_one_clear_error(write):
    for kind, change, message in (
        ("vse_infty", {"embed_size": "wide"}, "embed_size of its configuration is wide; the file was altered"),
        ("vse_infty", {"similarity": "esl_b"}, "--similarity is 'esl_b', expected one of "),
        ("esl_h", {"kernel_size": 3}, "--embed_size is 256, but an ESL head with --kernel_size 3 needs at least 6561 "),
        ("esl_h", {"kernel_size": "two"}, "--kernel_size is two, expected a whole number from 2 to "),
        (
            "esl_h",
            {"precomp_enc_type": "both"},
            "its precomp_enc_type is both, expected basic or backbone; the file was",
        ),
    ):
        assert refusal(write(kind, lambda content: content["config"].update(change))).startswith(message)  # noqa: B023
    for change, message in (
        ({"config": [1]}, "config, "),
        ({"optimizer": [1]}, "optimizer missing or of a wrong type; the file was altered, save it again"),
        ({"released_extras": {"a": 3}}, "extras holds 'a', which is no ordinary tensor; expected a state dict"),
    ):
        assert refusal(write("vse_infty", lambda content: content.update(change))).startswith(message)  # noqa: B023
    path = write("vse_infty", lambda content: content["model"].pop("text_encoder.linear.bias"))
    with pytest.raises(InputError, match="1 key missing .text_encoder.linear.bias."):
        load_model(read_checkpoint(path))


def test_an_optimizer_of_version_1_with_strange_groups_reads_without_a_crash(write):
    for groups in (None, [3], [{"name": ["bert"]}], [{}]):
        path = write("vse_infty", lambda content: content.update(optimizer={"param_groups": groups}))  # noqa: B023
        assert read_checkpoint(path).optimizer == {"param_groups": groups}


def test_the_best_epoch_of_an_earlier_version_was_chosen_on_its_validation_split_and_the_latest_on_none(write):
    latest = read_checkpoint(write("vse_infty"))
    best = read_checkpoint(write("vse_infty", lambda content: content.update(optimizer=None)))
    assert (latest.chosen_on, best.chosen_on) == (None, "dev")
