"""What the tests of the scripts share: quick runs on the tiny sample data set, and readers of what a run leaves."""

from __future__ import annotations

import contextlib
import shutil
import struct
from pathlib import Path

import torch

import eval as evaluation_script
import train as training_script
from lib.core.config import ModelConfig
from lib.core.fragments import Fragments, Tokens
from lib.datasets.inputs import Inputs, InputSpec, open_inputs
from lib.datasets.tokenisers import WordPiece, load_tokenizer
from lib.model import complete
from lib.training import tracking  # noqa: F401  first of all it makes protobuf readable

IMG_DIM = 32
BERT = {
    "vocab_size": 60,
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 40,
}
_TOWER = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4, "num_attention_heads": 1,
          "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5, "projection_dim": 12}  # fmt: skip
VIT = {"image_size": 16, "patch_size": 4, "hidden_act": "gelu", "layer_norm_eps": 1e-12, "qkv_bias": True,
       "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "hidden_size": 8, "num_hidden_layers": 4,
       "num_attention_heads": 2, "intermediate_size": 12}  # fmt: skip
SWIN = {"image_size": 16, "patch_size": 1, "hidden_act": "gelu", "layer_norm_eps": 1e-5, "qkv_bias": True,
        "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "embed_dim": 4, "depths": [1, 1, 1, 1],
        "num_heads": [1, 1, 2, 2], "window_size": 2, "mlp_ratio": 2.0, "drop_path_rate": 0.0,
        "use_absolute_embeddings": False}  # fmt: skip
CLIP_IMAGE = _TOWER | {"image_size": 16, "patch_size": 4}
CLIP_TEXT = _TOWER | {"vocab_size": 40, "max_position_embeddings": 10}
HEADS = ("esl_a", "esl_h", "vse_infty")


def train_arguments(sample: Path, folder: Path, *flags, data_name: str = "f30k") -> list[str]:
    """A command line of a run of two short epochs; later flags win over the ones here."""
    arguments = ["--data_path", sample / data_name, "--data_name", data_name, "--bert_path", sample / "bert"]
    arguments += ["--model_name", folder, "--img_dim", IMG_DIM, "--embed_size", 256, "--batch_size", 24]
    arguments += ["--num_epochs", 2, "--workers", 0, "--device", "cpu", "--val_step", 0, "--log_step", 2]
    return [str(argument) for argument in (*arguments, *flags)]


def grid_flags(*flags) -> tuple:
    """Flags of a run on raw images with the tiny backbone: squares of 64 pixels, 2 x 2 cells."""
    encoder = ("--precomp_enc_type", "backbone", "--backbone_source", "tiny", "--input_scale_factor", 0.25)
    return (*encoder, "--num_epochs", 1, "--embedding_warmup_epochs", 0, *flags)


@contextlib.contextmanager
def threads(count: int):
    """Torch's threads for a block: networks this small gain nothing from more than one."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def train(sample: Path, folder: Path, *flags, data_name: str = "f30k") -> Path:
    """Run train.py in this process; returns the folder of its checkpoints."""
    with threads(1):
        training_script.main(train_arguments(sample, folder, *flags, data_name=data_name))
    return folder


def eval_arguments(sample: Path, checkpoint: Path | None, *flags, data_name: str = "f30k") -> list[str]:
    arguments = ["--data_path", sample / data_name, "--dataset", data_name, "--bert_path", sample / "bert"]
    arguments += ["--workers", 0, "--device", "cpu", *(["--model_path", checkpoint] if checkpoint else [])]
    return [str(argument) for argument in (*arguments, *flags)]


def evaluate(sample: Path, checkpoint: Path | None, *flags, data_name: str = "f30k") -> None:
    """Run eval.py in this process."""
    with threads(1):
        evaluation_script.main(eval_arguments(sample, checkpoint, *flags, data_name=data_name))


def copy_precomp(sample: Path, root: Path, data_name: str = "f30k") -> Path:
    """A copy of the sample's features and texts under root/<data_name>, for a test to damage; returns its precomp."""
    return Path(shutil.copytree(sample / data_name / "precomp", root / data_name / "precomp"))


def open_sample(sample: Path, split: str = "dev") -> Inputs:
    """A split of the sample's f30k, its region features and its captions tokenised for the sample's BERT."""
    tokeniser = WordPiece(load_tokenizer(sample / "bert"), {"vocab_size": 1 << 20, "max_position_embeddings": 512})
    return open_inputs(sample / "f30k", "f30k", split, InputSpec(tokeniser, IMG_DIM))


def error_line(main, argv, capsys) -> str:
    """The message of a script that must refuse its input: exit code 2 and one line, without a traceback."""
    capsys.readouterr()
    try:
        main([str(argument) for argument in argv])
    except SystemExit as stop:
        assert stop.code == 2
    else:
        raise AssertionError("the input was accepted")
    return one_error(capsys.readouterr().err)


def one_error(stderr: str) -> str:
    """`stderr` without its "error: ", which must begin its only line."""
    lines = stderr.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), stderr
    return lines[0].removeprefix("error: ")


def content(path: Path) -> dict:
    """What a checkpoint holds."""
    return torch.load(path, weights_only=True)


def differences(first, second, where: str = "") -> list[str]:
    """Places where two nested structures of plain values and tensors are not bit for bit the same."""
    if isinstance(first, dict) and isinstance(second, dict) and first.keys() == second.keys():
        return [place for key in first for place in differences(first[key], second[key], f"{where}/{key}")]
    if isinstance(first, list | tuple) and isinstance(second, list | tuple) and len(first) == len(second):
        pairs = enumerate(zip(first, second, strict=True))
        return [place for i, (one, other) in pairs for place in differences(one, other, f"{where}/{i}")]
    if isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor):
        same = first.dtype == second.dtype and torch.equal(first, second)
    else:
        same = type(first) is type(second) and first == second
    return [] if same else [where]


def run_differences(first: Path, second: Path) -> list[str]:
    """Where two checkpoints differ in weights, optimizer, epoch, step, best RSUM or configuration."""
    one, other = content(first), content(second)
    assert one.keys() == other.keys()
    apart = ("settings", "digests")  # the second of which depend on the first
    return [place for key in one if key not in apart for place in differences(one[key], other[key], key)]


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """(step, value) of every scalar in the TensorBoard event files of a folder: length-prefixed records."""
    from tensorboard_logger.tensorboard_logger import event_pb2

    found: dict[str, list[tuple[int, float]]] = {}
    for file in sorted(Path(folder).glob("events.out.tfevents.*")):
        data, start = file.read_bytes(), 0
        while start < len(data):
            (length,) = struct.unpack_from("<Q", data, start)
            record = data[start + 12 : start + 12 + length]  # after length and its checksum
            assert len(record) == length, f"{file} ends in the middle of a record"
            event = event_pb2.Event.FromString(record)
            for value in event.summary.value:
                found.setdefault(value.tag, []).append((event.step, value.simple_value))
            start += 12 + length + 4
    return found


def small_config(
    similarity: str = "esl_a", grid: bool = False, dropout: float = 0.1, embed_size: int = 256, **options
) -> ModelConfig:
    """A configuration of a network small enough to build in each test; `options` are those of the head and of the image
    encoder by their names (kernel_size, no_imgnorm, img_dim, backbone_source, …)."""
    images = {"backbone_source": "tiny"} if grid else {"img_dim": 16}
    names = {"backbone_source", "input_scale_factor"} if grid else {"img_dim"}
    return complete(ModelConfig(
        similarity, "grid" if grid else "regions", "bert", embed_size,
        {name: value for name, value in options.items() if name not in names},
        images | {name: value for name, value in options.items() if name in names},
        BERT | {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout, "hidden_act": "gelu",
                "type_vocab_size": 2, "layer_norm_eps": 1e-12},
    ))  # fmt: skip


def small_batch(grid: bool = False, count: int = 7, words: int = 9) -> tuple[Fragments | torch.Tensor, Tokens]:
    """Images and captions (count, words) for `small_config`, from torch's random state, with padding."""
    lengths = torch.randint(3, words + 1, (count,))
    lengths[0] = words
    token_ids = torch.randint(1, BERT["vocab_size"], (count, words))
    token_ids[torch.arange(words) >= lengths[:, None]] = 0
    captions = Tokens(token_ids, lengths)
    if grid:
        return torch.randn(count, 3, 64, 64), captions
    mask = torch.rand(count, 6) > 0.2
    mask[:, 0] = True
    return Fragments(torch.randn(count, 6, 16), mask), captions
