"""A trainer and a run small enough for each test, and what the tests of fit and of resuming share."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from lib.distributed.runner import Runner
from lib.model import build_model
from lib.training.engine import Trainer
from lib.training.losses import HingeTriplet
from lib.training.optim import build_optimizer
from lib.training.run import Run
from lib.training.schedule import Schedule
from lib.training.tracking import Tracker
from tests.helpers import small_config

STEPS = 3
SETTINGS = {"val_split": "dev", "val_step": 0, "save_step": 0, "num_epochs": 2, "log_step": 200, "data_name": "f30k"}


def trainer_of(
    optim: str = "adam", grid: bool = False, rate: float = 1e-3, decay: float = 1e-4, loss: nn.Module | None = None
) -> Trainer:
    model = build_model(small_config("vse_infty", grid)).train()
    loss = loss or HingeTriplet()
    optimizer = build_optimizer(model, loss, optim, rate, 0.02, decay)
    return Trainer(Runner(model, [torch.device("cpu")]), loss, optimizer, Schedule())


def run_in(folder: Path, **settings) -> Run:
    return Run(folder=folder, tracker=Recorder(), settings=SETTINGS | settings)


class Recorder(Tracker):
    """A tracker that keeps what it is given."""

    def __init__(self):
        super().__init__(None)
        self.seen = []

    def scalars(self, step: int, prefix: str = "", **values: float) -> None:
        self.seen += [(step, prefix + name, value) for name, value in values.items()]
