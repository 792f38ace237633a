"""Writes the README's tables of claims and measurements from what the experiments measured.

    python examples/report.py [--run] [--collect] [NAME ...]

Without options: README.md from examples/results/, which is under version control. `--collect` first takes the newest
results and pictures from runs/; `--run` first runs the experiments themselves (NAME: only these), one after the other.

In the README a comment `<!-- claims -->` is followed by the table of all claims, `<!-- table NAME -->` by the tables of
one experiment; what stands between it and its `<!-- end -->` is replaced.
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "examples" / "results"


def row(cells) -> str:
    return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"


def markdown(columns, rows) -> str:
    return "\n".join([row(columns), "|" + "---|" * len(columns), *map(row, rows)])


def results() -> dict[str, dict]:
    """By name; what each experiment measured, without its rows."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))}


def measured_with(content: dict) -> str:
    machine, settings = content["machine"], content["settings"]
    seeds = f"{settings['seeds']} seeds, median and range" if "seeds" in settings else "one run"
    return f"{machine['device']}, Python {machine['python']}, jax {machine['jax']}, {machine['date']}; {seeds}"


def claims(found: dict[str, dict]) -> str:
    rows = [
        (claim["claim"], claim["source"], claim["measured"], f"**{claim['verdict']}**", f"`python examples/{name}.py`")
        for name, content in found.items()
        for claim in content["claims"]
    ]
    table = markdown(("claim", "who says so", "measured here", "verdict", "command"), rows)
    machines = sorted({measured_with(content).split(";")[0] for content in found.values() if content["claims"]})
    return f"{table}\n\nMeasured on {'; '.join(machines)}. Ranges are over seeds."


def tables(content: dict) -> str:
    parts = [f"{table['title']}:\n\n{markdown(table['columns'], table['rows'])}" for table in content["tables"]]
    return "\n\n".join([*parts, f"({measured_with(content)})"])


def written(text: str, found: dict[str, dict]) -> str:
    """The page with its generated parts made anew."""

    def part(match: re.Match) -> str:
        what, _, name = match[1].partition(" ")
        if what == "table" and name not in found:
            raise SystemExit(f"report: README.md asks for results of {name!r}; got {sorted(found)}. Run it first.")
        return f"<!-- {match[1]} -->\n{claims(found) if what == 'claims' else tables(found[name])}\n<!-- end -->"

    return re.sub(r"<!-- (claims|table \w+) -->\n.*?<!-- end -->", part, text, flags=re.DOTALL)


def collect(names: list[str]) -> None:
    RESULTS.mkdir(exist_ok=True)
    for path in sorted(ROOT.glob("runs/*/results.json")):
        content = json.loads(path.read_text())
        if content["settings"]["quick"] or (names and content["name"] not in names):
            continue
        del content["rows"]
        content["settings"].pop("output")
        (RESULTS / f"{content['name']}.json").write_text(json.dumps(content, indent=1) + "\n")
        picture = path.with_name(f"{content['name']}.png")
        if picture.exists():
            shutil.copy(picture, RESULTS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="experiments; all by default")
    parser.add_argument("--run", action="store_true", help="run them first, then collect")
    parser.add_argument("--collect", action="store_true", help="take the newest results from runs/ first")
    options = parser.parse_args()
    programs = {path.stem for path in (ROOT / "examples").glob("*.py") if "recording(" in path.read_text()} - {
        "experiment"
    }
    unknown = set(options.names) - programs
    if unknown:
        parser.error(f"no such experiment: {', '.join(sorted(unknown))}; there are {', '.join(sorted(programs))}")
    if options.run:
        for name in options.names or sorted(programs):
            subprocess.run([sys.executable, f"examples/{name}.py"], cwd=ROOT, check=True)
    if options.run or options.collect:
        collect(options.names)
    page = ROOT / "README.md"
    page.write_text(written(page.read_text(), results()))


if __name__ == "__main__":
    main()
