"""The examples run as a user runs them, and leave what they promise."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


def run(name: str, *arguments: str, cwd: Path, code: int = 0) -> str:
    command = [sys.executable, str(EXAMPLES / name), *arguments]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300)
    assert done.returncode == code, done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize("name", sorted(p.name for p in EXAMPLES.glob("*.py")))
def test_help(name, tmp_path):
    assert name in run(name, "--help", cwd=tmp_path)


def test_quickstart_asserts_its_claims(tmp_path):
    out = run("quickstart.py", cwd=tmp_path)
    assert "-1.2247" in out
    assert "StandardScaler" in out


def test_digits_quick_leaves_table_picture_and_numbers(tmp_path):
    out = run("digits.py", "--quick", "--seed", "3", cwd=tmp_path)
    for word in ("with batch norm", "without", "inference", "accuracy", "seconds"):
        assert word in out
    assert (tmp_path / "runs/digits/digits.png").stat().st_size > 10_000
    numbers = json.loads((tmp_path / "runs/digits/digits.json").read_text())
    assert numbers["settings"]["seed"] == 3
    for name in ("with batch norm", "without"):
        assert len(numbers[name]["test accuracy"]) == 3  # before training and after each of two epochs
        assert set(numbers[name]["final"]) == {"train", "inference"}
    assert numbers["with batch norm"]["final"]["train"] != numbers["with batch norm"]["final"]["inference"]
    assert numbers["without"]["final"]["train"] == numbers["without"]["final"]["inference"]


@pytest.mark.full
@pytest.mark.parametrize("seed", ["0", "1", "2"])
def test_digits_with_batch_norm_reaches_97_percent(seed, tmp_path):
    run("digits.py", "--seed", seed, cwd=tmp_path)
    numbers = json.loads((tmp_path / "runs/digits/digits.json").read_text())
    assert numbers["with batch norm"]["final"]["inference"]["test accuracy"] >= 0.97
    assert numbers["with batch norm"]["seconds"] + numbers["without"]["seconds"] < 60


def test_digits_refuses_a_batch_of_one(tmp_path):
    out = run("digits.py", "--batch-size", "1", cwd=tmp_path, code=2)
    assert "--batch-size must be from 2 to 1347, the training images; got 1" in out
