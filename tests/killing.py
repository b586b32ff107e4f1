"""Start a run again and again, kill it at chosen moments, and compare what it leaves with a run that was never stopped.

python -m tests.killing OUT --kills 10 --terms 3 --seed 0 -- [flags of train.py]

Each start is a fork of this process, which has imported everything and used nothing, so that it costs no import.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

import lib.commands.train as job
import train as script
from lib.training.engine import Trainer
from lib.training.stopping import STOPPED
from tests.helpers import run_differences

MOMENTS = {  # what is counted, and the latest of its occasions that is chosen
    "opening the data": (job, "train_loader", 1),
    "building the optimizer": (job, "build_optimizer", 1),
    "a step": (Trainer, "step", 4),
    "writing a file": (torch, "save", 3),
    "putting a file in its place": (os, "replace", 4),
    "validation": (job, "score_split", 1),
}


def start(argv: list[str], log: Path, before=None) -> int:
    """Run train.py in a fork, its output added to a file; its exit status, negative for a signal."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(output, 1)
            os.dup2(output, 2)
            torch.set_num_threads(1)
            if before:
                before()
            script.main(argv)
            code = 0
        except SystemExit as stop:
            code = stop.code or 0
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def strike(number: int, moment: str, count: int, afterwards: bool):
    """A function that makes this process send itself a signal at the `count`th time that it comes to a moment."""
    where, name, _ = MOMENTS[moment]
    called, seen = getattr(where, name), 0

    def counting(*args, **kwargs):
        nonlocal seen
        seen += 1
        if seen != count:
            return called(*args, **kwargs)
        if moment == "writing a file":  # half of it
            called(*args, **kwargs)
            os.truncate(args[1], os.path.getsize(args[1]) // 2)
        elif afterwards:
            result = called(*args, **kwargs)
            os.kill(os.getpid(), number)
            return result
        os.kill(os.getpid(), number)
        return called(*args, **kwargs)

    return lambda: setattr(where, name, counting)


def survive(argv: list[str], log: Path, kills: int, terms: int, seed: int) -> None:
    """Kill a run `kills` times by SIGKILL and `terms` times by SIGTERM, each at a moment that the seed chooses."""
    rng = random.Random(seed)
    numbers = [signal.SIGKILL] * kills + [signal.SIGTERM] * terms
    rng.shuffle(numbers)
    for number in numbers:
        moment, afterwards = rng.choice(list(MOMENTS)), rng.random() < 0.5
        count = rng.randint(1, MOMENTS[moment][2])
        code = start(argv, log, strike(number, moment, count, afterwards))
        where = f"{'after' if afterwards else 'before'} {moment}, occasion {count}"
        print(f"{signal.Signals(number).name} {where}: exit status {code}")
        expected = -number if number == signal.SIGKILL else STOPPED
        if code != expected:
            raise SystemExit(f"exit status {code}, expected {expected}; see {log}")


def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    own, flags = argv[: argv.index("--")], argv[argv.index("--") + 1 :]
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--terms", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(own)
    began = time.perf_counter()
    args.out.mkdir(parents=True)
    killed, whole, log = args.out / "killed", args.out / "whole", args.out / "output.txt"
    flags += ["--resume", "auto", "--model_name"]
    survive([*flags, str(killed)], log, args.kills, args.terms, args.seed)
    for folder in (killed, whole):
        if start([*flags, str(folder)], log) != 0:
            raise SystemExit(f"{folder}: the run did not end; see {log}")
    for name in ("checkpoint.pth", "model_best.pth"):
        if found := run_differences(killed / name, whole / name):
            raise SystemExit(f"{name} differs: {', '.join(found[:5])}")
    if left := sorted(path.name for path in killed.glob(".*") if path.name != ".lock"):
        raise SystemExit(f"left behind: {', '.join(left)}")
    seconds = time.perf_counter() - began
    print(f"{args.kills} SIGKILLs, {args.terms} SIGTERMs: bit for bit the run that was never stopped ({seconds:.0f} s)")


if __name__ == "__main__":
    main()
