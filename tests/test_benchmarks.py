"""The benchmark compares like with like, measures what it says, and its tables are those of its file of results."""

import functools
import json
import mmap
import re
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from tolerance import tolerance

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

pytestmark = pytest.mark.peers  # it imports them all

RESULTS = sorted((ROOT / "benchmarks" / "results").glob("*.json"))


def reference(case, x, parameters):
    """The norm in float64."""
    x, scale = np.asarray(x, np.float64), np.asarray(parameters["scale"], np.float64)
    bias = np.asarray(parameters.get("bias", 0), np.float64)
    groups = {"group_norm": case.groups, "instance_norm": case.features}.get(case.norm, 1)
    g = x.reshape(*x.shape[:-1], groups, -1) if groups > 1 else x
    axes = {"layer_norm": (-1,), "rms_norm": (-1,), "batch_norm": tuple(range(x.ndim - 1))}
    axes = axes.get(case.norm, (*range(1, x.ndim - 1), x.ndim))
    mean = 0 if case.norm == "rms_norm" else g.mean(axes, keepdims=True)
    y = (g - mean) / np.sqrt(((g - mean) ** 2).mean(axes, keepdims=True) + 1e-5)
    return y.reshape(x.shape) * scale + bias


def small(case):
    """The same norm where it takes no time."""
    shape = (4, *(6 for _ in case.shape[1:-1]), 32)
    return case._replace(shape=shape, groups=case.groups and 8)


def one_of_each():
    from benchmarks.shapes import CASES

    return [small(case) for case in {case.norm: case for case in CASES}.values()]


@pytest.fixture
def as_users_run():
    """Peers rely on promotions that this suite forbids."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_everybody_computes_the_same_norm_and_gradient(dtype, as_users_run):
    from benchmarks import modes
    from benchmarks.contenders import JAX, numbers

    for case in one_of_each():
        x, _, parameters = numbers(case, dtype)
        expected, gradients = reference(case, x, parameters), {}
        for name, make in JAX.items():
            contender = make(case, dtype)
            if contender is None:
                continue
            function, args = modes.forward_and_backward(contender)
            y, _, (dx, dp) = jax.jit(function)(*args)
            y, dx = (np.asarray(a, np.float64) for a in (y, dx))
            if y.shape != expected.shape:
                y, dx = (np.moveaxis(a, 1, -1) for a in (y, dx))
            # Half-precision parameters (Haiku's) and roundings in the middle cost two more.
            close = tolerance("float32", 32) * 8 if dtype == "float32" else 0.06
            np.testing.assert_allclose(y, expected, atol=close, err_msg=f"{case.norm}, {name}")
            gradients[name] = {"x": dx} | {k: np.asarray(v, np.float64) for k, v in dp.items()}
        for name, found in gradients.items():
            for key, value in found.items():
                scale = np.abs(gradients["jaxnorm"][key]).max()
                close = (1e-4 if dtype == "float32" else 0.05) * scale
                ours = gradients["jaxnorm"][key]
                np.testing.assert_allclose(value, ours, atol=close, err_msg=f"{case.norm}, {name}, {key}")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_torch_computes_it_too(dtype):
    from benchmarks.contenders import numbers
    from benchmarks.torch_contender import torch_call, torch_norm

    for case in one_of_each():
        x, _, parameters = numbers(case, dtype)
        expected = reference(case, x, parameters)
        y, (dx, *_) = torch_call(torch_norm(case, dtype), "forward+backward")()
        y = y.detach().float().numpy()
        y = y if y.shape == expected.shape else np.moveaxis(y, 1, -1)
        np.testing.assert_allclose(y, expected, atol=1e-4 if dtype == "float32" else 0.06, err_msg=case.norm)
        assert tuple(dx.shape) in (case.shape, (case.shape[0], case.shape[-1], *case.shape[1:-1]))


def test_rounds_are_paired_and_quantiles_are_of_ratios():
    from benchmarks.timing import interleaved, ratios

    seconds = {"jaxnorm": np.array([1.0, 2.0, 4.0, 1.0, 2.0]), "other": np.array([2.0, 4.0, 8.0, 2.0, 4.0])}
    assert ratios(seconds, "jaxnorm")["other"] == [2.0, 2.0, 2.0]  # though its times spread fourfold
    called = []

    def call(name):
        called.append(name)
        time.sleep(0.005 if name == "a" and called.count("a") % 2 else 0)  # the first call of a turn
        return mmap.mmap(-1, 2**20).write(bytes(2**20)) if name == "b" else None  # 256 pages that were not there

    first, second, faults = interleaved({name: functools.partial(call, name) for name in "abc"}, rounds=7)
    assert all(values.shape == (7,) for timed in (first, second) for values in timed.values())
    assert first["a"].min() > 0.005 > second["a"].max()
    assert faults["b"].min() >= 256 > faults["c"].max()
    assert called[::2] == called[1::2]  # a turn is two calls
    rounds = [called[i : i + 6 : 2] for i in range(0, 60, 6)]
    assert all(sorted(r) == ["a", "b", "c"] for r in rounds)
    assert len({tuple(r) for r in rounds}) > 1


def test_a_row_has_the_second_call_and_the_first_apart(monkeypatch):
    from benchmarks import measure
    from benchmarks.shapes import CASES

    first = {"jaxnorm": np.full(3, 2.0), "other": np.full(3, 10.0)}
    second = {"jaxnorm": np.full(3, 1.0), "other": np.full(3, 3.0)}
    monkeypatch.setattr(
        measure,
        "interleaved",
        lambda calls, rounds: (first, second, {"jaxnorm": np.zeros(3), "other": np.array([9.0, 0, 60])}),
    )
    row = measure.timed(dict.fromkeys(first), CASES[0], "float32", "forward", 3)[1]
    assert (row["contender"], row["seconds"], row["ratio"]) == ("other", [3.0] * 3, [3.0] * 3)
    assert (row["first_seconds"], row["first_ratio"]) == ([10.0] * 3, [5.0] * 3)
    assert row["page_faults"] == 9.0


def test_calls_that_waited_for_pages_are_left_out_of_the_summary():
    from benchmarks.report import summary

    def rows(shape, ours, theirs, ratio):
        about = {"norm": "layer_norm", "shape": shape, "dtype": "float32", "mode": "forward"}
        return [
            about | {"contender": "jaxnorm", "ratio": [1.0] * 3, "page_faults": ours},
            about | {"contender": "other", "ratio": [ratio] * 3, "page_faults": theirs},
        ]

    _, names, lines = summary([*rows([1, 2], 0, 0, 2.0), *rows([3, 4], 0, 51, 9.0), *rows([5, 6], 51, 0, 0.1)])
    assert names[3:] == ("other",)
    assert lines == [("layer and RMS norm", "float32", "forward", "2.00 (2.00)")]


@pytest.mark.full
def test_a_quick_run_measures_and_interruptions_lose_nothing(tmp_path):
    command = [sys.executable, "-m", "benchmarks", "--quick", "--output", str(tmp_path), "--dtype", "float32"]
    only = ["--norm", "layer_norm", "--model", "small layer", "--library", "Flax Linen", "--part", "norms"]
    done = subprocess.run([*command, *only], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "results.json").read_text())
    assert {row["contender"] for row in results["rows"]} == {"jaxnorm", "Flax Linen", "copy of the same bytes"}
    for row in results["rows"]:
        low, middle, high = row["seconds"]
        assert 0 < low <= middle <= high
        assert row["ratio"] == [1, 1, 1] or row["contender"] != "jaxnorm"
    kept = {row["contender"]: row["residual_bytes"] for row in results["rows"] if "residual_bytes" in row}
    assert kept["jaxnorm"] < 0.05 * kept["Flax Linen"]
    assert {"jax", "jaxlib", "flax"} <= results["machine"]["versions"].keys()


def test_wrong_arguments_get_one_error():
    for arguments, error in (
        (["--write", "nowhere.json"], "--write must be a file of results; got nowhere.json, which is not there"),
        (["--rounds", "0"], "--rounds must be at least 1; got 0"),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks", *arguments], cwd=ROOT, capture_output=True, text=True
        )
        assert done.returncode == 2
        assert done.stderr.endswith(f"error: {error}\n")


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_tables_in_the_pages_are_those_of_the_results(path):
    from benchmarks.report import PAGES, written

    results = json.loads(path.read_text())
    for page in PAGES:
        text = page.read_text()
        assert written(text, results, path.stem) == text, f"run python -m benchmarks --write {path.relative_to(ROOT)}"
    assert any(re.search(rf"<!-- benchmark {path.stem} ", page.read_text()) for page in PAGES)
    assert path.with_suffix(".png").exists()
