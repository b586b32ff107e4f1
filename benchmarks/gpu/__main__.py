"""Check and measure everything on a GPU: `python -m benchmarks.gpu [--quick] [--output DIR]`.

Checks go on after a failure; measurements stop when the time is up (9 minutes on an H100, 2 with --quick). Ends with a
Markdown table for docs/performance.md and, with --output, both as JSON. Exit code 1 when a check failed.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.common import machine
from benchmarks.gpu.bench import FULL, QUICK, Bench, Sizes
from benchmarks.gpu.checks import CHECKS
from benchmarks.gpu.costs import step_costs
from benchmarks.gpu.measurements import Measurement, measurements
from benchmarks.gpu.tables import Table
from lib.distributed.launch import visible_devices
from lib.files.writing import write_json


def environment(device: torch.device) -> str:
    """The machine, its GPUs, driver and versions."""
    parts = [machine()]
    if device.type == "cuda":
        count, about = torch.cuda.device_count(), torch.cuda.get_device_properties(device)
        driver = getattr(torch.cuda, "driver_version", lambda: None)() or _driver()
        parts.append(f"{count} x {about.name}, {about.total_memory / 2**30:.0f} GiB, driver {driver}")
        parts.append(f"CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}")
    return "; ".join(parts)


def _driver() -> str:
    try:
        return Path("/sys/module/nvidia/version").read_text().strip()
    except OSError:
        return "unknown"


def checked(bench: Bench, check: Callable) -> dict:
    """The outcome of a check as a line and as values; an exception is a failure."""
    began = time.perf_counter()
    try:
        result = check(bench)
        figure, state = (
            ("not on this machine", "skipped") if result is None else (result[0], "ok" if result[1] else "failed")
        )
    except Exception as error:
        figure, state = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}", "failed"
    name, seconds = check.__doc__.strip(), time.perf_counter() - began
    print(f"{state:7}  {name}: {figure}  ({seconds:.1f} s)", flush=True)
    return {"check": name, "figure": figure, "state": state, "seconds": seconds}


def measured(measurement: Measurement) -> Table:
    """A measurement's table; an exception is its only row."""
    print(f"\n{measurement.title}", flush=True)
    try:
        return measurement.run()
    except Exception as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        print(f"failed: {reason}", flush=True)
        return Table(measurement.title, ("failed",), [[reason]])


def main(argv: list[str] | None = None, sizes: Sizes | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="smaller sizes: 2 minutes on an H100")
    parser.add_argument("--output", type=Path, metavar="DIR", help="write gpu.md and gpu.json there")
    parser.add_argument("--device", help="cpu, cuda or cuda:N (default: the first GPU)")
    args = parser.parse_args(argv)
    device, sizes, began = (
        visible_devices(args.device)[0],
        sizes or (QUICK if args.quick else FULL),
        time.perf_counter(),
    )
    about = environment(device)
    print(about, flush=True)
    if args.output:
        args.output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(device, sizes, Path(folder))
        checks = [checked(bench, check) for check in CHECKS]
        tables, left_out = [], []
        for measurement in measurements(bench):
            if time.perf_counter() - began > sizes.seconds:
                left_out.append(measurement.title)
            else:
                tables.append(measured(measurement))
    tables.append(step_costs(bench))
    text = f"Measured on {about}.\n\n" + "\n".join(table.markdown() for table in tables)
    if left_out:
        text += f"\nNot measured, the time was up: {', '.join(left_out)}.\n"
    print(f"\n{text}")
    failed = [check["check"] for check in checks if check["state"] == "failed"]
    print(f"{len(failed)} of {len(checks)} checks failed, {time.perf_counter() - began:.0f} s")
    if args.output:
        (args.output / "gpu.md").write_text(text, encoding="utf-8")
        content = {
            "machine": about,
            "checks": checks,
            "tables": [table._asdict() for table in tables],
            "left_out": left_out,
        }
        write_json(args.output / "gpu.json", content)
    return 1 if failed or any(table.columns == ("failed",) for table in tables) else 0


if __name__ == "__main__":
    sys.exit(main())
