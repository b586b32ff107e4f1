"""Compare training runs: settings that differ, the best and last values of their curves, and a picture of these."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any, NamedTuple

from lib.console.parser import Parser
from lib.console.script import script
from lib.core.errors import InputError, shown
from lib.files.reading import read_json
from lib.files.writing import atomic_write, check_target
from lib.training.record import CONFIG, METRICS, digest_of, read_lines_of_json

FORMATS = (".png", ".pdf", ".svg")
APART = {"model_name", "logger_name", "resume", "reset_start_epoch"}  # which differ between any two runs
Curve = list[tuple[int, float]]  # (step, value)


class RunRecord(NamedTuple):
    """What a run's folder says of it."""

    name: str
    config: dict[str, Any]
    curves: dict[str, Curve]  # "loss" per pair, and "RSUM <split>"


def read_run(folder: Path) -> RunRecord:
    """Read config.json and metrics.jsonl of a run; InputError where there is none, or it has no figure yet."""
    config = read_json(folder / CONFIG)
    if not isinstance(config, dict) or not isinstance(config.get("settings"), dict):
        raise InputError(f"{folder / CONFIG}: not the record of a run; name the folder given to --model_name")
    curves: dict[str, Curve] = {}
    for line in read_lines_of_json(folder / METRICS):
        name, value = ("loss", line.get("mean")) if "loss" in line else (f"RSUM {line.get('split')}", line.get("rsum"))
        if isinstance(value, int | float) and isinstance(line.get("step"), int):
            curves.setdefault(shown(name), []).append((line["step"], float(value)))
    if not curves:
        raise InputError(f"{folder / METRICS}: no figures yet; train.py writes them every --log_step steps")
    return RunRecord(folder.name or str(folder), config, curves)


def differing(runs: list[RunRecord]) -> list[list[str]]:
    """Rows of a setting's name and its value in each run, for what is not the same in all."""
    tables = [facts(run.config) for run in runs]
    rows = []
    for name in dict.fromkeys(name for table in tables for name in table):
        values = [shown(table.get(name, "-"), 24) for table in tables]
        if name not in APART and len(set(values)) > 1:
            rows.append([name, *values])
    return rows


def facts(config: dict[str, Any]) -> dict[str, Any]:
    """Settings, commit, versions, machine and data of a run under one name each."""
    found = config["settings"] | {
        name: config[name] for name in ("commit", "host", "devices", "processes") if name in config
    }
    versions, files = config.get("versions"), config.get("files")
    found |= versions if isinstance(versions, dict) else {}
    for file in files if isinstance(files, list) else ():
        if isinstance(file, dict):
            found[f"file {Path(str(file.get('path'))).name}"] = digest_of(file)[:8]
    return found


def endings(runs: list[RunRecord]) -> list[list[str]]:
    """Rows of a curve's name and, of each run, its best and last values with their steps."""
    rows = []
    for name in dict.fromkeys(name for run in runs for name in run.curves):
        best = min if name == "loss" else max
        for what in ("best", "last"):
            cells = []
            for curve in (run.curves.get(name) for run in runs):
                finite = [point for point in curve or () if math.isfinite(point[1])]
                point = finite and (best(finite, key=lambda p: p[1]) if what == "best" else finite[-1])
                cells.append(f"{point[1]:.{4 if name == 'loss' else 1}f} at {point[0]}" if point else "-")
            rows.append([f"{name}, {what}", *cells])
    return rows


def table(head: list[str], rows: list[list[str]]) -> str:
    """Columns in their widths."""
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in (head, *rows)]
    return "\n".join(line.rstrip() for line in lines)


def draw(runs: list[RunRecord], path: Path) -> None:
    """Draw the loss and the RSUM of every split over the steps into a PNG, PDF or SVG file."""
    try:
        import matplotlib
    except ImportError:
        raise InputError("--plot needs matplotlib; install requirements.txt") from None
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(name for run in runs for name in run.curves))
    figure = Figure(figsize=(6.4 * len(names), 4.4), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        for number, run in enumerate(runs):
            if name in run.curves:
                steps, values = zip(*run.curves[name], strict=True)
                mark = "o" if len(steps) < 40 else None
                axes.plot(steps, values, marker=mark, markersize=3, color=f"C{number}", label=run.name)
        axes.set(xlabel="step", ylabel="loss per pair, mean of the epoch" if name == "loss" else name)
        axes.grid(alpha=0.3)
        axes.legend()
    with matplotlib.rc_context({"svg.hashsalt": "runs"}), atomic_write(path) as temporary:
        figure.savefig(temporary, format=path.suffix.lower()[1:], dpi=150)


@script
def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    runs = [read_run(folder) for folder in args.runs]
    head = ["", *(shown(run.name, 24) for run in runs)]
    print(table(head, differing(runs) or [["no setting differs", *[""] * len(runs)]]))
    print()
    print(table(head, endings(runs)))
    if args.plot:
        draw(runs, args.plot)
        print(f"\ncurves: {args.plot}")


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(prog="python -m lib.tools.runs", description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder of a run, as --model_name named it")
    parser.add_argument("--plot", type=Path, help="draw the curves: .png, .pdf or .svg")
    args = parser.parse_args(argv)
    if args.plot:
        if args.plot.suffix.lower() not in FORMATS:
            raise InputError(f"--plot {args.plot}: expected a file name that ends with {', '.join(FORMATS)}")
        check_target(args.plot, "--plot")
    return args


if __name__ == "__main__":
    main()
