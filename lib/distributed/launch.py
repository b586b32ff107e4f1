"""The processes that torchrun starts, and the devices of each; without torchrun there is one process."""

from __future__ import annotations

import contextlib
import datetime
import os
import signal
import sys
import time

import torch
import torch.distributed as dist

from lib.core.errors import InputError

TIMEOUT = datetime.timedelta(minutes=10)  # of a process that hangs; one that dies is noticed at once
PATIENCE = 5  # seconds in which the first process says what is wrong with all of them


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this is the process that writes and speaks."""
    return rank() == 0


def my_slice(count: int) -> slice:
    """The part of `count` items that is this process's, in order."""
    return slice(count * rank() // world_size(), count * (rank() + 1) // world_size())


@contextlib.contextmanager
def joined(device: str | None):
    """Join the processes of torchrun, if it started this one; only the first of them writes to stdout.

    An error that all find is said by the first alone. Raises InputError where another process ended.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1 or "RANK" not in os.environ:
        yield
        return
    try:
        _join(device)
        if not is_main():
            sys.stdout = open(os.devnull, "w")
        yield
        dist.destroy_process_group()
    except InputError as error:
        if is_main():
            raise
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # by which torchrun ends the others once the first has ended
        time.sleep(PATIENCE)
        raise InputError(f"process {rank()}: {error}") from None
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "gloo" not in str(error):
            raise
        if not is_main():
            raise SystemExit(2) from None
        reason = " ".join(str(error).split()).partition(". ")[0][:160]
        raise InputError(
            f"another process of this run ended, and so does this one ({reason}); checkpoints already written are kept"
        ) from None


def _join(device: str | None) -> None:
    if device not in (None, "cpu", "cuda"):
        raise InputError(f"--device {device}: torchrun gives each process a GPU of its own; leave it out, or name cpu")
    on_gpus, local = torch.cuda.is_available() and device != "cpu", int(os.environ.get("LOCAL_RANK", 0))
    if on_gpus:
        if local >= torch.cuda.device_count():
            raise InputError(f"--nproc_per_node: process {local} has no GPU, there are {torch.cuda.device_count()}")
        torch.cuda.set_device(local)
    dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpus else "gloo", timeout=TIMEOUT)


def own_devices(device: str | None) -> list[torch.device]:
    """The devices of this process: those of `visible_devices`, or the one GPU that is its own."""
    devices = visible_devices(device)
    if world_size() > 1 and devices[0].type == "cuda":
        return [torch.device("cuda", torch.cuda.current_device())]
    return devices


def visible_devices(device: str | None = None) -> list[torch.device]:
    """The named device alone, else all visible GPUs, else the CPU. Raises InputError for a device that is not here."""
    if device is not None:
        try:
            named = torch.device(device)
            torch.zeros(1, device=named).item()  # which meta, a device without values, can't give
        except (RuntimeError, AssertionError, NotImplementedError) as error:
            reason = str(error).split("\n")[0].split(". ")[0]
            raise InputError(f"--device '{device}' can't be used ({reason}); expected cpu, cuda or cuda:N") from None
        return [named]
    if torch.cuda.is_available():
        return [torch.device("cuda", index) for index in range(torch.cuda.device_count())]
    return [torch.device("cpu")]
