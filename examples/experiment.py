"""What the experiments share: options, a progress bar, tables, and results that survive an interruption.

Not a program. An experiment is one `with recording(...) as record:` around its runs; what it measured is in
runs/<name>/results.json after every run, whatever happens next.
"""

import argparse
import contextlib
import json
import math
import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import matplotlib
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

matplotlib.use("Agg")
from matplotlib.figure import Figure

# Apart for colour-blind eyes.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#7f7f7f", "#8c510a")
CONSOLE = Console()
HIGHEST_SEED = 10**9  # leaves room below 2**32, where some generators end, for the seeds that are made from it


def at_least(low: int, most: float = math.inf) -> Callable[[str], int]:
    """For `type=` of an option: a whole number that is no smaller, and no larger than `most`."""

    def number(text: str) -> int:
        if int(text) < low:
            raise argparse.ArgumentTypeError(f"must be at least {low}; got {text}")
        if int(text) > most:
            raise argparse.ArgumentTypeError(f"must be at most {most}; got {text}")
        return int(text)

    return number


def options(
    doc: str,
    name: str,
    *,
    seeds: int = 5,
    epochs: int | None = None,
    least: int = 1,
    extend: Callable[[argparse.ArgumentParser], None] = lambda parser: None,
) -> argparse.Namespace:
    """The options every experiment has, and its own; `--quick` leaves two seeds. `changed` are those not the default.

    epochs: the default of `--epochs`, passes over the images, at `least` so many; None for programs without it.
    """
    parser = argparse.ArgumentParser(
        description=doc.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    if epochs is not None:
        parser.add_argument("--epochs", type=at_least(least), default=epochs, help="passes over the images")
    extend(parser)
    seed, count = at_least(0, HIGHEST_SEED), at_least(1, 1000)  # from 1000 on they are for tuning
    parser.add_argument("--seed", type=seed, default=0, help="the first seed: of splits, weights and batches")
    parser.add_argument("--seeds", type=count, default=seeds, help="how many seeds, at most 1000")
    parser.add_argument("--output", type=Path, default=Path("runs") / name, help="folder for results and picture")
    parser.add_argument("--quick", action="store_true", help="two seeds, little training: does it run?")
    chosen = parser.parse_args()
    settings = [(key, value) for key, value in vars(chosen).items() if key != "output"]
    chosen.changed = [f"--{key.replace('_', '-')}" for key, value in settings if value != parser.get_default(key)]
    if chosen.quick:
        chosen.seeds = min(chosen.seeds, 2)
    return chosen


def machine() -> dict[str, str]:
    """What a number was measured with."""
    processor = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):  # Linux knows more
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), processor)
    device = jax.devices()[0]
    return {
        "device": device.device_kind if device.platform != "cpu" else f"{os.cpu_count()} cores of {processor}",
        "python": platform.python_version(),
        "jax": jax.__version__,
        "jaxnorm": version("jaxnorm"),
        "date": time.strftime("%B %Y"),
    }


def middle(values: Any) -> str:
    """The median, and the range it comes from."""
    low, mid, high = np.min(values), np.median(values), np.max(values)
    return f"{mid:.3g} ({low:.3g} to {high:.3g})"


def wider(steps: int, per_decade: float) -> str:
    """Is a range that trains wider with the norm, by so many steps of the grid? Half a decade is, less is a little."""
    return "yes" if 2 * steps >= per_decade else "a little" if steps > 0 else "no"


class Record:
    """Rows, tables and claims of one experiment, written to disk as they come."""

    def __init__(self, name: str, options: argparse.Namespace, advance: Callable[..., None]):
        self.name, self.folder, self.advance = name, options.output, advance
        self.content: dict[str, Any] = {
            "name": name,
            "settings": {key: str(value) if isinstance(value, Path) else value for key, value in vars(options).items()},
            "machine": machine(),
            "seconds": 0.0,
            "finished": False,
            "rows": [],
            "tables": [],
            "claims": [],
        }
        self._start, self._begun = time.perf_counter(), False
        self._lines: list[str] = []  # rows as text; each is written out once, however often the file is saved
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SystemExit(
                f"{name}: --output must be a folder that can be written; got {self.folder} ({error})."
            ) from None

    @property
    def rows(self) -> list[dict[str, Any]]:
        return self.content["rows"]

    def add(self, **row: Any) -> None:
        """One finished run (arrays become lists); kept on disk at once."""
        self._put_aside()
        self.rows.append({key: np.asarray(v).tolist() if hasattr(v, "dtype") else v for key, v in row.items()})
        self.save()

    def _put_aside(self) -> None:
        """What an earlier run left stays until there is something new, and then as before.json and before.png.

        A run that was quick or interrupted gives way instead, so that it cannot push out one that was finished.
        """
        if self._begun:
            return
        self._begun = True
        gives_way = self._gives_way()
        for old, aside in (("results.json", "before.json"), (f"{self.name}.png", "before.png")):
            if gives_way:
                (self.folder / old).unlink(missing_ok=True)
            elif (self.folder / old).exists():
                (self.folder / old).replace(self.folder / aside)

    def _gives_way(self) -> bool:
        try:
            there = json.loads((self.folder / "results.json").read_text())
            return there["settings"]["quick"] or not there["finished"]
        except (OSError, ValueError, LookupError, TypeError):
            return False  # nothing, or not known to be of no use

    def values(self, key: str, **where: Any) -> np.ndarray:
        """One column of the rows that have these values."""
        return np.array([row[key] for row in self.rows if all(row.get(k) == v for k, v in where.items())])

    def best(self, setting: str, by: str, *, score: Callable[[np.ndarray], Any] = np.median, **where: Any) -> Any:
        """Of a setting's values the one whose column `by` scores highest, among these rows; of equals the least.

        What is reported there should be another column, of images that did not choose.
        """
        tried = sorted({*self.values(setting, **where)})
        return max(tried, key=lambda value: score(self.values(by, **where, **{setting: value})))

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Shown, kept, and for the README."""
        text = [[str(cell) for cell in row] for row in rows]
        self.content["tables"].append({"title": title, "columns": list(columns), "rows": text})
        shown = Table(title=title)
        for i, column in enumerate(columns):
            shown.add_column(column, justify="left" if i == 0 else "right")
        for row in text:
            shown.add_row(*row)
        CONSOLE.print(shown)
        self.save()

    def claim(self, claim: str, *, source: str, measured: str, verdict: str) -> None:
        """What is said, who says it, what came out here, and whether that is so: all from this run's numbers."""
        self.content["claims"].append({"claim": claim, "source": source, "measured": measured, "verdict": verdict})
        CONSOLE.print(f"[bold]{claim}[/bold] ({source})\n  measured: {measured}\n  verdict: {verdict}")
        self.save()

    def picture(self, figure: Figure) -> None:
        self._put_aside()
        figure.savefig(self.folder / f"{self.name}.png", dpi=120)

    def save(self) -> None:
        if not self.rows:
            return
        self.content["seconds"] = round(time.perf_counter() - self._start, 1)
        self._lines += [json.dumps(row) for row in self.rows[len(self._lines) :]]
        others = json.dumps({key: value for key, value in self.content.items() if key != "rows"})
        path = self.folder / "results.json"
        part = path.with_suffix(".part")
        part.write_text(f'{others[:-1]}, "rows": [\n' + ",\n".join(self._lines) + "\n]}\n")
        part.replace(path)  # never half a file


@contextlib.contextmanager
def recording(name: str, options: argparse.Namespace, steps: int) -> Iterator[Record]:
    """A progress bar of so many steps, and a record. Ctrl-C ends the runs and keeps what was measured."""
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=CONSOLE) as progress:
        task = progress.add_task(name, total=steps)

        def advance(description: str | None = None) -> None:
            progress.update(task, advance=1, description=description or name)

        record = Record(name, options, advance)
        try:
            yield record
            record.content["finished"] = True
        except KeyboardInterrupt:
            CONSOLE.print(f"Interrupted: {len(record.rows)} runs are kept.")
        record.save()
    CONSOLE.print(f"wrote {record.folder}")
