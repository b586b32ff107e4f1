"""Scripts in a process of their own, which begins as a new interpreter would: everything imported, nothing used.

Importing costs seconds, so a server imports once for all tests and is forked for each of them.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

IMPORTED = ["lib.commands.train", "lib.commands.evaluate", "lib.tools.runs", "tests.killing", "tests.sharing"]
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(IMPORTED)


class Done(NamedTuple):
    """What a process left: its exit status (negative for a signal), and what it wrote."""

    returncode: int
    stdout: str
    stderr: str


def in_a_process(folder: Path, call: Callable, *arguments) -> Done:
    """Run `call(*arguments)` in a process of its own; its output passes through files in `folder`."""
    files = [folder / "stdout.txt", folder / "stderr.txt"]
    process = _context.Process(target=_redirected, args=(files, call, arguments))
    process.start()
    process.join()
    return Done(process.exitcode, *(file.read_text(encoding="utf-8") for file in files))


def _redirected(files: list[Path], call: Callable, arguments: tuple) -> None:
    import torch

    for number, file in enumerate(files, start=1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    sys.argv = ["train.py"]
    torch.set_num_threads(1)
    call(*arguments)
