#!/usr/bin/env python3
"""Average saved similarity matrices and evaluate the mean: `eval_ensemble.py a.npy b.npy ...` (see --help)."""

from __future__ import annotations

import argparse
from pathlib import Path

from lib.commands.ensemble import average_matrices
from lib.console.parser import Parser
from lib.console.script import script
from lib.core.errors import InputError
from lib.evaluation.protocols import PROTOCOLS
from lib.evaluation.tables import FORMS


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(
        prog="eval_ensemble.py",
        description="Average saved similarity matrices (rows images, columns captions) and evaluate the mean.",
        epilog='A matrix is an .npy of eval.py --save_results, an .npy with a pickled {"npts", "sims"}, a .txt of '
        "numpy.savetxt, or a folder of the five COCO folds 0sim_best to 4sim_best (.txt, .npy). No file can run code.",
    )
    add = parser.add_argument
    add("matrices", nargs="+", metavar="MATRIX", type=Path, help="one or more saved matrices")
    add("--weights", nargs="+", type=float, help="one weight per matrix (default: equal weights)")
    tuned = "matrices of the same models on dev, in the same order: their best weights are used, by RSUM on dev alone"
    add("--tune_on", nargs="+", metavar="MATRIX", type=Path, help=tuned)
    add("--dataset", help="data set of the matrices (default: from the JSON file beside them)")
    for name, protocol in PROTOCOLS.items():
        add(f"--evaluate_{name}", action="append_const", const=name, dest="protocols", help=protocol.help)
    add("--data_path", metavar="DIR", help="for --evaluate_…: folder of the data set (default: data/<dataset>)")
    add("--save_results", metavar="FILE", help="save the mean, with the figures in a JSON file beside it")
    add("--json", metavar="FILE", help="the figures as JSON (default: beside the mean, else beside the first matrix)")
    add("--output", metavar="DIR", type=Path, help="folder for output files that are named without one")
    add("--format", choices=FORMS, default="text", help="form of the tables")
    args = parser.parse_args(argv)
    if args.tune_on and args.weights:
        raise InputError("--tune_on chooses the weights; leave out --weights")
    return args


@script
def main(argv: list[str] | None = None) -> None:
    average_matrices(parse(argv))


if __name__ == "__main__":
    main()
