"""Writes the tables and pictures of the READMEs from what the experiments measured.

    python examples/report.py [--run] [--collect] [NAME ...]

Without options: README.md from examples/results/, which is under version control. `--collect` first takes the newest
results and pictures from runs/, if they are of finished runs with the programs' own settings; `--run` first runs the
experiments themselves (NAME: only these), one after the other.

In README.md and examples/README.md a comment `<!-- claims NAME ... -->` is followed by the table of these experiments'
claims, `<!-- evidence NAME -->` by an experiment's tables and claims, and so on; what stands before `<!-- end -->` is
replaced, and so is the time behind an experiment's command. The pictures of the README come from the same runs: `--run`
ends with the page of `distributions.py`, the picture of who shares statistics, and, where Chromium is installed, a
photograph of the page.
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

from jaxnorm.plots import sharing_picture

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "examples" / "results"
PAGES = (ROOT / "README.md", ROOT / "examples" / "README.md")


def row(cells) -> str:
    return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"


def markdown(columns, rows) -> str:
    return "\n".join([row(columns), "|" + "---|" * len(columns), *map(row, rows)])


def results() -> dict[str, dict]:
    """By name; what each experiment measured, without its rows."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))}


def measured_with(content: dict) -> str:
    """Machine and versions. How many seeds stand behind a number its table says."""
    machine = content["machine"]
    versions = f"Python {machine['python']}, jax {machine['jax']}, jaxnorm {machine['jaxnorm']}"
    return f"{machine['device']}, {versions}, {machine['date']}"


def medians(text: str) -> str:
    """Without the ranges in brackets."""
    return re.sub(r" \([^() ]+ to [^() ]+\)", "", text)


def claims(found: dict[str, dict], names: list[str]) -> str:
    """What is claimed of norms by someone else; an experiment's own choices are in its tables."""
    listed = [(name, found[name]) for name in names]
    rows = [
        (claim["claim"], f"**{claim['verdict']}**", medians(claim["measured"]), claim["source"], f"[`{name}`]({link})")
        for name, content in listed
        for link in [f"examples/{name}.py"]
        for claim in content["claims"]
        if not claim["source"].startswith("the strategy in ")
    ]
    table = markdown(("claim", "verdict", "measured: medians", "who says so", "program"), rows)
    machines = sorted({measured_with(content) for _, content in listed})
    return (
        f"{table}\n\nEach by `python examples/<program>.py`. Measured on {'; '.join(machines)}. The ranges over seeds "
        "are in [examples/README.md](examples/README.md#what-was-measured)."
    )


def rules(found: dict[str, dict], names: list[str]) -> str:
    """Lesson 1's rules of thumb, and what became of them."""
    listed = [(name, claim) for name in names for claim in found[name]["claims"] if "lesson 1" in claim["source"]]
    rows = [(claim["claim"], claim["verdict"], f"`python examples/{name}.py`") for name, claim in listed]
    return markdown(("the lesson's rule", "does it hold here?", "command"), rows)


def answer(content: dict) -> str:
    """An experiment's last claim, as a sentence."""
    claim = content["claims"][-1]
    return f"Measured: {claim['measured']}. {claim['verdict'][0].upper()}{claim['verdict'][1:]}."


def tables(content: dict) -> str:
    parts = [f"{table['title']}:\n\n{markdown(table['columns'], table['rows'])}" for table in content["tables"]]
    count = f"`--seeds {content['settings']['seeds']}`"
    return "\n\n".join([*parts, f"({measured_with(content)}; {count})"])


def evidence(content: dict) -> str:
    """An experiment's tables, and what follows from them, with ranges."""
    judged = "\n".join(f"- {c['claim']}: **{c['verdict']}**. {c['measured']}." for c in content["claims"])
    return f"{tables(content)}\n\n{judged}"


def written(text: str, found: dict[str, dict]) -> str:
    """The page with its generated parts made anew."""

    def part(match: re.Match) -> str:
        what, *names = match[1].split()
        missing = set(names) - set(found)
        if missing:
            raise SystemExit(
                f"report: a page asks for results of {sorted(missing)}; got {sorted(found)}. Run them first."
            )
        whole = {"claims": claims, "rules": rules}
        each = {"table": tables, "evidence": evidence, "answer": answer}
        made = whole[what](found, names) if what in whole else "\n\n".join(each[what](found[name]) for name in names)
        return f"<!-- {match[1]} -->\n{made}\n<!-- end -->"

    text = re.sub(
        r"<!-- ((?:claims|rules|table|evidence|answer)(?: \w+)+) -->\n.*?<!-- end -->", part, text, flags=re.DOTALL
    )
    return timed(text, found)


def timed(text: str, found: dict[str, dict]) -> str:
    """The time in the last column behind each experiment's command, and behind `report.py --run` that of all."""

    def line(match: re.Match) -> str:
        if match[2] == "report":
            return f"{match[1]}{sum(content['seconds'] for content in found.values()) / 60:.0f} minutes |"
        return f"{match[1]}{found[match[2]]['seconds']:.0f} s |" if match[2] in found else match[0]

    return re.sub(r"^(\| `python examples/(\w+)\.py\b[^\n]* \| )[^|\n]+ \|$", line, text, flags=re.MULTILINE)


def experiments() -> set[str]:
    """The programs that record what they measure."""
    programs = {path.stem for path in (ROOT / "examples").glob("*.py") if "with recording(" in path.read_text()}
    return programs - {Path(__file__).stem, "experiment"}


def unfit(content: dict, picture: Path) -> str | None:
    """Why a page should not show these results, if so: they are what a command gives that has no options."""
    if content["settings"]["quick"]:
        return "the run was --quick"
    if not (content["claims"] and content.get("finished", True)):
        return "the run was not finished"
    if changed := content["settings"].get("changed"):
        return f"the run had {', '.join(changed)}"
    return None if picture.exists() else f"{picture.name} is missing"


def collect(names: list[str]) -> None:
    """What may be shown goes to examples/results/; what may not is named."""
    RESULTS.mkdir(exist_ok=True)
    for path in sorted(ROOT.glob("runs/*/results.json")):
        content = json.loads(path.read_text())
        picture = path.with_name(f"{content['name']}.png")
        if content["name"] == "quickstart" or (names and content["name"] not in names):
            continue
        if reason := unfit(content, picture):
            print(f"report: {path.relative_to(ROOT)} is left out: {reason}.")
            continue
        del content["rows"]
        for key in ("output", "changed"):
            content["settings"].pop(key, None)
        content.pop("finished", None)
        (RESULTS / f"{content['name']}.json").write_text(json.dumps(content, indent=1) + "\n")
        shutil.copy(picture, RESULTS)


def pictures() -> None:
    sharing_picture(RESULTS / "sharing.png")
    subprocess.run([sys.executable, "examples/distributions.py"], cwd=ROOT, check=True)
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        print("report: no Chromium here; the photograph of the page stays as it is.")
        return
    page = (ROOT / "runs" / "distributions" / "index.html").as_uri() + "#layer=hidden+5&step=30"
    flags = ["--headless=new", "--no-sandbox", "--hide-scrollbars", "--window-size=1200,1180"]
    flags += ["--virtual-time-budget=5000", f"--screenshot={RESULTS / 'distributions.png'}"]
    subprocess.run([browser, *flags, page], check=True, stderr=subprocess.DEVNULL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="experiments; all by default")
    parser.add_argument("--run", action="store_true", help="run them first, then collect")
    parser.add_argument("--collect", action="store_true", help="take the newest results from runs/ first")
    options = parser.parse_args()
    programs = experiments()
    unknown = set(options.names) - programs
    if unknown:
        parser.error(f"no such experiment: {', '.join(sorted(unknown))}; there are {', '.join(sorted(programs))}")
    if options.run:
        for name in options.names or sorted(programs):
            subprocess.run([sys.executable, f"examples/{name}.py"], cwd=ROOT, check=True)
    if options.run or options.collect:
        collect(options.names)
    if options.run and not options.names:
        pictures()
    for page in PAGES:
        page.write_text(written(page.read_text(), results()))


if __name__ == "__main__":
    main()
