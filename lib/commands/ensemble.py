"""What eval_ensemble.py does: average saved matrices and evaluate the mean."""

from __future__ import annotations

import argparse
import functools
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from lib.core.errors import InputError
from lib.core.provenance import file_record
from lib.evaluation.ensemble import choose_weights, spread
from lib.evaluation.matrices.together import Saved, Setting, check_protocols, open_items, open_saved
from lib.files.writing import check_target, write_json

SCALE_RATIO = 10  # above it the average follows one matrix


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


def check_distinct(paths: list[Path]) -> None:
    """InputError for a matrix that is given twice, under whatever name."""
    names = [path.resolve() for path in paths]
    for number, name in enumerate(names):
        if name in names[:number]:
            raise InputError(f"{paths[number]}: is given twice, so its model would count twice; --weights can do that")


def output_paths(args: argparse.Namespace, paths: list[Path]) -> tuple[Path | None, Path | None]:
    """Where the mean and the figures go; figures stand beside the mean unless --json names a file of their own."""
    folder = args.output or Path()
    mean = folder / args.save_results if args.save_results else None
    if mean and mean.suffix != ".npy":
        raise InputError(f"--save_results {mean}: expected a name that ends in .npy")
    if args.json:
        return mean, folder / args.json
    first = paths[0]
    beside = first / "ensemble.json" if first.is_dir() else first.with_name(f"{first.stem}_ensemble.json")
    return mean, None if mean else folder / beside.name if args.output else beside


def check_output(path: Path, inputs: list[Path]) -> None:
    """Raise InputError now, before the work, when a file can't be written later or would replace one that is read."""
    written = {path.resolve(), path.with_suffix(".json").resolve()}
    for file in inputs:
        if written & {file.resolve(), file.with_suffix(".json").resolve()}:
            raise InputError(f"{path}: would replace a file of {file}, which is read; choose another name")
    for file in (path, path.with_suffix(".json")):
        check_target(file, "--output")


def data_folder(args: argparse.Namespace, setting: Setting) -> str:
    return args.data_path or f"data/{setting.dataset}"


def protocol_images(args: argparse.Namespace, saved: Saved, setting: Setting) -> np.ndarray | None:
    """The ids of the images where protocols ask for them; InputError where they are not defined for such a matrix."""
    if not args.protocols:
        return None
    check_protocols(args.protocols, setting)
    if len(saved.folds) > 1:
        raise InputError(f"--evaluate_{args.protocols[0]} needs whole matrices; folds are only parts of one")
    return open_items(data_folder(args, setting), setting, saved.shapes)[1].image_ids


def tune(args: argparse.Namespace, saved: list[Saved], setting: Setting) -> tuple[list[float], dict[str, Any]]:
    """The best weights on dev, and what they were chosen on; InputError for a split other than dev, or dev twice."""
    if args.weights:
        raise InputError("--tune_on chooses the weights; leave out --weights")
    if len(args.tune_on) != len(saved):
        raise InputError(f"--tune_on: {len(args.tune_on)} matrices for {len(saved)}, expected one of each model")
    dev, dev_setting = open_saved(args.tune_on, setting.dataset)
    for each in dev:
        if each.info is None or dev_setting.split != "dev":
            found = "no JSON file beside it says its split" if each.info is None else f"is of {dev_setting.split_name}"
            raise InputError(f"--tune_on {each.path}: {found}; weights are chosen on dev (eval.py --split dev)")
    if setting.split_name == "dev":
        raise InputError(f"{saved[0].path}: is of dev, as --tune_on is; weights are never chosen on what is reported")
    for ours, theirs in zip(saved, dev, strict=True):
        hashes = [(each.info or {}).get("checkpoint_hash") for each in (ours, theirs)]
        if None not in hashes and hashes[0] != hashes[1]:
            raise InputError(f"--tune_on: {theirs.path} is of another checkpoint than {ours.path}; keep the order")
    weights, rsum = choose_weights([each.folds[0] for each in dev], dev_setting.image_of_caption, bar("tuning", "mean"))
    return weights, {"split": "dev", "rsum": rsum, "inputs": [input_record(each) for each in dev]}


def warn_about_scale(saved: list[Saved], weights: list[float]) -> None:
    """Print a warning when the scores of one matrix spread 10 times as much as another's, with their weights too."""
    spreads = [spread(each.folds) for each in saved]
    weighted = [scale * weight for scale, weight in zip(spreads, weights, strict=True) if weight > 0]
    used = [scale for scale, weight in zip(spreads, weights, strict=True) if weight > 0]
    if max(used) > SCALE_RATIO * min(used) and max(weighted) > SCALE_RATIO * min(weighted):
        listed = ", ".join(f"{each.path} {scale:.3g}" for each, scale in zip(saved, spreads, strict=True))
        print(
            f"warning: the scores differ in scale by more than {SCALE_RATIO}x, so the mean follows the largest "
            f"(standard deviations: {listed}); --weights can balance them",
            file=sys.stderr,
        )


def named(saved: Saved) -> str:
    """The matrix's file, and the model and checkpoint that its JSON file names."""
    known = [str(saved.info[key]) for key in ("model", "checkpoint") if saved.info and saved.info.get(key)]
    return f"{saved.path}{'  ' if known else ''}{', '.join(known)}"


def chosen_on(saved: list[Saved]) -> str | None:
    """The splits on which the models' epochs were chosen, None unless all are known."""
    splits = [each.info.get("chosen_on") if each.info else None for each in saved]
    return ", ".join(dict.fromkeys(splits)) if all(isinstance(split, str) for split in splits) else None


def input_record(saved: Saved, weight: float | None = None) -> dict[str, Any]:
    """A matrix's files with their hashes, its weight, and the checkpoint that its JSON file names."""
    files = sorted(saved.path.glob("?sim_best.*")) if saved.path.is_dir() else [saved.path]
    known = {key: saved.info[key] for key in ("model", "checkpoint", "checkpoint_hash") if key in (saved.info or ())}
    return {"files": [file_record(file) for file in files], "weight": weight, **known}


def save_figures(path: Path, report: dict, asked_for: bool, say) -> None:
    try:
        write_json(path, report)
        say(f"figures saved to {path}")
    except (InputError, OSError) as error:
        if asked_for:
            raise
        print(f"note: the figures were not saved ({error}); --json names another file", file=sys.stderr)


def bar(doing: str, unit: str):
    """A progress bar around whatever is looped over, silent where stderr is no terminal."""
    return functools.partial(tqdm, desc=doing, unit=unit, disable=None, leave=False)
