"""Tables and pictures from a file of results: on the terminal, and in the READMEs, where they cannot drift from it."""

import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.measure import COPY, MODEL
from benchmarks.pictures import draw

ROOT = Path(__file__).parent.parent
PAGES = (ROOT / "README.md", ROOT / "benchmarks" / "README.md")
FAMILIES = {
    "layer and RMS norm": ("layer_norm", "rms_norm"),
    "batch norm": ("batch_norm",),
    "group and instance norm": ("group_norm", "instance_norm"),
}
Rows = list[dict]


def having(rows: Rows, **where) -> Rows:
    return [row for row in rows if all(row.get(key) == value for key, value in where.items())]


def distinct(rows: Rows, key: str) -> list:
    return list(dict.fromkeys(row[key] for row in rows))


def rivals(rows: Rows) -> list[str]:
    return [name for name in distinct(rows, "contender") if name not in ("jaxnorm", COPY)]


def place(row: dict) -> tuple:
    return row["norm"], tuple(row["shape"]), row["dtype"], row["mode"]


def spread(ratio: list[float]) -> str:
    low, middle, high = ratio
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"


def mean_and_worst(rows: Rows, key: str) -> str:
    """The geometric mean over shapes, and the shape where it is least."""
    middles = [row[key][1] for row in rows]
    return f"{np.exp(np.log(middles).mean()):.2f} ({min(middles):.2f})" if middles else ""


# -- tables: a title, columns and rows of text -------------------------------------------------------------------------

Content = tuple[str, tuple[str, ...], list[tuple[str, ...]]]


MANY_FAULTS = 50  # pages of one call, 200 KiB: a ratio to it would be of how fast the system maps pages


def summary(rows: Rows, key: str = "ratio", when: str = "") -> Content:
    timed = [row for row in rows if row["mode"] in ("forward", "forward+backward") and row["contender"] != COPY]
    slow = {place(row) for row in having(timed, contender="jaxnorm") if row["page_faults"] > MANY_FAULTS}
    timed = [row for row in timed if row["page_faults"] <= MANY_FAULTS and place(row) not in slow]
    names = rivals(timed)
    lines = []
    for family, norms in FAMILIES.items():
        for dtype in distinct(timed, "dtype"):
            for mode in ("forward", "forward+backward"):
                of = [r for r in having(timed, dtype=dtype, mode=mode) if r["norm"] in norms]
                if of:
                    cells = (mean_and_worst(having(of, contender=name), key) for name in names)
                    lines.append((family, dtype, mode, *cells))
    title = (
        f"their time over jaxnorm's{when}: geometric mean over shapes (the shape where it is least), of calls whose "
        "memory was there"
    )
    return title, ("norm", "dtype", "mode", *names), lines


def first_calls(rows: Rows) -> Content:
    return summary(rows, "first_ratio", ", first call of a turn, from caches full of others' numbers")


def shapes(rows: Rows) -> Content:
    timed = [row for row in rows if row["mode"] in ("forward", "forward+backward")]
    names = rivals(timed)
    lines = []
    for ours in having(timed, contender="jaxnorm"):
        same = having(timed, **{key: ours[key] for key in ("norm", "model", "dtype", "mode")})
        found = {row["contender"]: spread(row["ratio"]) for row in same}
        limit = [f"{row['ratio'][1]:.2f}" for row in same if row["contender"] == COPY]
        shape = " x ".join(map(str, ours["shape"]))
        milliseconds = f"{1e3 * ours['seconds'][1]:.3f}"
        cells = (found.get(name, "") for name in names)
        about = (ours["norm"], f"{ours['model']}: {shape}", ours["dtype"], ours["mode"])
        lines.append((*about, milliseconds, *(limit or [""]), *cells))
    title = "their time over jaxnorm's, by shape: median (20% to 80% of the rounds)"
    return title, ("norm", "model", "dtype", "mode", "jaxnorm, ms", COPY, *names), lines


def kept(rows: Rows) -> Content:
    """Memory: what reverse mode keeps, and what XLA counts, per element of x."""
    lines = []
    of = [row for row in having(rows, mode="forward+backward") if "residual_bytes" in row]
    for norm in distinct(of, "norm"):
        for dtype in distinct(of, "dtype"):
            for name in distinct(of, "contender"):
                same = having(of, norm=norm, dtype=dtype, contender=name)
                if same:
                    size = [np.prod(row["shape"]) for row in same]
                    cells = ("residual_bytes", "temporary_bytes", "bytes_accessed")
                    per = (np.max([row[key] / n for row, n in zip(same, size, strict=True)]) for key in cells)
                    lines.append((norm, dtype, name, *(f"{value:.2f}" for value in per)))
    title = "bytes per element of x, forward and backward, at the shape where they are most"
    return title, ("norm", "dtype", "library", "kept for the backward pass", "temporary", "accessed, says XLA"), lines


def others(rows: Rows) -> Content:
    """Eager calls, tracing and compiling, and the norm inside a model."""
    of = [row for row in rows if "ratio" in row and row["mode"] not in ("forward", "forward+backward")]
    names, lines = rivals(of), []
    for ours in having(of, contender="jaxnorm"):
        same = having(of, **{key: ours[key] for key in ("norm", "model", "dtype", "mode")})
        found = {row["contender"]: spread(row["ratio"]) for row in same}
        milliseconds = f"{1e3 * ours['seconds'][1]:.3f}"
        cells = (found.get(name, "") for name in names)
        lines.append((ours["mode"], ours["norm"], ours["model"], ours["dtype"], milliseconds, *cells))
    title = f"eager calls, preparation, and the norm {MODEL}: median (20% to 80%)"
    return title, ("what", "norm", "model", "dtype", "jaxnorm, ms", *names), lines


def scanned(rows: Rows) -> Content:
    lines = []
    for row in having(rows, mode="scan of 8 blocks"):
        ours = having(rows, mode=row["mode"], norm=row["norm"], model=row["model"], contender="jaxnorm")[0]
        share = f"{row['temporary_bytes'] / ours['temporary_bytes']:.2f}"
        lines.append((row["norm"], row["model"], row["contender"], f"{row['temporary_bytes'] / 2**20:.1f}", share))
    title = "temporary memory of the gradient of eight scanned blocks of norm and perceptron, bfloat16"
    return title, ("norm", "model", "library", "MiB", "over jaxnorm's"), lines


TABLES = {"summary": summary, "first": first_calls, "shapes": shapes, "kept": kept, "others": others, "scan": scanned}


# -- where they go -----------------------------------------------------------------------------------------------------


def show(results: dict, console: Console) -> None:
    """Medians alone: a terminal is narrow."""
    for make in TABLES.values():
        title, columns, lines = make(results["rows"])
        if lines:
            table = Table(*columns, title=re.sub(r": median \(.*", ": median", title))
            for line in lines:
                table.add_row(*(re.sub(r" \(.* to .*\)", "", cell) for cell in line))
            console.print(table)


def markdown(content: Content) -> str:
    title, columns, lines = content
    row = lambda cells: f"| {' | '.join(cells)} |"
    return "\n".join([f"{title}:\n", row(columns), "|" + "---|" * len(columns), *map(row, lines)])


def measured_with(results: dict) -> str:
    machine = results["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    return f"{machine['device']}, Python {machine['python']}, {versions}, {machine['date']}; {results['rounds']} rounds"


def written(text: str, results: dict, file: str) -> str:
    """A page with its tables of this file's results made anew."""

    def part(match: re.Match) -> str:
        tables = [markdown(TABLES[name](results["rows"])) for name in match[1].split()]
        body = "\n\n".join([*tables, f"({measured_with(results)})"])
        return f"<!-- benchmark {file}{match[1]} -->\n{body}\n<!-- end -->"

    pattern = rf"<!-- benchmark {re.escape(file)}((?: \w+)+) -->\n.*?<!-- end -->"
    return re.sub(pattern, part, text, flags=re.DOTALL)


def write(results: dict, path: Path, pages: Iterable[Path] = PAGES) -> None:
    draw(results["rows"], path.with_suffix(".png"), measured_with(results))
    for page in pages:
        page.write_text(written(page.read_text(), results, path.stem))
