#!/usr/bin/env python3
"""Average saved similarity matrices and evaluate the mean: `eval_ensemble.py a.npy b.npy ...` (see --help)."""

from __future__ import annotations

import argparse
import functools
import sys
from pathlib import Path

from lib.commands.ensemble import (
    bar,
    check_distinct,
    check_output,
    check_weights,
    chosen_on,
    data_folder,
    input_record,
    named,
    output_paths,
    protocol_images,
    save_figures,
    tune,
    warn_about_scale,
)
from lib.console.parser import Parser
from lib.console.script import script
from lib.core.errors import InputError
from lib.core.provenance import provenance
from lib.datasets import data_set
from lib.evaluation.ensemble import average
from lib.evaluation.matrices.stored import save_results
from lib.evaluation.matrices.together import open_saved
from lib.evaluation.protocols import PROTOCOLS, Scores
from lib.evaluation.report import evaluate_matrix, recall_table
from lib.evaluation.tables import FORMS, printed


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(
        prog="eval_ensemble.py",
        description="Average saved similarity matrices (rows images, columns captions) and evaluate the mean.",
        epilog='A matrix is an .npy of eval.py --save_results, an .npy with a pickled {"npts", "sims"}, a .txt of '
        "numpy.savetxt, or a folder of the five COCO folds 0sim_best to 4sim_best (.txt, .npy). No file can run code.",
    )
    add = parser.add_argument
    add("matrices", nargs="+", metavar="MATRIX", help="one or more saved matrices")
    add("--weights", nargs="+", type=float, help="one weight per matrix (default: equal weights)")
    tuned = "matrices of the same models on dev, in the same order: their best weights are used, by RSUM on dev alone"
    add("--tune_on", nargs="+", metavar="MATRIX", help=tuned)
    add("--dataset", help="data set of the matrices (default: from the JSON file beside them)")
    for name, protocol in PROTOCOLS.items():
        add(f"--evaluate_{name}", action="append_const", const=name, dest="protocols", help=protocol.help)
    add("--data_path", metavar="DIR", help="for --evaluate_…: folder of the data set (default: data/<dataset>)")
    add("--save_results", metavar="FILE", help="save the mean, with the figures in a JSON file beside it")
    add("--json", metavar="FILE", help="the figures as JSON (default: beside the mean, else beside the first matrix)")
    add("--output", metavar="DIR", type=Path, help="folder for output files that are named without one")
    add("--format", choices=FORMS, default="text", help="form of the tables")
    return parser.parse_args(argv)


@script
def main(argv: list[str] | None = None) -> None:
    args = parse_arguments(argv)
    paths = [Path(path) for path in args.matrices]
    check_distinct(paths)
    weights = check_weights(args.weights, len(paths))
    mean_path, json_path = output_paths(args, paths)
    for output in filter(None, (mean_path, json_path if args.json or args.output else None)):
        check_output(output, [*paths, *map(Path, args.tune_on or ())])

    saved, setting = open_saved(paths, args.dataset, progress=bar("reading", "matrix"))
    whole = len(saved[0].folds) == 1
    if mean_path and not whole:
        raise InputError("--save_results needs whole matrices; a folder of five folds is no 5K matrix")
    image_ids = protocol_images(args, saved[0], setting)
    tuned = None
    if args.tune_on:
        weights, tuned = tune(args, saved, setting)
    warn_about_scale(saved, weights)

    folds = zip(*(each.folds for each in saved), strict=True)
    means = [average(matrices, weights, bar("averaging", "block")) for matrices in folds]
    scores, owners = means[0] if whole else means, setting.image_of_caption
    rows = evaluate_matrix(data_set(setting.dataset), scores, owners, setting.split, setting.limit, chosen_on(saved))
    say = functools.partial(print, file=sys.stdout if args.format == "text" else sys.stderr)
    for each, weight in zip(saved, weights, strict=True):
        say(f"{weight:.3f}  {named(each)}")
    tables, judged = [recall_table(rows)], {}
    for name in args.protocols or ():
        protocol = PROTOCOLS[name]
        figures = protocol.evaluate(Scores(scores), protocol.read(data_folder(args, setting), image_ids))
        judged |= figures
        tables += protocol.tables([("mean" if len(saved) > 1 else paths[0].name, figures)], False)
    print(printed(tables, args.format))

    report = {key: value for key, value in setting._asdict().items() if value is not None}
    report |= {
        "matrices": [str(path) for path in paths],
        "weights": weights,
        "tuned_on": tuned,
        "inputs": [input_record(each, weight) for each, weight in zip(saved, weights, strict=True)],
        "chosen_on": chosen_on(saved),
        **provenance(),
        "results": rows,
        **judged,
    }
    if mean_path:
        save_results(mean_path, scores, report)
        say(f"mean saved to {mean_path}, its figures in {mean_path.stem}.json")
    if json_path:
        save_figures(json_path, report, bool(args.json or args.output), say)


# ---- what was given --------------------------------------------------------------------------------------------------


# ---- what comes out --------------------------------------------------------------------------------------------------


if __name__ == "__main__":
    main()
