"""What is written runs: every Python block of the READMEs, every docstring example."""

import contextlib
import doctest
import importlib
import io
import json
import pkgutil
import re
import sys
from pathlib import Path

import jax
import pytest

import jaxnorm
import jaxnorm.linen
import jaxnorm.nnx

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("*/README.md"))]
MODULES = sorted({m.name for m in pkgutil.walk_packages(jaxnorm.__path__, "jaxnorm.")})


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)


@pytest.fixture(autouse=True)
def as_a_user_would():
    """Users have neither strict promotion nor eight devices' worth of settings."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_python_blocks_run_in_order(page, tmp_path, monkeypatch):
    """One page is one session, read from the top; `# -> value` states what a line prints."""
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for block in blocks(page, "python"):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(block, str(page), "exec"), names)
        for value in re.findall(r"^print\(.*# -> (.*)$", block, re.MULTILINE):
            assert value in printed.getvalue().splitlines()


@pytest.mark.parametrize("module", MODULES)
def test_docstring_examples(module):
    result = doctest.testmod(importlib.import_module(module))
    assert result.failed == 0


def test_the_quick_start_is_two_shell_blocks():
    text = (ROOT / "README.md").read_text()
    section = re.search(r"^## Quick start\n(.*?)^## ", text, re.MULTILINE | re.DOTALL)
    assert section
    shell = re.findall(r"^```(?:sh|bash|shell|console)\n(.*?)^```$", section[1], re.MULTILINE | re.DOTALL)
    assert len(shell) == 2
    assert "examples/digits.py" in shell[0]
    assert "pytest" in shell[1]


def test_the_family_table_is_the_library():
    """Every norm has a row, every module is named, and nothing is named that does not exist."""
    section = re.search(r"^\| function \| shares.*?\n\n", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    assert section
    rows = [row.strip("|").split("|") for row in section[0].strip().splitlines()[2:]]
    functions, modules = ({name for row in rows for name in re.findall(r"`(\w+)`", row[i])} for i in (0, 4))
    algebra = {"blend", "decay_mask", "merge", "merge_over", "modulate", "moments", "normalize", "recalibrate"}
    algebra |= {"standardize", "implementations"}
    assert functions == {name for name in jaxnorm.__all__ if name.islower()} - algebra
    for library in (jaxnorm.linen, jaxnorm.nnx):
        assert modules == set(library.__all__) - {"recalibrate"}
    assert all(re.search(r"arxiv.org/abs/\d{4}\.\d{5}|AlexNet, 2012", row[3]) for row in rows)
    assert all(row[1].strip() for row in rows)


def test_generated_tables_are_up_to_date():
    """What stands in the pages is what `python examples/report.py` writes from the results under version control."""
    sys.path.insert(0, str(ROOT / "examples"))
    report = importlib.import_module("report")
    for page in report.PAGES:
        text = page.read_text()
        assert report.written(text, report.results()) == text, f"{page.name}: run python examples/report.py"
    asked = re.search(r"<!-- claims (.*) -->", (ROOT / "README.md").read_text())
    assert asked
    assert set(asked[1].split()) == report.results().keys(), "an experiment's claims are missing"
    assert report.experiments() == report.results().keys() | {"quickstart"}, "`--run` runs them all, and nothing else"


def test_only_finished_runs_are_collected(tmp_path, monkeypatch):
    """Not a quick one, not an interrupted one, and not one whose picture is not its own; rows stay behind."""
    sys.path.insert(0, str(ROOT / "examples"))
    report = importlib.import_module("report")
    monkeypatch.setattr(report, "ROOT", tmp_path)
    monkeypatch.setattr(report, "RESULTS", tmp_path / "results")
    claim = {"claim": "it is so"}
    runs = {"whole": (False, [claim], True), "quick": (True, [claim], True), "cut": (False, [], True)}
    for name, (quick, claims, picture) in (runs | {"blank": (False, [claim], False)}).items():
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        settings = {"quick": quick, "output": str(folder)}
        content = {"name": name, "settings": settings, "rows": [1], "claims": claims}
        (folder / "results.json").write_text(json.dumps(content))
        if picture:
            (folder / f"{name}.png").write_bytes(b"picture")
    report.collect([])
    assert sorted(path.name for path in (tmp_path / "results").iterdir()) == ["whole.json", "whole.png"]
    kept = json.loads((tmp_path / "results" / "whole.json").read_text())
    assert kept == {"name": "whole", "settings": {"quick": False}, "claims": [claim]}
