"""The experiments run in seconds, measure every case and seed, judge their claims, and refuse what they cannot use."""

import argparse
import importlib
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from test_examples import EXAMPLES, run

pytestmark = pytest.mark.full  # each trains for seconds: CI runs them

# program: (how many rows for a seed, how many claims, how many tables)
EXPERIMENTS = {
    "after_training": (1, 4, 1),
    "characters": (4, 3, 1),
    "covariate_shift": (3, 3, 1),
    "gradient_growth": (5, 1, 1),
    "init_scale": (20, 2, 1),
    "input_scale": (48, 2, 1),
    "learning_rates": (18, 1, 1),
    "memorizing": (6, 1, 2),
    "placement": (7, 3, 2),
    "recalibrate": (4, 2, 1),
    "regularization": (18, 3, 2),
    "style": (6, 1, 2),
    "very_deep": (16, 3, 2),
    "which_norm": (6, 4, 1),
    "with_and_without": (6, 3, 2),
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
        assert sum(row.get("seed") == seed for row in content["rows"]) == per_seed
    assert len(content["claims"]) == claims
    assert all(claim["verdict"] and claim["measured"] and claim["source"] for claim in content["claims"])
    assert len(content["tables"]) == tables
    assert all(len(row) == len(table["columns"]) for table in content["tables"] for row in table["rows"])


def test_characters_only_batch_norm_sees_the_future(results):
    for row in results("characters")["rows"]:
        assert (row["leak"] > 1e-4) == (row["norm"] == "batch")
        assert (row["loss"] != row["train_mode"]) == (row["norm"] == "batch")


def test_placement_every_order_and_warm_up_is_another_network(results):
    rows = results("placement")["rows"]
    assert len({row["loss"] for row in rows if "loss" in row}) == 8  # two places, with and without warm-up, two seeds
    for seed in (3, 4):
        assert len({row["accuracy"] for row in rows if row["seed"] == seed and "order" in row}) == 3
    no = next(claim for claim in results("placement")["claims"] if "ResNet" in claim["claim"])
    assert no["verdict"].startswith("no: conv-BN-ReLU")


def test_which_norm_batch_norm_learns_first(results):
    """In a single pass with small batches it is ahead of the network without a norm, in every seed."""
    rows = [row for row in results("which_norm")["rows"] if row["batch_size"] == 4]
    worst = min(row["accuracy"] for row in rows if row["norm"] == "batch")
    assert worst > 0.1 + max(row["accuracy"] for row in rows if row["norm"] == "none")


def test_learning_rates_the_norm_trains_where_nothing_else_does(results):
    """A rate of 1, two passes: with batch norm it learns, without it is at chance."""
    at_one = {norm: column(results("learning_rates"), "accuracy", norm=norm, rate=1.0) for norm in ("none", "batch")}
    assert at_one["batch"].min() > 0.8
    assert at_one["none"].max() < 0.2


def test_style_instance_statistics_alone_give_the_styles_colours(results):
    rows = results("style")["rows"]
    for row in rows:
        assert (row["off"] < 0.1) == (row["norm"] == "instance")
        assert (row["light"] < 0.1) == (row["norm"] == "instance")
    assert len({tuple(row["style mean"]) for row in rows if row["content"] == "china"}) == 3  # whole, and two crops


def column(content: dict, key: str, **where) -> np.ndarray:
    rows = [row for row in content["rows"] if all(row.get(k) == v for k, v in where.items())]
    return np.array([row[key] for row in rows if key in row])


def test_with_the_norm_every_run_is_ahead_within_80_steps(results):
    content = results("with_and_without")
    means = {norm: column(content, "accuracy", norm=norm, network="relu").mean(1) for norm in ("none", "batch")}
    assert len(means["none"]) == 9  # two seeds and one for tuning, at three rates
    assert (means["batch"] > means["none"] + 0.02).all()
    for row in content["rows"]:
        looks = np.array(row.get("accuracy", [])) >= 0.95
        three = [4 * (i + 1) for i in range(len(looks) - 2) if looks[i : i + 3].all()]
        assert row.get("steps") == (three[0] if three else None)


def test_init_scale_is_forgotten_only_with_the_norm(results):
    content = results("init_scale")
    small = {norm: column(content, "accuracy", norm=norm, scale=0.01, rate=0.1) for norm in ("none", "batch")}
    assert (small["none"] < 0.2).all()
    assert (small["batch"] > 0.7).all()


def test_regularization_drops_out_in_training_only(results):
    content = results("regularization")
    for norm in ("none", "batch"):
        loss = {drop: column(content, "train_loss", part="dropout", norm=norm, drop=drop) for drop in (0.0, 0.3)}
        assert loss[0.3].mean() > 1.1 * loss[0.0].mean()  # harder to learn, judged without dropout
    trained = {
        norm: column(content, "train_accuracy", part="dropout", norm=norm, rate=0.1) for norm in ("none", "batch")
    }
    assert trained["batch"].min() > trained["none"].mean()


def test_gradients_grow_as_the_theory_says(results):
    growth = {
        norm: np.median(column(results("gradient_growth"), "growth", norm=norm, width=128, batch=128))
        for norm in ("none", "batch", "layer", "rms")
    }
    assert growth["batch"] == pytest.approx(np.sqrt(np.pi / (np.pi - 1)), rel=0.015)
    assert growth["none"] == pytest.approx(1, rel=0.015)
    assert growth["layer"] == pytest.approx(1, rel=0.05)
    assert growth["rms"] == pytest.approx(1, rel=0.05)


def test_very_deep_batch_norm_lets_gradients_grow_in_plain_networks_only(results):
    ratios = {}
    for norm in ("none", "batch"):
        for kind in ("plain", "residual"):
            gradients = column(results("very_deep"), "gradients", part="gradients", norm=norm, kind=kind)
            ratios[norm, kind] = gradients[:, 0] / gradients[:, -1]
    assert (ratios["batch", "plain"] > 3).all()  # 1.21 to the ninth is 5.6
    assert (ratios["batch", "plain"] < 9).all()
    assert (ratios["batch", "residual"] < 3).all()
    assert (abs(np.log(ratios["none", "plain"])) < np.log(2)).all()


def test_input_scale_is_forgotten_by_norms_and_by_feature_scaling(results):
    content = results("input_scale")
    for network in ("none", "none, scaled inputs", "batch", "batch, inputs too"):
        large = column(content, "accuracy", network=network, how="all alike", size=1e3, rate=0.1)
        assert (large < 0.3).all() if network == "none" else (large > 0.85).all()
        assert (column(content, "accuracy", network=network, how="all alike", size=1.0, rate=0.1) > 0.85).all()


def test_memorizing_the_norm_gives_back_more_wrong_labels_at_every_rate(results):
    rows = {(row["norm"], row["seed"], row["rate"]): row["memorized"][-1] for row in results("memorizing")["rows"]}
    for (norm, seed, rate), value in rows.items():
        assert 0 <= value < 0.4  # not learned from neighbours: four epochs are too few
        assert norm == "batch" or rows["batch", seed, rate] > value


def test_after_training_running_averages_beat_a_batch_of_two(results):
    for row in results("after_training")["rows"]:
        assert row["running"] > 0.9
        assert row["batches of 2"] < 0.7
        assert row["batches of 2"] < row["batches of 10"] < row["batches of 60"]
        assert np.shape(row["mean"]) == np.shape(row["std"]) == (3, 100)
        assert row["standard"] < 1  # something was learned


def test_covariate_shift_the_norm_holds_inputs_and_noise_moves_them(results):
    moved = {norm: column(results("covariate_shift"), "inputs", norm=norm) for norm in ("none", "batch", "noisy")}
    assert (moved["batch"] < 0.2 * moved["none"]).all()
    # Of two uniform numbers within 0.5 the mean distance is 1/3, over a deviation from 1 to 1.25.
    assert (abs(moved["noisy"] - 1 / 3) < 0.1).all()


@pytest.mark.parametrize(
    ("name", "option", "low"),
    [
        ("after_training", "--epochs", 1),
        ("covariate_shift", "--steps", 12),
        ("gradient_growth", "--depth", 25),
        ("init_scale", "--epochs", 1),
        ("input_scale", "--epochs", 1),
        ("learning_rates", "--epochs", 1),
        ("memorizing", "--epochs", 2),
        ("placement", "--epochs", 1),
        ("regularization", "--epochs", 1),
        ("very_deep", "--epochs", 1),
        ("which_norm", "--epochs", 1),
        ("with_and_without", "--steps", 12),
    ],
)
def test_too_short_is_refused(name, option, low, tmp_path):
    out = run(f"{name}.py", option, str(low - 1), cwd=tmp_path, code=2)
    assert out.endswith(f"{name}.py: error: argument {option}: must be at least {low}; got {low - 1}\n")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("option", ["--content", "--style"])
def test_style_refuses_what_is_no_image(option, tmp_path):
    Path(tmp_path / "notes.png").write_text("no image")
    for name in ("notes.png", "missing.png"):
        out = run("style.py", option, name, cwd=tmp_path, code=1)
        assert out.startswith(f"style: {option} must be an image that Pillow can read; got {name} (")
        assert "Traceback" not in out


def test_a_record_keeps_what_an_earlier_run_left_until_and_after_its_first_row(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    experiment = importlib.import_module("experiment")
    (tmp_path / "mine.png").write_bytes(b"old")
    (tmp_path / "results.json").write_text("old")
    record = experiment.Record("mine", argparse.Namespace(output=tmp_path), lambda: None)
    record.save()  # as at the end of a run that was interrupted before it had anything
    assert (tmp_path / "results.json").read_text() == "old"
    for value in (1, 2):
        record.add(value=value)
    assert (tmp_path / "before.json").read_text() == "old"
    assert (tmp_path / "before.png").read_bytes() == b"old"
    assert not (tmp_path / "mine.png").exists()  # it is not a picture of these rows
    assert json.loads((tmp_path / "results.json").read_text())["rows"] == [{"value": 1}, {"value": 2}]


LOSSES = (
    "after_training characters init_scale input_scale learning_rates placement recalibrate regularization which_norm"
)


@pytest.mark.parametrize("name", [*LOSSES.split(), "very_deep"])
def test_training_losses_are_kept_and_fall(name, results):
    """Of every epoch, or of stretches of the only one."""
    rows = [row for row in results(name)["rows"] if row.get("part") != "gradients"]
    losses = [np.array(row["losses"], float) for row in rows]
    assert all(loss.ndim == 1 and len(loss) for loss in losses)
    fell = [loss[-1] < loss[0] for loss in losses if len(loss) > 1]
    assert len(losses[0]) == 1 or np.mean(fell) > 0.5
    assert len({tuple(loss) for loss in losses}) > len(losses) / 8  # every run has its own


@pytest.mark.parametrize("name", ["with_and_without", "covariate_shift", "memorizing"])
def test_curves_of_a_case_that_is_interrupted_are_kept(name, tmp_path, monkeypatch):
    """Ctrl-C at the third look: two are there, of every run."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    program, networks = importlib.import_module(name), importlib.import_module("networks")
    evaluate, looks = networks.Trainer.evaluate, []

    def third(*args, **kwargs):
        looks.append(1)
        if len(looks) == 3:
            raise KeyboardInterrupt
        return evaluate(*args, **kwargs)

    monkeypatch.setattr(networks.Trainer, "evaluate", third)
    monkeypatch.setattr(sys, "argv", [name, "--quick", "--output", str(tmp_path)])
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        program.main()
    content = json.loads((tmp_path / "results.json").read_text())
    assert len(content["rows"]) == {"covariate_shift": 3}.get(name, 9)  # two seeds and one for tuning, at their rates
    assert content["claims"] == []
    for row in content["rows"]:
        assert len(row["accuracy"]) == 2
        assert 0 < row["accuracy"][0] != row["accuracy"][1]
        assert len(row.get("inputs", [0])) == len(row.get("gradients", [0])) == 1


def test_an_interrupted_experiment_keeps_its_rows_and_says_so(tmp_path):
    results = tmp_path / "runs/gradient_growth/results.json"
    command = [sys.executable, str(EXAMPLES / "gradient_growth.py"), "--quick"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as program:
        while program.poll() is None and not (results.exists() and json.loads(results.read_text())["rows"]):
            time.sleep(0.01)
        program.send_signal(signal.SIGINT)
        out, _ = program.communicate(timeout=120)
    content = json.loads(results.read_text())
    assert program.returncode == 0, out
    assert f"Interrupted: {len(content['rows'])} runs are kept." in out
    assert 1 <= len(content["rows"]) < 10
    assert content["claims"] == []
    assert not results.with_suffix(".part").exists()
