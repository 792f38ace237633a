"""The examples run as a user runs them, and leave what they promise."""

import ast
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import flax
import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from jaxnorm.inspect import History

EXAMPLES = Path(__file__).parent.parent / "examples"


def run(name: str, *arguments: str, cwd: Path, code: int = 0) -> str:
    command = [sys.executable, "-W", "error", str(EXAMPLES / name), *arguments]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300)
    assert done.returncode == code, done.stderr
    return done.stdout + done.stderr


PROGRAMS = sorted(path.name for path in EXAMPLES.glob("*.py") if "__main__" in path.read_text())


@pytest.mark.full
@pytest.mark.parametrize("name", PROGRAMS)
def test_help(name, tmp_path):
    assert name in run(name, "--help", cwd=tmp_path)


@pytest.mark.parametrize("arguments", [(), ("--quick", "--seed", "7")])
def test_quickstart_asserts_its_claims(arguments, tmp_path):
    out = run("quickstart.py", *arguments, cwd=tmp_path)
    assert "-1.2247" in out
    assert "StandardScaler" in out
    left = json.loads((tmp_path / "runs/quickstart/results.json").read_text())
    assert len(left["rows"]) == 16
    assert (tmp_path / "runs/quickstart/quickstart.png").stat().st_size > 10_000


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


def statistics(checkpoint: Path) -> list[np.ndarray]:
    """All running means and all variances of a checkpoint, in either idiom."""
    with ocp.StandardCheckpointer() as checkpointer:
        leaves = jax.tree_util.tree_leaves_with_path(checkpointer.restore(checkpoint))
    paired = [(jax.tree_util.keystr(path), leaf) for path, leaf in leaves]
    return [np.concatenate([leaf for path, leaf in paired if f"['{name}']" in path]) for name in ("mean", "var")]


@pytest.mark.full
@pytest.mark.parametrize("name", ["flax_linen", "flax_nnx"])
def test_flax_quick_resumes_as_if_uninterrupted(name, tmp_path):
    out = run(f"{name}.py", "--quick", "--seed", "3", cwd=tmp_path)
    assert "identical" in out
    assert "WARNING" not in out
    assert (tmp_path / f"runs/{name}/{name}.png").stat().st_size > 10_000
    numbers = json.loads((tmp_path / f"runs/{name}/results.json").read_text())
    versions = {"seed": 3, "epochs": 2, "jax": jax.__version__, "flax": flax.__version__}
    assert numbers["settings"].items() >= versions.items()
    accuracy = numbers["test accuracy"]
    assert [len(epochs) for epochs in accuracy.values()] == [1, 1, 1]
    assert accuracy["restored"] == accuracy["uninterrupted"] > accuracy["first half"]
    difference = numbers["largest difference"]
    for pair in ("first weights, saved", "saved, end"):
        assert min(difference.pop(pair).values()) > 0.01
    assert set(difference) == {"saved, restored", "end, end after restoring"}
    for pair in difference.values():
        assert pair == {"parameters": 0, "running statistics": 0}  # every bit
    means, variances = statistics(tmp_path / f"runs/{name}/halfway")
    assert means.size == variances.size == 48
    assert np.all(means != 0)  # what they start from
    assert np.all(variances != 1)
    # Rounding: logits reach 10, and a convolution of one image may sum in another order.
    assert numbers["one at a time"]["largest difference of logits"] < 5e-5
    assert numbers["one at a time"]["other answers"] == 0


@pytest.mark.parametrize("name", ["flax_linen", "flax_nnx"])
@pytest.mark.full
def test_flax_reaches_97_percent_and_overwrites_its_checkpoint(name, tmp_path):
    for seed in ("0", "1", "2"):
        run(f"{name}.py", "--seed", seed, cwd=tmp_path)
        numbers = json.loads((tmp_path / f"runs/{name}/results.json").read_text())
        assert numbers["test accuracy"]["restored"] == numbers["test accuracy"]["uninterrupted"]
        assert numbers["test accuracy"]["restored"][-1] >= 0.97
        assert set(numbers["largest difference"]["end, end after restoring"].values()) == {0}
        assert numbers["one at a time"]["largest difference of logits"] < 1e-4  # logits reach 20


def test_flax_refuses_to_overwrite_what_is_no_checkpoint(tmp_path):
    (tmp_path / "mine/halfway").mkdir(parents=True)
    (tmp_path / "mine/halfway/notes.txt").write_text("precious")
    out = run("flax_linen.py", "--output", "mine", cwd=tmp_path, code=2)
    rule = "--output must be a folder to write results.json and halfway/ in"
    assert f"{rule}; got mine: what is in halfway/ is no checkpoint. Name another." in out
    assert (tmp_path / "mine/halfway/notes.txt").read_text() == "precious"


def functions(name: str) -> dict[str, str]:
    """Every function of an example in the order of the file, and its code; `setup` is Linen's word for `__init__`."""
    nodes = [n for n in ast.walk(ast.parse((EXAMPLES / name).read_text())) if isinstance(n, ast.FunctionDef)]
    return {n.name.replace("setup", "__init__"): ast.unparse(n) for n in sorted(nodes, key=lambda n: n.lineno)}


def test_flax_examples_have_the_same_structure():
    linen, nnx = functions("flax_linen.py"), functions("flax_nnx.py")
    assert list(linen) == list(nnx)
    for name in ("load", "differences", "report", "parse", "main"):  # where no idiom differs, nothing does
        assert linen[name] == nnx[name]


@pytest.mark.full
def test_distributions_quick_leaves_page_picture_and_histories(tmp_path):
    out = run("distributions.py", "--quick", "--seed", "3", cwd=tmp_path)
    for word in ("with batch norm", "without", "accuracy", "index.html"):
        assert word in out
    folder = tmp_path / "runs/distributions"
    assert (folder / "distributions.png").stat().st_size > 10_000
    assert (folder / "index.html").stat().st_size > 1_000_000
    hidden = [f"hidden {i}" for i in range(1, 6)]
    seen = {name: History.load(folder / f"{name}.npz") for name in ("with", "without")}
    for name, history in seen.items():
        assert history.steps.tolist() == [0, 1, 2]
        assert set(hidden) <= set(history.names)
        assert all(history[layer].histogram.sum(-1).tolist() == [1797 * 100] * 3 for layer in hidden), name
    normalized = seen["with"]["hidden 3"]  # by the batch itself, which before training has scale 1 and bias 0
    assert abs(normalized.mean[0]) < 1e-5
    assert abs(normalized.std[0] - 1) < 1e-2
    before, scalars = seen["with"]["hidden 3, before the norm"], seen["with"].scalars
    assert scalars["hidden 3, before the norm/running mean"][0] == 0
    for running, own in (("running mean", before.mean), ("running standard deviation", before.std)):
        followed = scalars[f"hidden 3, before the norm/{running}"]
        assert abs(followed[-1] - own[-1]) < 0.2 * before.std[-1]


@pytest.mark.full
def test_distributions_puts_aside_a_finished_run_and_no_other(tmp_path):
    folder = tmp_path / "runs/distributions"
    steps = lambda name: len(History.load(folder / name).steps)
    run("distributions.py", "--epochs", "3", cwd=tmp_path)
    for seed in ("1", "2"):  # the second time it is the quick run that gives way
        run("distributions.py", "--quick", "--seed", seed, cwd=tmp_path)
        assert [steps(f"before/{name}.npz") for name in ("with", "without")] == [4, 4]
        assert [steps(f"{name}.npz") for name in ("with", "without")] == [3, 3]
        assert {path.name for path in (folder / "before").iterdir()} == {
            "with.npz", "without.npz", "index.html", "distributions.png",
        }  # fmt: skip


@pytest.mark.full
def test_distributions_interrupted_keeps_what_it_has(tmp_path):
    command = [sys.executable, str(EXAMPLES / "distributions.py"), "--epochs", "10000"]
    folder = tmp_path / "runs/distributions"
    with subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as program:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "without.npz").write_bytes(b"of a run that was interrupted")
        while not (folder / "with.npz").exists() and program.poll() is None:
            time.sleep(0.1)
        time.sleep(1)
        program.send_signal(signal.SIGINT)
        out, _ = program.communicate(timeout=120)
    assert program.returncode == 0, out
    assert "Interrupted: what was measured so far is kept." in out
    assert len(History.load(folder / "with.npz").steps) >= 1
    assert (folder / "index.html").exists()
    assert not (folder / "without.npz").exists()  # of another run


@pytest.mark.parametrize("name", ["digits", "distributions", "flax_linen", "flax_nnx"])
@pytest.mark.parametrize("seed", ["-1", "4294967296"])
def test_a_seed_out_of_range_is_refused(name, seed, tmp_path):
    out = run(f"{name}.py", "--seed", seed, cwd=tmp_path, code=2)
    assert out.endswith(f"{name}.py: error: --seed must be from 0 to 1000000000; got {seed}\n")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("name", ["digits", "distributions"])
def test_a_file_in_the_place_of_the_output_is_refused(name, tmp_path):
    (tmp_path / "mine").write_text("precious")
    out = run(f"{name}.py", "--output", "mine", cwd=tmp_path, code=2)
    assert f"{name}.py: error: --output must be a folder that can be written; got mine (" in out
    assert (tmp_path / "mine").read_text() == "precious"


def test_distributions_refuses_a_batch_of_one(tmp_path):
    out = run("distributions.py", "--batch-size", "1", cwd=tmp_path, code=2)
    assert "--batch-size must be from 2 to 1797, the images; got 1" in out
