"""Time and memory of a training step of CLIP-based ESL with random weights of ViT-B/16: `python -m benchmarks.clip`.

The recipe's step: both towers and the head forward and backward, gradients clipped, the optimizer; 64 images of 224
pixels and captions of COCO's lengths. The first step, which also makes the optimizer's state, is shown apart.
"""

from __future__ import annotations

import argparse
import resource
import time

import torch

from benchmarks.common import machine, print_table
from lib.core.config import ModelConfig
from lib.core.fragments import Tokens
from lib.core.precision import PRECISIONS, set_precision
from lib.datasets.loaders import TrainBatch
from lib.distributed.runner import Runner
from lib.model import build_model, complete
from lib.training.engine import Trainer
from lib.training.losses import build_loss
from lib.training.optim import build_optimizer
from lib.training.schedule import CosineSchedule

TOWER = {"num_hidden_layers": 12, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5, "projection_dim": 512}
IMAGE = TOWER | {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "image_size": 224,
                 "patch_size": 16}  # fmt: skip
TEXT = TOWER | {"hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8, "vocab_size": 49408,
                "max_position_embeddings": 77}  # fmt: skip
COLUMNS = ("step", "seconds", "images/s", "peak GB")


def batch_of(size: int) -> TrainBatch:
    lengths = (torch.randn(size) * 3 + 13.5).round().clamp(7, 40).long()
    ids = torch.randint(1, 49405, (size, int(lengths.max())))
    ids[torch.arange(ids.shape[1]) >= lengths[:, None]] = 0
    ids[torch.arange(size), lengths - 1] = 49407
    return TrainBatch(torch.randn(size, 3, 224, 224), Tokens(ids, lengths), torch.arange(size).numpy())


def peak_gigabytes(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.clip", description=__doc__)
    parser.add_argument("--similarity", default="esl_clip_h")
    parser.add_argument("--clip_output", default="pooled")
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--accumulate", type=int, default=1)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--precision", choices=PRECISIONS, default="float32")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args(argv)
    set_precision(args.precision)
    torch.manual_seed(0)
    device, output = torch.device(args.device), {"clip_output": args.clip_output}
    model = build_model(complete(ModelConfig(args.similarity, "clip", "clip", 512, {}, IMAGE | output, TEXT | output)))
    runner = Runner(model.train(), [device], args.precision)
    criterion = build_loss("contrastive", model, {}).to(device)
    optimizer = build_optimizer(model, criterion, "transformers_adamw", 3e-5, weight_decay=0.2, pretrained_rate=1e-6)
    schedule = CosineSchedule(embedding_warmup_epochs=0, staged=True)
    trainer = Trainer(runner, criterion, optimizer, schedule, 1.0, args.accumulate)
    batch, rows = batch_of(args.batch_size), []
    for step in range(args.steps):
        began = time.perf_counter()
        loss, _ = trainer.step(batch, schedule.at(1, step, 1000))
        float(loss)  # waits for a GPU
        seconds = time.perf_counter() - began
        rows.append((step + 1, seconds, args.batch_size / seconds, peak_gigabytes(device)))
    print(f"{machine()}, {torch.get_num_threads()} threads")
    print_table(rows, COLUMNS)


if __name__ == "__main__":
    main()
