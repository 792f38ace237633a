"""What experiments record, on disk at any time; and what of it the pages show."""

import json
import sys
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))

import experiment
import report

CLAIM = {"source": "a lesson", "measured": "1", "verdict": "yes"}


def chosen(monkeypatch, *arguments: str, **defaults) -> Namespace:
    monkeypatch.setattr(sys, "argv", ["mine.py", *arguments])
    return experiment.options("What it is.", "mine", **defaults)


@pytest.fixture
def record_in(tmp_path):
    """A record in one folder, for one of several runs."""
    return lambda quick=False: experiment.Record("mine", Namespace(output=tmp_path, quick=quick), lambda: None)


def test_every_row_is_on_disk_as_soon_as_it_is_added(record_in, tmp_path):
    record = record_in()
    for i in range(3):
        record.add(seed=i, accuracy=np.array([0.5, i]), loss=np.float32(2.5), name="a")
        rows = json.loads((tmp_path / "results.json").read_text())["rows"]
        assert rows == [{"seed": j, "accuracy": [0.5, j], "loss": 2.5, "name": "a"} for j in range(i + 1)]
    record.claim("it is so", **CLAIM)
    record.table("numbers", ("a", "b"), [(1, 2)])
    content = json.loads((tmp_path / "results.json").read_text())
    assert (len(content["rows"]), content["claims"][0]["verdict"], content["tables"][0]["rows"]) == (
        3,
        "yes",
        [["1", "2"]],
    )
    assert not content["finished"]


def test_a_row_is_encoded_once_however_many_follow(record_in, monkeypatch):
    encoded, dumps = [], json.dumps
    monkeypatch.setattr(experiment.json, "dumps", lambda value, **how: encoded.append(value) or dumps(value, **how))
    record = record_in()
    for i in range(20):
        record.add(seed=i)
    assert sorted(value["seed"] for value in encoded if "seed" in value) == list(range(20))


def run(folder: Path, value: int, *, quick: bool = False, interrupted: bool = False) -> None:
    options = Namespace(output=folder, quick=quick)
    with experiment.recording("mine", options, 1) as record:
        record.add(value=value)
        (folder / "mine.png").write_bytes(b"%d" % value)
        if interrupted:
            raise KeyboardInterrupt
        record.claim("it is so", **CLAIM)


def test_no_number_of_quick_and_interrupted_runs_pushes_out_a_finished_one(tmp_path):
    value = lambda name: json.loads((tmp_path / name).read_text())["rows"][0]["value"]
    run(tmp_path, 1, interrupted=True)
    run(tmp_path, 2)
    assert not (tmp_path / "before.json").exists()
    run(tmp_path, 3, interrupted=True)
    run(tmp_path, 4, quick=True)
    run(tmp_path, 5, interrupted=True)
    assert (value("before.json"), value("results.json")) == (2, 5)
    assert (tmp_path / "before.png").read_bytes() == b"2"
    run(tmp_path, 6)
    assert (value("before.json"), value("results.json")) == (2, 6)
    run(tmp_path, 7)
    assert (value("before.json"), value("results.json")) == (6, 7)


def test_only_a_run_to_its_end_is_finished(tmp_path):
    finished = lambda: json.loads((tmp_path / "results.json").read_text())["finished"]
    run(tmp_path, 1, interrupted=True)
    assert not finished()
    run(tmp_path, 1)
    assert finished()


def test_settings_that_are_not_the_defaults_are_named(monkeypatch):
    extend = lambda parser: parser.add_argument("--batch-size", type=int, default=8)
    assert chosen(monkeypatch, "--output", "elsewhere", "--seeds", "5", extend=extend).changed == []
    assert chosen(monkeypatch, "--batch-size", "9", "--seed", "1", extend=extend).changed == ["--batch-size", "--seed"]
    assert "--quick" in chosen(monkeypatch, "--quick").changed


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--seed", "-1", "must be at least 0; got -1"),
        ("--seed", "4294967296", "must be at most 1000000000; got 4294967296"),
        ("--seeds", "0", "must be at least 1; got 0"),
        ("--seeds", "1001", "must be at most 1000; got 1001"),
    ],
)
def test_seeds_out_of_range_are_refused(monkeypatch, capsys, option, value, message):
    with pytest.raises(SystemExit):
        chosen(monkeypatch, option, value)
    assert capsys.readouterr().err.endswith(f"error: argument {option}: {message}\n")


# -- pages ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "settings", "picture", "reason"),
    [
        ({}, {}, True, None),
        ({}, {"quick": True}, True, "the run was --quick"),
        ({"claims": []}, {}, True, "the run was not finished"),
        ({"finished": False}, {}, True, "the run was not finished"),
        ({}, {"changed": ["--seeds", "--epochs"]}, True, "the run had --seeds, --epochs"),
        ({}, {}, False, "mine.png is missing"),
    ],
)
def test_a_run_that_pages_do_not_show_is_named_with_the_reason(
    tmp_path, monkeypatch, capsys, change, settings, picture, reason
):
    monkeypatch.setattr(report, "ROOT", tmp_path)
    monkeypatch.setattr(report, "RESULTS", tmp_path / "results")
    folder = tmp_path / "runs/mine"
    folder.mkdir(parents=True)
    settings = {"quick": False, "changed": [], "seeds": 3, "output": "runs/mine"} | settings
    content = {"name": "mine", "settings": settings, "claims": [CLAIM], "finished": True, "rows": []} | change
    (folder / "results.json").write_text(json.dumps(content))
    if picture:
        (folder / "mine.png").write_bytes(b"picture")
    report.collect([])
    said = capsys.readouterr().out
    if reason is None:
        assert said == ""
        kept = json.loads((tmp_path / "results/mine.json").read_text())
        assert kept == {"name": "mine", "settings": {"quick": False, "seeds": 3}, "claims": [CLAIM]}
    else:
        assert said == f"report: runs/mine/results.json is left out: {reason}.\n"
        assert not list((tmp_path / "results").iterdir())


def test_times_come_from_the_results_and_other_programs_keep_theirs():
    page = "| `python examples/a.py [--x X]` | what `a` is | 9 s |\n| `python examples/b.py` | other | 20 s |\n"
    page += "| `python examples/report.py --run` | all | half an hour |\n| `python examples/a.py` | no time"
    expected = page.replace(" 9 s", " 119 s").replace("half an hour", "3 minutes")
    assert report.timed(page, {"a": {"seconds": 119.3}, "c": {"seconds": 70.0}}) == expected


def test_a_table_says_machine_versions_and_the_number_of_seeds():
    machine = {"device": "2 cores", "python": "3.11", "jax": "0.10", "jaxnorm": "0.7", "date": "May 2026"}
    content = {"machine": machine, "settings": {"seeds": 3}, "tables": []}
    assert report.tables(content) == "(2 cores, Python 3.11, jax 0.10, jaxnorm 0.7, May 2026; `--seeds 3`)"
