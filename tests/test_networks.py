"""What many experiments stand on: runs side by side that are each decided by their own seed."""

import itertools
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))

import networks
import transformer
from networks import TRAIN, Data, Network, Trainer, averages, digits, perceptron

ROUNDING = 2e-6  # measured: 2.4e-7, a unit in the last place of a loss


@pytest.fixture(autouse=True)
def programs_promotion():
    """Examples are not written for the strict world of the library's tests."""
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        yield


def noisy(name: str) -> Network:
    """A small perceptron whose logits are disturbed in training, by the keys of its steps."""
    inner = perceptron(name, (64, 20, 10))

    def apply(params, stats, x, training, key):
        logits, stats = inner.apply(params, stats, x, training, key)
        return logits + (0.1 * jax.random.normal(key, logits.shape) if training else 0), stats

    return Network(inner.init, apply)


NETWORKS = {"none": noisy("none"), "batch": noisy("batch"), "quiet": perceptron("none", (64, 20, 10))}


def trained(runs: list[tuple[int, float]], name: str = "batch", epochs: int = 2) -> list:
    """Losses of every step and final weights of each run, a seed at a learning rate."""
    seeds, rates = zip(*runs, strict=True)
    settings = {"rate": jnp.array(rates, jnp.float32)}
    trainer = Trainer(NETWORKS[name], digits(seeds, train=300), settings, seeds=seeds, batch_size=30)
    losses = [trainer.epoch() for _ in range(epochs)]
    kernels = [np.asarray(layer["kernel"]).reshape(len(runs), -1) for layer in trainer.state[0]]
    return list(np.concatenate([*losses, *kernels], 1))


def test_other_runs_do_not_change_a_run():
    """Equal but for the rounding of a product of two runs, of one or of three."""
    first, second = trained([(3, 0.1), (5, 0.1)])
    (alone,) = trained([(5, 0.1)])
    _, between, among = trained([(3, 0.1), (4, 0.1), (5, 0.1)])
    rates = trained([(5, 0.03), (5, 0.1), (3, 0.1)])
    for same in (alone, among, rates[1]):
        np.testing.assert_allclose(same, second, atol=ROUNDING, rtol=0)
    np.testing.assert_allclose(rates[2], first, atol=ROUNDING, rtol=0)
    for other in (first, between, rates[0]):
        assert np.abs(other - second).max() > 0.1


def test_one_seed_is_one_start_and_one_order_of_batches():
    """At a rate of zero whatever is left of a run is its weights, batches and keys."""
    still, again, other = trained([(5, 0.0), (5, 0.0), (6, 0.0)])
    np.testing.assert_array_equal(still, again)
    assert np.abs(still - other).max() > 0.1
    without = trained([(5, 0.0)], "none")[0]
    np.testing.assert_array_equal(without[20:], still[20:])  # the weights: norms share them
    (quiet,) = trained([(5, 0.0)], "quiet")
    first, second = quiet[:20].reshape(2, 10)
    assert np.abs(first - second).max() > 1e-2  # each epoch has an order of its own
    np.testing.assert_allclose(first.sum(), second.sum(), rtol=1e-5)  # of all images


def test_losses_of_every_epoch_are_the_means_of_their_steps():
    settings = {"rate": jnp.array([0.1, 0.01])}
    trainer = Trainer(NETWORKS["quiet"], digits([3, 4], train=300), settings, seeds=[3, 4], batch_size=30)
    steps = [trainer.epoch() for _ in range(3)]
    assert trainer.losses.shape == (2, 3)
    np.testing.assert_allclose(trainer.losses, np.stack([epoch.mean(1) for epoch in steps], 1), atol=2e-5)
    assert (trainer.losses[:, -1] < trainer.losses[:, 0]).all()
    halves = averages(steps[0], 2)
    np.testing.assert_allclose(halves[:, 0], steps[0][:, :5].mean(1), atol=2e-5)
    np.testing.assert_allclose(averages(steps[0]), steps[0], atol=2e-5)  # no more stretches than steps


def test_a_step_is_timed_of_one_run_and_leaves_the_state(monkeypatch):
    shapes = []

    def seen(network, optimizer, state, *rest):
        shapes.append([leaf.shape for leaf in jax.tree.leaves((state[0], rest[1].x))])
        return epoch(network, optimizer, state, *rest)

    epoch = networks._epoch
    settings = {"rate": jnp.array([0.1, 0.1])}
    trainer = Trainer(NETWORKS["batch"], digits([3, 4]), settings, seeds=[3, 4], batch_size=60, steps=4)
    before = jax.tree.map(np.array, trainer.state)
    monkeypatch.setattr(networks, "_epoch", seen)
    # By a clock that ticks whenever it is looked at an epoch of four steps takes one tick.
    ticks = itertools.count()
    monkeypatch.setattr(networks, "time", SimpleNamespace(perf_counter=lambda: float(next(ticks))))
    assert trainer.step_seconds(3) == 0.25
    assert (1347, 64) in shapes[0]
    jax.tree.map(np.testing.assert_array_equal, before, trainer.state)
    assert next(ticks) == 2 * 4  # the first compiles


def parts(data: Data) -> list[list[tuple]]:
    """Test, validation and training images of the first run."""
    return [[tuple(np.ravel(image)) for image in part[0]] for part in (data.x_test, data.x_valid, data.x)]


def test_every_digit_is_in_one_part_and_evaluated_there():
    data = digits([3, 4], train=TRAIN)
    tested, validated, trained = parts(data)
    assert (len(tested), len(validated), len(trained)) == (450, 450, 897)
    assert len({*tested, *validated, *trained}) == 1797
    assert digits([3], train=1200).x_valid.shape == (1, 147, 64)
    assert digits([3], train=700).x_valid.shape == (1, 450, 64)
    assert digits([3]).x_valid is None
    trainer = Trainer(NETWORKS["quiet"], data, {"rate": jnp.ones(2)}, seeds=[3, 4], batch_size=30)
    found = trainer.evaluate()
    layers = jax.tree.map(lambda leaf: leaf[1], trainer.state[0])
    for prefix, x, y in (("", data.x_test, data.y_test), ("valid_", data.x_valid, data.y_valid), ("train_", *data[:2])):
        answers = NETWORKS["quiet"].apply(layers, [None], x[1], False, None)[0].argmax(-1)
        assert found[f"{prefix}accuracy"][1] == pytest.approx(float((answers == y[1]).mean()))
    assert "train_loss" not in trainer.evaluate(train=False)


def test_parts_of_the_text_share_none(monkeypatch):
    letters = [chr(i) for i in range(5000)]  # each stands in one place
    monkeypatch.setattr(transformer, "TEXT", "".join(letters))
    monkeypatch.setattr(transformer, "ALPHABET", letters)
    data = transformer.text(2, context=32, train=300, test=30)
    tested, validated, trained = parts(data)
    assert (len(tested), len(validated), len(trained)) == (30, 30, 300)
    seen = [{code for window in part for code in window} for part in (tested, validated, trained)]
    assert all(one.isdisjoint(other) for one, other in itertools.combinations(seen, 2))
    for x, y in ((data.x, data.y), (data.x_test, data.y_test), (data.x_valid, data.y_valid)):
        np.testing.assert_array_equal(y, x + 1)  # the character after each
