"""What a run is trained with. A new loss or optimizer is a function, and a row here; so schedules in `schedule`."""

from __future__ import annotations

from lib.core.config import Option, Part, lazy
from lib.core.values import not_negative

LOSSES = {
    "hinge": Part(
        "hinge-triplet loss",
        lazy("lib.training.losses:hinge"),
        {"margin": Option(0.2, "hinge: by how much a positive should beat its negatives", not_negative(float))},
    ),
    "contrastive": Part("contrastive loss", lazy("lib.training.losses:contrastive")),
}

# name -> function from parameter groups with `lr` and `weight_decay` to a torch.optim.Optimizer
OPTIMIZERS = {
    "adam": lazy("lib.training.optim:adamw"),
    "sgd": lazy("lib.training.optim:sgd"),
    "transformers_adamw": lazy("lib.training.optim:TransformersAdamW"),
}
