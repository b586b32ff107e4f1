"""Write what happened to every query of a saved matrix: `python -m lib.tools.queries MATRIX --data_path DIR`.

A table of each direction: the query, its rank, its margin, and its ten best items with their scores, right or wrong.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from lib.console.parser import Parser
from lib.console.script import script
from lib.evaluation.matrices.together import open_items, open_saved
from lib.evaluation.queries import answer_folds, check_table_name, save_queries, table_paths
from lib.files.writing import check_target

MATRIX = "a matrix of eval.py --save_results, or of another form that eval_ensemble.py reads"


def add_data_flags(add) -> None:
    """Where the images and captions of a saved matrix are, for every tool that shows them."""
    add("--data_path", metavar="DIR", help="folder of the data set (default: data/<dataset>)")
    add("--dataset", "--data_name", help="data set of the matrix (default: from the JSON file beside it)")
    add("--split", help="split of the matrix (default: from the JSON file, else the split that eval.py takes)")


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(prog="python -m lib.tools.queries", description=__doc__)
    parser.add_argument("matrix", metavar="MATRIX", type=Path, help=MATRIX)
    add_data_flags(parser.add_argument)
    tables = "name of the tables, .csv or .jsonl; _i2t and _t2i are added (default: <matrix>_queries.csv beside it)"
    parser.add_argument("--output", type=Path, help=tables)
    return parser.parse_args(argv)


@script
def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    output = check_table_name(args.output or args.matrix.with_name(f"{args.matrix.stem}_queries.csv"), "--output")
    for path in table_paths(output).values():
        check_target(path, "--output")
    (saved,), setting = open_saved([args.matrix], args.dataset, args.split)
    _, items = open_items(args.data_path or f"data/{setting.dataset}", setting, saved.shapes)
    for path in save_queries(output, answer_folds(saved.folds, items.image_of_caption), items):
        print(f"queries: {path}")


if __name__ == "__main__":
    main()
