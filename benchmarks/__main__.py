"""Time and memory of every norm beside Flax, Haiku, Equinox, jax.nn and torch, on shapes of real models.

    python -m benchmarks [--quick] [--norm layer_norm] [--dtype bfloat16] [--library Haiku] [--part norms]
    python -m benchmarks --write benchmarks/results/cpu.json

Everybody runs in one process, in turn; ratios are taken within a round before any quantile, so that a busy moment of
the machine hits all. `--write` makes the tables of the READMEs and the pictures from a file of results; it measures
nothing. Extra: `bench`.
"""

import os

# torch's threads would go on spinning after its turn, on the cores of the next one.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import argparse
import json
from collections.abc import Callable, Iterator
from pathlib import Path

from rich.console import Console
from rich.progress import track

from benchmarks import measure
from benchmarks.contenders import JAX
from benchmarks.machine import described
from benchmarks.report import show, write
from benchmarks.shapes import CASES, DTYPES, NORMS, Case
from benchmarks.timing import keep_memory

LIBRARIES = (*JAX, "torch", "torch.compile")
PARTS: dict[str, tuple[Callable[..., Iterator[measure.Row]], Callable[[Case, str], bool]]] = {
    "norms": (measure.norm_rows, lambda case, dtype: True),
    "eager": (measure.eager_rows, lambda case, dtype: dtype == "float32" and case.small),
    "preparation": (measure.preparation_rows, lambda case, dtype: dtype == "float32" and case.stacked),
    "model": (measure.model_rows, lambda case, dtype: case.in_models),
    "scan": (measure.scan_rows, lambda case, dtype: dtype == "bfloat16" and case.scanned),
}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--norm", choices=NORMS, action="append", help="only this norm; may be repeated")
    parser.add_argument("--model", default="", metavar="TEXT", help="only models whose name contains this")
    parser.add_argument("--dtype", choices=DTYPES, action="append", help="only this dtype; may be repeated")
    parser.add_argument("--part", choices=PARTS, action="append", help="only this part; may be repeated")
    parser.add_argument("--library", choices=LIBRARIES, action="append", help="only this rival; may be repeated")
    parser.add_argument("--compile", action="store_true", help="torch.compile too: it takes half a minute for a shape")
    parser.add_argument("--rounds", type=int, default=60, help="timed calls of each")
    parser.add_argument("--quick", action="store_true", help="five rounds: does it run?")
    parser.add_argument("--output", type=Path, default=Path("runs/benchmarks"), help="folder for results.json")
    parser.add_argument("--write", type=Path, metavar="RESULTS", help="only make tables and pictures from this file")
    options = parser.parse_args()
    if options.rounds < 1:
        parser.error(f"--rounds must be at least 1; got {options.rounds}")
    if options.write and not options.write.exists():
        parser.error(f"--write must be a file of results; got {options.write}, which is not there")
    if options.quick:
        options.rounds = 5
    return options


def main() -> None:
    options = parse()
    if options.write:
        write(json.loads(options.write.read_text()), options.write)
        return
    keep_memory()
    libraries = options.library or [name for name in LIBRARIES if name != "torch.compile" or options.compile]
    libraries = list(dict.fromkeys(["jaxnorm", *libraries]))
    work = [
        (rows, case, dtype)
        for name, (rows, concerns) in PARTS.items()
        for case in CASES
        for dtype in options.dtype or DTYPES
        if name in (options.part or PARTS)
        and case.norm in (options.norm or NORMS)
        and options.model in case.model
        and concerns(case, dtype)
    ]
    console = Console()
    console.width = max(console.width, 140)  # a table of nine libraries
    results: dict = {"machine": described(libraries), "rounds": options.rounds, "rows": []}
    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / "results.json"
    try:
        for rows, case, dtype in track(work, description="measuring", console=console):
            results["rows"] += rows(case, dtype, libraries, options.rounds)
            path.write_text(json.dumps(results, indent=1))
    except KeyboardInterrupt:
        console.print("Interrupted: what was measured is kept.")
    show(results, console)
    console.print(f"wrote {path}")


if __name__ == "__main__":
    main()
