"""What many experiments stand on: runs side by side that are each decided by their own seed."""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))

from networks import Network, Trainer, digits, perceptron

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
