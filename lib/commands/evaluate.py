"""Scores a split with each checkpoint and judges the scores, as eval.py does."""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lib.checkpoint import Checkpoint, load_model, read_checkpoint
from lib.checkpoint.reading import checkpoint_file
from lib.checkpoint.zero_shot import save_zero_shot
from lib.commands.flags import image_limits, machine_paths
from lib.core.precision import set_precision
from lib.core.provenance import provenance
from lib.datasets import data_set
from lib.datasets.inputs import Inputs, open_inputs
from lib.distributed.launch import is_main, joined, own_devices
from lib.distributed.runner import build_runner
from lib.evaluation import report
from lib.evaluation.matrices.stored import checkpoint_hash, save_results
from lib.evaluation.matrices.together import items_of
from lib.evaluation.protocols import PROTOCOLS, Scores
from lib.evaluation.queries import answer, save_queries, table_paths
from lib.evaluation.tables import Table, printed
from lib.files.writing import check_target, check_writable, write_json
from lib.inference.input_spec import input_spec
from lib.inference.scoring import SplitScores, score_split
from lib.model import describe
from lib.similarity.alignment import Backend


class OutputPlace(NamedTuple):
    """A checkpoint's file, the folder of its results, and the ending that tells their names apart in it."""

    checkpoint: Path
    folder: Path
    ending: str


class Outputs(NamedTuple):
    """The files of a checkpoint's results: its figures as JSON, the matrix, and the name of the tables of queries."""

    figures: Path  # beside the matrix where that is saved
    matrix: Path | None
    queries: Path | None


class Opened(NamedTuple):
    """A checkpoint with everything that its evaluation reads and writes."""

    checkpoint: Checkpoint
    path: Path
    inputs: Inputs
    files: list[Path]  # whose hashes the results record
    references: dict[str, Any]  # by protocol, the annotations that it compares with
    outputs: Outputs


class Evaluated(NamedTuple):
    """The results of a checkpoint, as the tables of one and of several checkpoints show them."""

    name: str
    model: str | None  # as published figures name it, None where they don't apply
    n_images: int
    rows: list[report.Row]
    judged: dict[str, dict[str, Any]]  # by protocol, its figures


def evaluate_all(args: argparse.Namespace) -> None:
    """Evaluates every checkpoint, prints its tables and writes its figures."""
    if args.zero_shot:
        args.model_path = [save_zero_shot(args.zero_shot, check_writable(args.output, "--output"))]
    with joined(args.device):
        set_precision(args.precision)
        devices = own_devices(args.device)
        evaluated = [evaluate(args, place, devices) for place in output_places(args)]
        models = [report.ModelResult(each.name, each.rows, each.model) for each in evaluated]
        if len(models) > 1 or report.has_published(models):
            show(args, report.summary_table(models))
        for name in args.protocols if len(models) > 1 else ():
            show(args, *protocol_tables(name, evaluated))


def evaluate(args: argparse.Namespace, place: OutputPlace, devices: list) -> Evaluated:
    """Opens a checkpoint, scores the split with it, judges the scores and records the results."""
    began = time.perf_counter()
    opened = open_checkpoint(args, place)
    say(args, f"{opened.path}: {opened.checkpoint.description}")
    scores = score(args, opened, devices)
    evaluated = judge(args, opened, scores)
    show(args, report.recall_table(evaluated.rows))
    for name in args.protocols:
        show(args, *protocol_tables(name, [evaluated], alone=len(args.model_path) == 1))
    if is_main():
        save_outputs(args, opened, scores.matrix, as_record(args, opened, evaluated, devices))
    say(args, f"{time.perf_counter() - began:.1f} s\n")
    return evaluated


def open_checkpoint(args: argparse.Namespace, place: OutputPlace) -> Opened:
    """Reads the checkpoint and opens the split for it. Raises InputError, before the work, if a file is in the way."""
    paths = machine_paths(args)
    checkpoint = read_checkpoint(place.checkpoint, paths)
    spec = input_spec(checkpoint.config, paths)
    inputs = open_inputs(args.data_path, args.dataset, args.split, spec, args.limit, image_limits(args))
    outputs = output_files(args, place, inputs.split.limited)
    references = {name: PROTOCOLS[name].read(args.data_path, inputs.split.image_ids) for name in args.protocols}
    files = inputs.split.read_files
    if spec.transform:
        files = [*files, Path(args.data_path) / "id_mapping.json"]
    return Opened(checkpoint, place.checkpoint, inputs, files, references, outputs)


def score(args: argparse.Namespace, opened: Opened, devices: list) -> SplitScores:
    """The scores of the split's images and captions, with their vectors where a protocol was asked for."""
    backend = Backend(args.kernels, args.score_memory and args.score_memory << 20)
    runner = build_runner(load_model(opened.checkpoint), devices, args.precision, backend)
    return score_split(runner, opened.inputs, args.batch_size, args.workers, vectors=bool(opened.references))


def judge(args: argparse.Namespace, opened: Opened, scores: SplitScores) -> Evaluated:
    """The recalls of the scores, and the figures of each protocol."""
    checkpoint, split, data = opened.checkpoint, opened.inputs.split, data_set(args.dataset)
    limit = args.limit if split.limited else None
    owners = split.image_of_caption
    rows = report.evaluate_matrix(data, scores.matrix, owners, args.split, limit, checkpoint.chosen_on)
    judged = {
        name: PROTOCOLS[name].evaluate(Scores(**vars(scores)), reference)
        for name, reference in opened.references.items()
    }
    model = describe(checkpoint.config) if data.published else None
    return Evaluated(f"{opened.path.parent.name}/{opened.path.name}", model, split.n_images, rows, judged)


def as_record(args: argparse.Namespace, opened: Opened, evaluated: Evaluated, devices: list) -> dict[str, Any]:
    """The results file: which model scored which split, where and from which files, and the figures."""
    checkpoint, split = opened.checkpoint, opened.inputs.split
    record = {
        "dataset": args.dataset,
        "split": args.split,
        "limit": args.limit if split.limited else None,
        "checkpoint": opened.path.name,
        "checkpoint_hash": checkpoint_hash(opened.path),
        "chosen_on": checkpoint.chosen_on,
        "model": checkpoint.description,
        "config": dataclasses.asdict(checkpoint.config),
        "images": split.n_images,
        "captions": split.n_captions,
        "precision": args.precision,
        "kernels": args.kernels,
        **provenance(devices, opened.files),
        "results": evaluated.rows,
    }
    for figures in evaluated.judged.values():
        record |= figures
    if len(set(np.bincount(split.image_of_caption))) > 1:  # an ensemble needs to know whose captions are whose
        record["image_of_caption"] = split.image_of_caption
    return record


def save_outputs(args: argparse.Namespace, opened: Opened, matrix: np.ndarray, record: dict[str, Any]) -> None:
    """Writes the figures as JSON, with the matrix (N, C) and the tables of queries if they were asked for."""
    outputs, split = opened.outputs, opened.inputs.split
    if outputs.matrix:
        save_results(outputs.matrix, matrix, record)
        say(args, f"matrix:  {outputs.matrix}, its figures in {outputs.figures.name}")
    else:
        write_json(outputs.figures, record)
        say(args, f"figures: {outputs.figures}")
    if outputs.queries:
        answers = answer(matrix, split.image_of_caption)
        for path in save_queries(outputs.queries, answers, items_of(split, args.data_path)):
            say(args, f"queries: {path}")


def say(args: argparse.Namespace, line: str) -> None:
    """Prints a line that is no table: stdout is for tables alone if they are to be pasted."""
    if is_main():
        print(line, file=sys.stdout if args.format == "text" else sys.stderr)


def show(args: argparse.Namespace, *tables: Table) -> None:
    print(printed(tables, args.format), end="\n" if args.format == "text" else "\n\n")  # a gap between pasted tables


def protocol_tables(protocol: str, evaluated: list[Evaluated], alone: bool = True) -> list[Table]:
    """A protocol's tables; published figures of such a gallery stand below the last table only."""
    known = evaluated[0].model is not None and evaluated[0].n_images == PROTOCOLS[protocol].published_images
    return PROTOCOLS[protocol].tables([(each.name, each.judged[protocol]) for each in evaluated], known and alone)


def output_files(args: argparse.Namespace, place: OutputPlace, limited: bool) -> Outputs:
    """The files that will be written; a part of a split never replaces the whole.

    Raises InputError if a file can't be written.
    """
    folder, ending = place.folder, f"{'_limited' if limited else ''}{place.ending}"
    matrix = folder / f"results_{args.dataset}{ending}.npy" if args.save_results else None
    figures = matrix.with_suffix(".json") if matrix else folder / f"metrics_{args.dataset}_{args.split}{ending}.json"
    for path in filter(None, (figures, matrix)):
        check_target(path, "--output")
    queries = None
    if args.save_queries:
        queries = folder / args.save_queries.with_stem(f"{args.save_queries.stem}{ending}")
        for path in table_paths(queries).values():
            check_target(path, "--save_queries")
    return Outputs(figures, matrix, queries)


def output_places(args: argparse.Namespace) -> list[OutputPlace]:
    """The place of each checkpoint's results; a checkpoint that is named twice has one.

    Raises InputError for a folder of several checkpoints, and for one that can't be written.
    """
    paths = [checkpoint_file(path) for path in args.model_path]
    folders = [Path(args.output) if args.output else path.parent for path in paths]
    for folder in folders:
        check_writable(folder, "--output")
        if args.save_queries:
            check_writable((folder / args.save_queries).parent, "--save_queries")
    shared = [folders.count(folder) > 1 for folder in folders]
    endings = [f"_{path.parent.name}_{path.stem}" if each else "" for path, each in zip(paths, shared, strict=True)]
    return list(dict.fromkeys(map(OutputPlace, paths, folders, endings)))
