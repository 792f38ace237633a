"""What is written runs: every Python block of the READMEs, every docstring example."""

import contextlib
import doctest
import importlib
import io
import pkgutil
import re
from pathlib import Path

import jax
import pytest

import jaxnorm

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
