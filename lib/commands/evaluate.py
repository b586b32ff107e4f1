"""What eval.py does once its flags are understood: score a split with each checkpoint, and judge the scores."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lib.checkpoint import load_model, read_checkpoint
from lib.checkpoint.reading import checkpoint_file
from lib.checkpoint.zero_shot import save_zero_shot
from lib.commands.flags import image_limits, machine_paths
from lib.core.precision import set_precision
from lib.core.provenance import provenance
from lib.datasets import data_set
from lib.datasets.inputs import open_inputs
from lib.distributed.launch import is_main, joined, own_devices
from lib.distributed.runner import build_runner
from lib.evaluation import report
from lib.evaluation.matrices.stored import checkpoint_hash, save_results
from lib.evaluation.matrices.together import items_of
from lib.evaluation.protocols import PROTOCOLS, Scores
from lib.evaluation.queries import Items, answer, save_queries, table_paths
from lib.evaluation.tables import Table, printed
from lib.files.writing import check_target, check_writable, write_json
from lib.inference.input_spec import input_spec
from lib.inference.scoring import score_split
from lib.model import describe
from lib.similarity.alignment import Backend


def evaluate_all(args: argparse.Namespace) -> None:
    """Evaluate every checkpoint, print its tables and write its figures."""
    if args.zero_shot:
        args.model_path = [save_zero_shot(args.zero_shot, check_writable(args.output, "--output"))]
    with joined(args.device):
        set_precision(args.precision)
        devices = own_devices(args.device)
        done = []
        for path, (folder, ending) in output_places(args).items():
            began = time.perf_counter()
            one = evaluate(path, args, devices, functools.partial(output_files, args, folder, ending))
            show(args, report.recall_table(one.rows))
            for name in args.protocols:
                show(args, *judgement(name, [one], alone=len(args.model_path) == 1))
            if is_main():
                write_outputs(args, one)
            say(args, f"{time.perf_counter() - began:.1f} s\n")
            done.append(one._replace(matrix=None, items=None))
        models = [report.ModelResult(one.name, one.rows, one.model) for one in done]
        if len(done) > 1 or report.has_published(models):
            show(args, report.summary_table(models))
        for name in args.protocols if len(done) > 1 else ():
            show(args, *judgement(name, done))


class Outputs(NamedTuple):
    """The files of a checkpoint's results: its figures as JSON, beside the matrix where that is saved, and the name
    under which each direction has a table of queries."""

    figures: Path
    matrix: Path | None
    queries: Path | None


class Evaluated(NamedTuple):
    """What was found of a checkpoint; `judged` are each protocol's figures, `info` is what its results file says."""

    name: str
    model: str | None  # as published figures name it, None where they don't apply
    matrix: np.ndarray | None
    items: Items | None  # the matrix's rows and columns
    rows: list[report.Row]
    judged: dict[str, dict[str, Any]]
    info: dict[str, Any]
    outputs: Outputs


def evaluate(path: Path, args: argparse.Namespace, devices: list, outputs_of: Callable[[bool], Outputs]) -> Evaluated:
    """Score the split with a checkpoint's model and judge the scores; `outputs_of` names the files of a split that is
    limited or not."""
    data, paths = data_set(args.dataset), machine_paths(args)
    checkpoint = read_checkpoint(path, paths)
    config = checkpoint.config
    what = input_spec(config, paths)
    inputs = open_inputs(args.data_path, args.dataset, args.split, what, args.limit, image_limits(args))
    split, outputs = inputs.split, outputs_of(inputs.split.limited)
    files = [*split.read_files, Path(args.data_path) / "id_mapping.json"] if what.transform else split.read_files
    references = {name: PROTOCOLS[name].read(args.data_path, split.image_ids) for name in args.protocols}

    say(args, f"{path}: {checkpoint.description}")
    backend = Backend(args.kernels, args.score_memory and args.score_memory << 20)
    runner = build_runner(load_model(checkpoint), devices, args.precision, backend)
    scores = score_split(runner, inputs, args.batch_size, args.workers, vectors=bool(references))

    limit = args.limit if split.limited else None
    rows = report.evaluate_matrix(data, scores.matrix, split.image_of_caption, args.split, limit, checkpoint.chosen_on)
    found = {
        name: PROTOCOLS[name].evaluate(Scores(**vars(scores)), reference) for name, reference in references.items()
    }
    info = {
        "dataset": args.dataset,
        "split": args.split,
        "limit": limit,
        "checkpoint": path.name,
        "checkpoint_hash": checkpoint_hash(path),
        "chosen_on": checkpoint.chosen_on,
        "model": checkpoint.description,
        "config": dataclasses.asdict(config),
        "images": split.n_images,
        "captions": split.n_captions,
        "precision": args.precision,
        "kernels": args.kernels,
        **provenance(devices, files),
        "results": rows,
    }
    for figures in found.values():
        info |= figures
    if len(set(np.bincount(split.image_of_caption))) > 1:  # an ensemble needs to know whose captions are whose
        info["image_of_caption"] = split.image_of_caption
    return Evaluated(
        name=f"{path.parent.name}/{path.name}",
        model=describe(config) if data.published else None,
        matrix=scores.matrix,
        items=items_of(split, args.data_path),
        rows=rows,
        judged=found,
        info=info,
        outputs=outputs,
    )


def say(args: argparse.Namespace, line: str) -> None:
    """A line that is no table: stdout is for tables alone where they are to be pasted."""
    if is_main():
        print(line, file=sys.stdout if args.format == "text" else sys.stderr)


def show(args: argparse.Namespace, *tables: Table) -> None:
    print(printed(tables, args.format), end="\n" if args.format == "text" else "\n\n")  # a gap between pasted tables


def judgement(protocol: str, evaluated: list[Evaluated], alone: bool = True) -> list[Table]:
    """A protocol's tables; published figures stand where they speak of such a gallery, below the last table only."""
    known = evaluated[0].model is not None and evaluated[0].info["images"] == PROTOCOLS[protocol].published_images
    return PROTOCOLS[protocol].tables([(one.name, one.judged[protocol]) for one in evaluated], known and alone)


def output_files(args: argparse.Namespace, folder: Path, ending: str, limited: bool) -> Outputs:
    """The files that will be written, a part of a split never in the place of the whole; InputError for one that can't
    be."""
    ending = f"{'_limited' if limited else ''}{ending}"
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


def write_outputs(args: argparse.Namespace, one: Evaluated) -> None:
    """The figures as JSON, beside the matrix where that was asked for, and the tables of queries."""
    figures, matrix, queries = one.outputs
    if matrix:
        save_results(matrix, one.matrix, one.info)
        say(args, f"matrix:  {matrix}, its figures in {figures.name}")
    else:
        write_json(figures, one.info)
        say(args, f"figures: {figures}")
    if queries:
        for path in save_queries(queries, answer(one.matrix, one.items.image_of_caption), one.items):
            say(args, f"queries: {path}")


def output_places(args: argparse.Namespace) -> dict[Path, tuple[Path, str]]:
    """The folder of each checkpoint's results, and what is added to their names where checkpoints share a folder.

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
    return dict(zip(paths, zip(folders, endings, strict=True), strict=True))
