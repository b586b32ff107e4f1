#!/usr/bin/env python3
"""Average saved similarity matrices and evaluate the mean: `eval_ensemble.py a.npy b.npy ...` (see --help)."""

from __future__ import annotations

import argparse
import math
import os
import re
import sys
from pathlib import Path

import numpy as np
from tqdm import tqdm

from lib.command_line import Parser, script
from lib.datasets import DATA_SETS, data_set
from lib.errors import InputError, shown
from lib.evaluation.report import evaluate_matrix, format_table
from lib.evaluation.results import load_scores, save_results
from lib.files import write_json

BLOCK_ROWS = 128  # rows of every matrix held at once while averaging
SCALE_RATIO = 10  # above it the average follows one matrix


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(
        prog="eval_ensemble.py",
        description="Average saved similarity matrices (rows images, columns captions) and evaluate the mean.",
        epilog='A matrix is an .npy of eval.py --save_results, an .npy with a pickled {"npts", "sims"}, a .txt of '
        "numpy.savetxt, or a folder of the five COCO folds 0sim_best to 4sim_best (.txt, .npy). No file can run code.",
    )
    parser.add_argument("matrices", nargs="+", metavar="MATRIX", help="one or more saved matrices")
    parser.add_argument("--weights", nargs="+", type=float, help="one weight per matrix (default: equal weights)")
    parser.add_argument("--dataset", metavar="NAME", help="default: from the JSON file beside the matrices")
    parser.add_argument("--save_results", metavar="OUT.npy", help="save the mean, with a JSON file beside it")
    parser.add_argument("--json", metavar="OUT", help="the figures as JSON (default: beside the first matrix)")
    return parser.parse_args(argv)


@script
def main(argv: list[str] | None = None) -> None:
    args = parse_arguments(argv)
    paths = [Path(path) for path in args.matrices]
    weights = check_weights(args.weights, len(paths))
    if args.dataset:
        data_set(args.dataset, "--dataset")
    json_path = Path(args.json) if args.json else beside(paths[0])
    for output in filter(None, (args.save_results, args.json)):
        check_output(Path(output), paths)

    loaded = [load_scores(path) for path in tqdm(paths, desc="reading", unit="matrix", disable=None)]
    matrices = [scores if isinstance(scores, list) else [scores] for scores, _ in loaded]
    infos = [info for _, info in loaded]
    check_shapes(paths, matrices)
    setting = common_setting(paths, infos, args.dataset)
    if len(matrices[0]) > 1 and args.save_results:
        raise InputError("--save_results needs whole matrices; a folder of five folds is no 5K matrix")
    warn_about_scale(paths, matrices, weights)

    means = [average(folds, weights) for folds in zip(*matrices, strict=True)]
    scores = means if len(means) > 1 else means[0]
    owners = setting["image_of_caption"]
    rows = evaluate_matrix(
        data_set(setting["dataset"]),
        scores,
        None if owners is None else np.asarray(owners),
        setting["split"],
        setting["limit"],
    )
    print(format_table(rows))

    report = {
        **{key: value for key, value in setting.items() if value is not None},
        "matrices": [str(path) for path in paths],
        "weights": weights,
        "results": [row.as_dict() for row in rows],
    }
    if args.save_results:
        save_results(args.save_results, scores, report)
        print(f"mean saved to {args.save_results}")
    save_figures(json_path, report, asked_for=bool(args.json))


def check_weights(weights: list[float] | None, n: int) -> list[float]:
    """The weights scaled to sum 1; raises InputError unless there is a sensible one for each of n matrices."""
    if weights is None:
        return [1 / n] * n
    if len(weights) != n:
        raise InputError(f"--weights: {len(weights)} weights for {n} matrices, expected one for each")
    if not all(math.isfinite(weight) and weight >= 0 for weight in weights) or sum(weights) == 0:
        raise InputError(f"--weights: {' '.join(map(str, weights))}, expected numbers of at least 0 that are not all 0")
    return [weight / sum(weights) for weight in weights]


def beside(path: Path) -> Path:
    return path / "ensemble.json" if path.is_dir() else path.with_name(f"{path.stem}_ensemble.json")


def check_output(path: Path, inputs: list[Path]) -> None:
    """Raise InputError now, before the work, when a file can't be written later or would replace one that is read."""
    written = {path.resolve(), path.with_suffix(".json").resolve()}
    for file in inputs:
        if written & {file.resolve(), file.with_suffix(".json").resolve()}:
            raise InputError(f"{path}: would replace a file of {file}, which is read; choose another name")
    folder = path.absolute().parent
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK) or path.is_dir():
        raise InputError(f"{path}: cannot be written; choose a file in a folder you may write to")


def check_shapes(paths: list[Path], matrices: list[list[np.ndarray]]) -> None:
    shapes = [[matrix.shape for matrix in folds] for folds in matrices]
    for path, shape in zip(paths, shapes, strict=True):
        if shape != shapes[0]:
            raise InputError(
                f"{path} is {describe(shape)}, but {paths[0]} is {describe(shapes[0])}; "
                "only matrices of the same images and captions can be averaged"
            )


def describe(shapes: list[tuple[int, int]]) -> str:
    texts = [f"{images} x {captions}" for images, captions in shapes]
    return texts[0] if len(texts) == 1 else f"{len(texts)} folds of {', '.join(dict.fromkeys(texts))}"


def common_setting(paths: list[Path], infos: list[dict | None], dataset: str | None) -> dict:
    """dataset, split, limit and image_of_caption that the JSON files agree on; raises InputError where they don't."""
    setting = {}
    for key in ("dataset", "split", "limit", "image_of_caption"):
        stated = [(str(path), info.get(key)) for path, info in zip(paths, infos, strict=True) if info is not None]
        if key in ("dataset", "split"):
            stated = [(source, value) for source, value in stated if value is not None]
            for source, value in stated:
                if not isinstance(value, str):
                    beside = Path(source).with_suffix(".json")
                    raise InputError(f"{beside}: {key} is {shown(value)}, expected a name; save the results again")
        if key == "dataset" and dataset:
            stated.insert(0, ("--dataset", dataset))
        for source, value in stated[1:]:
            if value != stated[0][1]:
                values = "" if key == "image_of_caption" else f" ({value} and {stated[0][1]})"
                raise InputError(
                    f"{source} and {stated[0][0]} differ in {key}{values}; they can't be evaluated together"
                )
        setting[key] = stated[0][1] if stated else None
    setting["dataset"] = setting["dataset"] or guess_dataset(paths)
    return setting


def guess_dataset(paths: list[Path]) -> str:
    """From the names (`results_coco.npy`), since no JSON file says so; folders of five folds are COCO's."""
    found = {word for path in paths for word in re.split(r"[_.]", path.name.lower())} & set(DATA_SETS)
    if not found and all(path.is_dir() for path in paths):
        return "coco"
    if len(found) != 1:
        raise InputError(f"{paths[0]}: no JSON file beside it says which dataset this is; give --dataset")
    return found.pop()


def warn_about_scale(paths: list[Path], matrices: list[list[np.ndarray]], weights: list[float]) -> None:
    """Print a warning when the scores of one matrix spread 10 times as much as another's, with their weights too."""
    spreads = [spread(folds) for folds in matrices]
    weighted = [scale * weight for scale, weight in zip(spreads, weights, strict=True) if weight > 0]
    used = [scale for scale, weight in zip(spreads, weights, strict=True) if weight > 0]
    if max(used) > SCALE_RATIO * min(used) and max(weighted) > SCALE_RATIO * min(weighted):
        listed = ", ".join(f"{path} {scale:.3g}" for path, scale in zip(paths, spreads, strict=True))
        print(
            f"warning: the scores differ in scale by more than {SCALE_RATIO}x, so the mean follows the largest "
            f"(standard deviations: {listed}); --weights can balance them",
            file=sys.stderr,
        )


def spread(folds: list[np.ndarray]) -> float:
    """Standard deviation of the scores in up to 256 rows, evenly chosen."""
    sample = [np.asarray(fold[:: max(1, len(fold) * len(folds) // 256)], np.float64) for fold in folds]
    return float(np.std(np.concatenate([rows.ravel() for rows in sample])))


def average(matrices: tuple[np.ndarray, ...], weights: list[float]) -> np.ndarray:
    """The weighted mean (N, C) in float32, summed in float64 by blocks of rows; a single matrix stays as it is."""
    if len(matrices) == 1:
        return matrices[0]
    mean = np.empty(matrices[0].shape, np.float32)
    for start in tqdm(range(0, len(mean), BLOCK_ROWS), desc="averaging", unit="block", disable=None, leave=False):
        rows = slice(start, start + BLOCK_ROWS)
        total = np.zeros(mean[rows].shape, np.float64)
        for matrix, weight in zip(matrices, weights, strict=True):
            if weight:
                total += np.multiply(matrix[rows], weight, dtype=np.float64)
        mean[rows] = total
    return mean


def save_figures(path: Path, report: dict, asked_for: bool) -> None:
    try:
        write_json(path, report)
        print(f"figures saved to {path}")
    except (InputError, OSError) as error:
        if asked_for:
            raise
        print(f"note: the figures were not saved ({error}); --json names another file", file=sys.stderr)


if __name__ == "__main__":
    main()
