"""Say whether a difference is real: `python -m lib.tools.compare A.npy B.npy ...`, each compared with the first.

Every recall has a 95 % interval, every difference an interval and a two-sided p-value: a paired bootstrap over images,
each with all its captions, in galleries that stay as they are. Won are the queries that the first matrix gets wrong
and the other right, lost the other way round.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from lib.console.parser import Parser
from lib.console.script import script
from lib.core.errors import InputError
from lib.core.provenance import provenance
from lib.core.values import not_negative, positive
from lib.datasets import data_set
from lib.evaluation.comparison import DRAWS, FIGURES, Compared, Estimate, compare
from lib.evaluation.matrices.together import open_saved
from lib.evaluation.report import ranked_galleries
from lib.evaluation.tables import FORMS, Table, printed
from lib.files.writing import check_target, write_json


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(prog="python -m lib.tools.compare", description=__doc__)
    add = parser.add_argument
    add("matrices", nargs="+", type=Path, metavar="MATRIX", help="matrices of one split, of any form that is read")
    add("--dataset", "--data_name", help="data set of the matrices (default: from the JSON file beside them)")
    add("--split", help="split of the matrices (default: from the JSON file, else the split that eval.py takes)")
    add("--draws", type=positive(int), default=DRAWS, help="draws of the bootstrap")
    add("--seed", type=not_negative(int), default=0, help="of the draws")
    add("--format", choices=FORMS, default="text", help="form of the tables")
    add("--json", type=Path, help="write the figures as JSON too")
    return parser.parse_args(argv)


@script
def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    if len(args.matrices) < 2:
        raise InputError("one matrix can't be compared; give two or more")
    if args.json:
        check_target(args.json, "--json")
    saved, setting = open_saved(args.matrices, args.dataset, args.split)
    ranked = []
    for each in saved:
        scores = each.folds[0] if len(each.folds) == 1 else each.folds
        data, owners = data_set(setting.dataset), setting.image_of_caption
        ranked.append(ranked_galleries(data, scores, owners, setting.split, setting.limit))
    names, results = [f"{each.path.absolute().parent.name}/{each.path.name}" for each in saved], {}
    for protocols in zip(*ranked, strict=True):
        label, galleries = protocols[0]
        results[f"{label} mean" if len(galleries) > 1 else label] = compare(
            [galleries for _, galleries in protocols], args.draws, args.seed
        )
    print(printed([comparison_table(label, names, found) for label, found in results.items()], args.format))
    if args.json:
        files = [file for each in saved for file in ([each.path] if each.path.is_file() else each.path.iterdir())]
        inputs = {**setting._asdict(), "draws": args.draws, "seed": args.seed, "matrices": names}
        figures = {label: [as_dict(one) for one in found] for label, found in results.items()}
        write_json(args.json, {**inputs, **provenance(files=files), "results": figures})
        print(f"figures: {args.json}", file=sys.stdout if args.format == "text" else sys.stderr)


def comparison_table(label: str, names: list[str], found: list[Compared]) -> Table:
    """A row of each figure; of every matrix its value and interval, of all but the first the difference as well."""
    groups = [(names[0], ["value", "95 %"])]
    groups += [(name, ["value", "95 %", "difference", "95 %", "p", "won", "lost"]) for name in names[1:]]
    rows = []
    for figure in FIGURES:
        cells = []
        for one in found:
            cells.append([one.figures[figure].value, interval(one.figures[figure])])
            if one.against:
                difference, p, won, lost = one.against[figure]
                queries = [None if count is None else str(count) for count in (won, lost)]
                cells[-1] += [f"{difference.value:+.1f}", interval(difference), f"{p:.3f}", *queries]
        rows.append(([figure], cells))
    return Table([label], groups, rows, dict.fromkeys(names[1:], "RSUM is a sum over queries, so none is won or lost"))


def interval(estimate: Estimate) -> str:
    return f"{estimate.low:.1f} to {estimate.high:.1f}"


def as_dict(one: Compared) -> dict:
    """The figures as plain numbers for JSON."""
    against = one.against and {
        name: {**each._asdict(), "difference": each.difference._asdict()} for name, each in one.against.items()
    }
    return {"figures": {name: each._asdict() for name, each in one.figures.items()}, "against_first": against}


if __name__ == "__main__":
    main()
