"""Averages saved matrices and evaluates their mean, as eval_ensemble.py does. Needs no torch."""

from __future__ import annotations

import argparse
import functools
import math
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from lib.core.errors import InputError
from lib.core.provenance import file_record, provenance
from lib.datasets import data_set
from lib.evaluation.ensemble import average, choose_weights, deviation
from lib.evaluation.matrices.stored import save_results
from lib.evaluation.matrices.together import Saved, Setting, check_protocols, open_items, open_saved
from lib.evaluation.protocols import PROTOCOLS, Scores
from lib.evaluation.report import Row, evaluate_matrix, recall_table
from lib.evaluation.tables import Table, printed
from lib.files.writing import check_target, write_json

SCALE_RATIO = 10  # above it the average follows one matrix


class Ensemble(NamedTuple):
    """Saved matrices, their common setting, and a weight for each; `tuned_on` records what chose the weights."""

    saved: list[Saved]
    setting: Setting
    weights: list[float]
    tuned_on: dict[str, Any] | None = None


class Judgement(NamedTuple):
    """The rows of the mean, each protocol's figures by their names in the JSON file, and the tables of both."""

    rows: list[Row]
    figures: dict[str, Any]
    tables: list[Table]


def average_matrices(args: argparse.Namespace) -> None:
    """Averages the matrices, prints the tables of their mean and writes its figures."""
    mean_path, figures_path = output_paths(args)
    ensemble = open_ensemble(args)
    references = open_references(args, ensemble)
    if args.tune_on:
        ensemble = tune(ensemble, args.tune_on)
    warn_about_scale(ensemble)

    means = average_folds(ensemble)
    judged = judge(ensemble, means, references)

    output = sys.stdout if args.format == "text" else sys.stderr  # stdout is for tables alone if they are to be pasted
    for matrix, weight in zip(ensemble.saved, ensemble.weights, strict=True):
        print(f"{weight:.3f}  {named(matrix)}", file=output)
    print(printed(judged.tables, args.format))
    record = as_record(ensemble, judged)
    if mean_path:
        save_results(mean_path, means[0], record)
        print(f"mean saved to {mean_path}, its figures in {mean_path.stem}.json", file=output)
    if figures_path and save_figures(figures_path, record, must=bool(args.json or args.output)):
        print(f"figures saved to {figures_path}", file=output)


def open_ensemble(args: argparse.Namespace) -> Ensemble:
    """Opens the matrices. Raises InputError unless they belong together and suit the flags."""
    check_distinct(args.matrices)
    weights = check_weights(args.weights, len(args.matrices))
    saved, setting = open_saved(args.matrices, args.dataset, progress=bar("reading", "matrix"))
    if args.save_results and len(saved[0].folds) > 1:
        raise InputError("--save_results needs whole matrices; a folder of five folds is no 5K matrix")
    return Ensemble(saved, setting, weights)


def check_distinct(paths: list[Path]) -> None:
    """Raises InputError if a matrix is given twice, under whatever name."""
    names = [path.resolve() for path in paths]
    for number, name in enumerate(names):
        if name in names[:number]:
            raise InputError(f"{paths[number]}: is given twice, so its model would count twice; --weights can do that")


def check_weights(weights: list[float] | None, n: int) -> list[float]:
    """The weights scaled to sum 1; raises InputError unless there is a sensible one for each of n matrices."""
    if weights is None:
        return [1 / n] * n
    if len(weights) != n:
        raise InputError(f"--weights: {len(weights)} weights for {n} matrices, expected one for each")
    if not all(math.isfinite(weight) and weight >= 0 for weight in weights) or not 0 < sum(weights) < math.inf:
        raise InputError(
            f"--weights: {' '.join(map(str, weights))}, expected numbers of at least 0 with a finite sum above 0"
        )
    return [weight / sum(weights) for weight in weights]


def output_paths(args: argparse.Namespace) -> tuple[Path | None, Path | None]:
    """The files of the mean and of the figures; figures stand beside the mean unless --json names their file.

    Raises InputError if a file that was asked for can't be written, or would replace one that is read.
    """
    folder = args.output or Path()
    mean = folder / args.save_results if args.save_results else None
    if mean and mean.suffix != ".npy":
        raise InputError(f"--save_results {mean}: expected a name that ends in .npy")
    first = args.matrices[0]
    figures = first / "ensemble.json" if first.is_dir() else first.with_name(f"{first.stem}_ensemble.json")
    if args.json:
        figures = folder / args.json
    elif mean:
        figures = None
    elif args.output:
        figures = folder / figures.name
    for path in filter(None, (mean, figures if args.json or args.output else None)):
        check_output(path, [*args.matrices, *(args.tune_on or ())])
    return mean, figures


def check_output(path: Path, inputs: list[Path]) -> None:
    """Raises InputError, before the work, if a file can't be written or would replace one that is read."""
    written = {path.resolve(), path.with_suffix(".json").resolve()}
    for file in inputs:
        if written & {file.resolve(), file.with_suffix(".json").resolve()}:
            raise InputError(f"{path}: would replace a file of {file}, which is read; choose another name")
    for file in (path, path.with_suffix(".json")):
        check_target(file, "--output")


def open_references(args: argparse.Namespace, ensemble: Ensemble) -> dict[str, Any]:
    """The annotations of each protocol that was asked for. Raises InputError if it is not defined for the matrices."""
    if not args.protocols:
        return {}
    saved, setting = ensemble.saved[0], ensemble.setting
    check_protocols(args.protocols, setting)
    if len(saved.folds) > 1:
        raise InputError(f"--evaluate_{args.protocols[0]} needs whole matrices; folds are only parts of one")
    folder = args.data_path or f"data/{setting.dataset}"
    image_ids = open_items(folder, setting, saved.shapes)[1].image_ids
    return {name: PROTOCOLS[name].read(folder, image_ids) for name in args.protocols}


def tune(ensemble: Ensemble, paths: list[Path]) -> Ensemble:
    """The ensemble with the best weights on dev, by the models' matrices in `paths`.

    Raises InputError if these are not of the same models on dev, or if the ensemble itself is of dev.
    """
    saved, setting = ensemble.saved, ensemble.setting
    if len(paths) != len(saved):
        raise InputError(f"--tune_on: {len(paths)} matrices for {len(saved)}, expected one of each model")
    dev, dev_setting = open_saved(paths, setting.dataset)
    for matrix in dev:
        if matrix.info is None or dev_setting.split != "dev":
            split = (
                "no JSON file beside it says its split" if matrix.info is None else f"is of {dev_setting.split_name}"
            )
            raise InputError(f"--tune_on {matrix.path}: {split}; weights are chosen on dev (eval.py --split dev)")
    if setting.split_name == "dev":
        raise InputError(f"{saved[0].path}: is of dev, as --tune_on is; weights are never chosen on what is reported")
    for ours, theirs in zip(saved, dev, strict=True):
        hashes = [(each.info or {}).get("checkpoint_hash") for each in (ours, theirs)]
        if None not in hashes and hashes[0] != hashes[1]:
            raise InputError(f"--tune_on: {theirs.path} is of another checkpoint than {ours.path}; keep the order")
    matrices = [matrix.folds[0] for matrix in dev]
    weights, rsum = choose_weights(matrices, dev_setting.image_of_caption, bar("tuning", "mean"))
    tuned_on = {"split": "dev", "rsum": rsum, "inputs": [input_record(matrix) for matrix in dev]}
    return ensemble._replace(weights=weights, tuned_on=tuned_on)


def warn_about_scale(ensemble: Ensemble) -> None:
    """Prints a warning if the scores of one matrix deviate 10 times as much as another's, with their weights too."""
    scales = [deviation(matrix.folds) for matrix in ensemble.saved]
    used = [(scale, scale * weight) for scale, weight in zip(scales, ensemble.weights, strict=True) if weight > 0]
    if all(max(column) > SCALE_RATIO * min(column) for column in zip(*used, strict=True)):
        listed = ", ".join(f"{each.path} {scale:.3g}" for each, scale in zip(ensemble.saved, scales, strict=True))
        print(
            f"warning: the scores differ in scale by more than {SCALE_RATIO}x, so the mean follows the largest "
            f"(standard deviations: {listed}); --weights can balance them",
            file=sys.stderr,
        )


def average_folds(ensemble: Ensemble) -> list[np.ndarray]:
    """The mean of each fold; of whole matrices one mean (N, C)."""
    folds = zip(*(matrix.folds for matrix in ensemble.saved), strict=True)
    return [average(matrices, ensemble.weights, bar("averaging", "block")) for matrices in folds]


def judge(ensemble: Ensemble, means: list[np.ndarray], references: dict[str, Any]) -> Judgement:
    """The recalls of the mean, and the figures of each protocol in `references`."""
    saved, setting = ensemble.saved, ensemble.setting
    scores, owners = means, setting.image_of_caption
    if len(means) == 1:
        scores = means[0]
    rows = evaluate_matrix(data_set(setting.dataset), scores, owners, setting.split, setting.limit, chosen_on(saved))
    name = "mean" if len(saved) > 1 else saved[0].path.name
    tables, figures = [recall_table(rows)], {}
    for protocol, reference in references.items():
        judged = PROTOCOLS[protocol].evaluate(Scores(scores), reference)
        tables += PROTOCOLS[protocol].tables([(name, judged)], False)
        figures |= judged
    return Judgement(rows, figures, tables)


def as_record(ensemble: Ensemble, judged: Judgement) -> dict[str, Any]:
    """The results file: what was averaged, with which weights, and the figures of the mean."""
    return {
        **{key: value for key, value in ensemble.setting._asdict().items() if value is not None},
        "matrices": [str(matrix.path) for matrix in ensemble.saved],
        "weights": ensemble.weights,
        "tuned_on": ensemble.tuned_on,
        "inputs": list(map(input_record, ensemble.saved, ensemble.weights)),
        "chosen_on": chosen_on(ensemble.saved),
        **provenance(),
        "results": judged.rows,
        **judged.figures,
    }


def named(saved: Saved) -> str:
    """The matrix's file, and the model and checkpoint that its JSON file names."""
    known = [str(saved.info[key]) for key in ("model", "checkpoint") if saved.info and saved.info.get(key)]
    return f"{saved.path}{'  ' if known else ''}{', '.join(known)}"


def chosen_on(saved: list[Saved]) -> str | None:
    """The splits on which the models' epochs were chosen, or None unless all are known."""
    splits = [each.info.get("chosen_on") if each.info else None for each in saved]
    return ", ".join(dict.fromkeys(splits)) if all(isinstance(split, str) for split in splits) else None


def input_record(saved: Saved, weight: float | None = None) -> dict[str, Any]:
    """A matrix's files with their hashes, its weight, and the checkpoint that its JSON file names."""
    files = sorted(saved.path.glob("?sim_best.*")) if saved.path.is_dir() else [saved.path]
    known = {key: saved.info[key] for key in ("model", "checkpoint", "checkpoint_hash") if key in (saved.info or ())}
    return {"files": [file_record(file) for file in files], "weight": weight, **known}


def save_figures(path: Path, record: dict[str, Any], must: bool) -> bool:
    """Writes the figures; if they can't be written, raises the error where they `must` be, else prints a note."""
    try:
        write_json(path, record)
    except (InputError, OSError) as error:
        if must:
            raise
        print(f"note: the figures were not saved ({error}); --json names another file", file=sys.stderr)
        return False
    return True


def bar(doing: str, unit: str):
    """A progress bar around whatever is looped over, silent where stderr is no terminal."""
    return functools.partial(tqdm, desc=doing, unit=unit, disable=None, leave=False)
