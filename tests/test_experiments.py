"""The experiments run in seconds, measure every case and seed, judge their claims, and refuse what they cannot use."""

import json
from pathlib import Path

import pytest
from test_examples import run

# program: (how many rows for a seed, how many claims, how many tables)
EXPERIMENTS = {
    "style": (6, 1, 2),
}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What a program leaves after `--quick`; each runs once."""
    found: dict[str, dict] = {}

    def results(name: str) -> dict:
        if name not in found:
            folder = tmp_path_factory.mktemp(name)
            run(f"{name}.py", "--quick", "--seed", "3", cwd=folder)
            assert (folder / f"runs/{name}/{name}.png").stat().st_size > 10_000
            found[name] = json.loads((folder / f"runs/{name}/results.json").read_text())
        return found[name]

    return results


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_quick_measures_every_case_and_judges(name, results):
    per_seed, claims, tables = EXPERIMENTS[name]
    content = results(name)
    for seed in (3, 4):
        assert sum(row["seed"] == seed for row in content["rows"]) == per_seed
    assert len(content["claims"]) == claims
    assert all(claim["verdict"] and claim["measured"] and claim["source"] for claim in content["claims"])
    assert len(content["tables"]) == tables
    assert all(len(row) == len(table["columns"]) for table in content["tables"] for row in table["rows"])


def test_style_instance_statistics_alone_give_the_styles_colours(results):
    rows = results("style")["rows"]
    for row in rows:
        assert (row["off"] < 0.1) == (row["norm"] == "instance")
        assert (row["light"] < 0.1) == (row["norm"] == "instance")
    assert len({tuple(row["style mean"]) for row in rows if row["content"] == "china"}) == 3  # whole, and two crops


@pytest.mark.parametrize("option", ["--content", "--style"])
def test_style_refuses_what_is_no_image(option, tmp_path):
    Path(tmp_path / "notes.png").write_text("no image")
    for name in ("notes.png", "missing.png"):
        out = run("style.py", option, name, cwd=tmp_path, code=1)
        assert out.startswith(f"style: {option} must be an image that Pillow can read; got {name} (")
        assert "Traceback" not in out
