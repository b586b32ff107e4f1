"""What is measured on a GPU: the other benchmarks at the sizes that count, and the time that steps wait for data."""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

from benchmarks import encoding, ranking, scoring, training_step
from benchmarks.gpu.bench import ALL_NEGATIVES, Bench
from benchmarks.gpu.tables import Table
from lib.core.config import ModelConfig
from lib.datasets.inputs import open_inputs
from lib.datasets.loaders import train_loader
from lib.encoders.bert import bert_values, load_bert_config
from lib.inference.input_spec import input_spec
from lib.model import complete


class Measurement(NamedTuple):
    """A measurement that has not been made yet."""

    title: str
    run: Callable[[], Table]


def measurements(bench: Bench) -> Iterator[Measurement]:
    """All of them, the most important first."""
    sizes, device = bench.sizes, ["--device", bench.device]
    rounds = ["--rounds", sizes.rounds]
    bert = [] if sizes.bert else ["--bert_base"]
    size = ["--embed_size", sizes.embed_size]
    for precision in ("tf32", "bf16"):
        coco = ["--images", sizes.coco[0], "--captions", sizes.coco[1], "--loop_rounds", 0]
        yield _other(bench, f"scoring, {precision}", scoring, coco, size, device, rounds, ["--precision", precision])
    for precision in ("tf32", "bf16"):
        step = ["--batch_size", sizes.batch, "--released", "--precision", precision]
        yield _other(bench, f"training step, {precision}", training_step, step, bert, size, device, rounds)
    yield Measurement("waiting for data", lambda: data_time(bench))
    for backbone in sizes.backbones:
        grid = ["--no_head", "--batch_size", sizes.grid_batch, "--backbone", backbone, "--precision", "bf16"]
        pixels = ["--image_size", sizes.grid_pixels]
        yield _other(bench, f"grid step, {backbone}", training_step, grid, bert, size, pixels, device, rounds)
    encoded = ["--images", sizes.encoded[0], "--captions", sizes.encoded[1], "--batch_size", sizes.batch]
    yield _other(bench, "encoding, bf16", encoding, encoded, bert, size, device, rounds, ["--precision", "bf16"])
    yield _other(bench, "ranking", ranking, ["--images", sizes.coco[0], "--captions", sizes.coco[1], "--runs", 3])
    yield Measurement("memory of the host", host_memory)


def _other(bench: Bench, title: str, benchmark, *arguments: list) -> Measurement:
    def run() -> Table:
        file = bench.folder / "rows.json"
        benchmark.main([str(value) for part in (*arguments, ["--json", file]) for value in part])
        rows = json.loads(file.read_text())["rows"]
        return Table(title, benchmark.COLUMNS, [list(row.values()) for row in rows])

    return Measurement(title, run)


def data_time(bench: Bench) -> Table:
    """Share of a bf16 step's time that passes until its batch is there, features on local disk."""
    paths = {"bert_path": bench.sample / "bert"}
    config = complete(ModelConfig(text_options=bert_values(load_bert_config(paths["bert_path"]))))
    inputs = open_inputs(bench.sample / "coco", "coco", "train", input_spec(config, paths))
    trainer, waited = bench.trainer(bench.model(), "bf16"), 0.0
    workers = min(4, len(os.sched_getaffinity(0)))
    loader = train_loader(inputs, bench.sizes.batch, 0, workers, pin_memory=bench.device.type == "cuda")
    steps, began, asked = 0, None, time.perf_counter()
    for batch in loader:
        if began is None:
            began = asked = time.perf_counter()  # the first batch waits for the workers to start
        waited += time.perf_counter() - asked
        loss, _ = trainer.step(batch, ALL_NEGATIVES)
        steps += 1
        if steps % 10 == 0:
            float(loss)  # as a log line does
        asked = time.perf_counter()
    float(loss)
    whole = time.perf_counter() - began
    columns = ("what", "ms", "share of a step")
    row = [f"waiting for a batch, {workers} workers, {steps} steps", 1e3 * waited / steps, waited / whole]
    return Table("waiting for data", columns, [row])


def host_memory() -> Table:
    """The most memory that this process has had so far."""
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return Table("memory of the host", ("what", "GiB"), [["most of this process so far", used / 2**30]])
