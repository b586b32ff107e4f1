"""What the checks and measurements of a GPU share: the device, sizes, a folder for files, models and batches."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

import numpy as np
import torch
from transformers import BertConfig

from lib.checkpoint import load_model, read_checkpoint
from lib.core.config import ModelConfig
from lib.core.fragments import Fragments, Tokens
from lib.core.precision import set_precision
from lib.datasets.loaders import TrainBatch
from lib.distributed.runner import Runner
from lib.encoders.bert import bert_values
from lib.model import MatchingModel, build_model, complete
from lib.tools.sample.writing import SampleConfig, write_sample
from lib.training.engine import Trainer
from lib.training.losses import HingeTriplet
from lib.training.optim import build_optimizer
from lib.training.schedule import Phase, Schedule

SMALL_BERT = {"num_hidden_layers": 6, "hidden_size": 384, "num_attention_heads": 12, "intermediate_size": 1536}
ALL_NEGATIVES = Phase(learning_rate=1.0, hardest=False, loss_scale=1.0, fixed_blocks=0)


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How large everything is."""

    coco: tuple[int, int] = (5000, 25000)  # images and captions to score
    bert: dict = dataclasses.field(default_factory=dict)  # what differs from BERT-base
    embed_size: int = 512
    batch: int = 128
    grid_batch: int = 32
    grid_pixels: int = 512
    backbones: tuple[str, ...] = ("detector", "wsl", "imagenet_res152")
    encoded: tuple[int, int] = (5000, 25000)  # images and captions to encode
    sample: SampleConfig = SampleConfig(images=1000, test_images=200)
    epochs: int = 5  # on the sample
    rounds: int = 5
    seconds: int = 520  # after which nothing new is measured


FULL = Sizes()
QUICK = Sizes(
    coco=(1000, 5000), backbones=("detector",), encoded=(1000, 5000), epochs=2, rounds=2, seconds=100,
    sample=SampleConfig(images=400, test_images=100),
)  # fmt: skip


@dataclasses.dataclass
class Bench:
    """A device to look at; files are written to `folder`."""

    device: torch.device
    sizes: Sizes
    folder: Path

    def model(self, similarity: str = "esl_a", backbone: str | None = None, dropout: float = 0.0) -> MatchingModel:
        """A model with random weights, on the CPU, the same at every call."""
        torch.manual_seed(0)
        drops = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
        return build_model(complete(ModelConfig(
            similarity, "grid" if backbone else "regions", embed_size=self.sizes.embed_size,
            image_options={"backbone_source": backbone} if backbone else {},
            text_options=bert_values(BertConfig(**self.sizes.bert, **drops)),
        )))  # fmt: skip

    def trainer(self, model: MatchingModel, precision: str = "float32", **settings) -> Trainer:
        """A trainer of `model`, which it moves to the device."""
        set_precision(precision)
        loss = HingeTriplet()
        runner = Runner(model.train(), [self.device], precision)
        return Trainer(runner, loss, build_optimizer(model, loss, "adam", 5e-4), Schedule(), **settings)

    def batch(self, count: int | None = None, pixels: int | None = None, seed: int = 0) -> TrainBatch:
        """A batch on the CPU: regions of which some are dropped, or raw images, and captions of 8 to 20 tokens."""
        rng, count = np.random.default_rng(seed), count or self.sizes.batch
        generator = torch.Generator().manual_seed(seed)
        if pixels:
            images = torch.rand(count, 3, pixels, pixels, generator=generator)
        else:
            features = torch.rand(count, 36, 2048, generator=generator)
            images = Fragments(features, rng.random((count, 36)) < 0.8)
        lengths = rng.integers(8, 21, count)
        tokens = Tokens(torch.randint(1000, 30000, (count, 20), generator=generator), lengths)
        tokens.ids[~torch.from_numpy(tokens.real)] = 0
        return TrainBatch(images, tokens, np.arange(count))

    @functools.cached_property
    def sample(self) -> Path:
        """Sample data of COCO's form, with regions of size 2048 as real ones have."""
        config = dataclasses.replace(self.sizes.sample, img_dim=2048)
        write_sample(self.folder / "sample", config, ["coco"])
        return self.folder / "sample"

    def trained(self, similarity: str) -> MatchingModel:
        """A model of the sample data, trained by train.py on the device."""
        import train

        folder = self.folder / similarity
        arguments = ["--data_path", self.sample / "coco", "--data_name", "coco", "--bert_path", self.sample / "bert",
                     "--model_name", folder, "--similarity", similarity, "--img_dim", 2048, "--embed_size", 256,
                     "--batch_size", 64, "--num_epochs", self.sizes.epochs, "--lr_update", self.sizes.epochs - 1,
                     "--learning_rate", 1e-3, "--vse_mean_warmup_epochs", self.sizes.epochs, "--workers", 0,
                     "--device", self.device]  # fmt: skip
        if not (folder / "model_best.pth").exists():
            train.main([str(argument) for argument in arguments])
        return load_model(read_checkpoint(folder / "model_best.pth"))


def gradients(model: MatchingModel) -> dict[str, torch.Tensor]:
    """The gradients of a model in float64 on the CPU."""
    return {name: p.grad.double().cpu() for name, p in model.named_parameters() if p.grad is not None}


def distance(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    """The norm of the difference over all tensors, relative to that of `expected`; infinite where one is missing."""
    if found.keys() != expected.keys():
        return float("inf")
    difference = sum(float((found[name] - expected[name]).square().sum()) for name in expected)
    return (difference / sum(float(x.square().sum()) for x in expected.values())) ** 0.5
