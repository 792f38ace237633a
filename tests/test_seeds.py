"""The four lessons' own cases. Each lesson's recipe, restated in NumPy or plain Python, is the expectation."""

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.datasets import load_wine
from sklearn.preprocessing import StandardScaler

import jaxnorm as jn

PAINTS = [1, 4, 7, 10, 3]
THREE_BY_FOUR = np.arange(1, 13, dtype=np.float32).reshape(3, 4)


def test_the_paint_list_is_one_feature():
    """Average 5, spread (variance) 10, then gamma 2 and beta 1."""
    average = sum(PAINTS) / len(PAINTS)
    variance = sum((p - average) ** 2 for p in PAINTS) / len(PAINTS)
    expected = [2.0 * (p - average) / (variance + 1e-8) ** 0.5 + 1.0 for p in PAINTS]
    assert (average, variance) == (5, 10)

    x = jnp.array(PAINTS)[:, None]
    y, stats = jn.batch_norm(
        x, jn.RunningStats.init(1), jnp.array([2.0]), jnp.array([1.0]), training=True, epsilon=1e-8, momentum=0.0
    )
    np.testing.assert_allclose(y[:, 0], expected, rtol=1e-6)
    np.testing.assert_allclose((stats.mean[0], stats.var[0]), (5, 10), rtol=1e-6)


def test_the_class_example():
    """Three features, momentum 0.9, one training batch; then a test sample by the running statistics."""
    batch = np.array([[1, 2, 3], [4, 5, 6], [7, 8, 9]])
    sample = np.array([[2, 3, 4]])
    running_mean = 0.9 * np.zeros(3) + 0.1 * batch.mean(0)
    running_var = 0.9 * np.ones(3) + 0.1 * batch.var(0)

    y, stats = jn.batch_norm(batch, jn.RunningStats.init(3), training=True, momentum=0.9, epsilon=1e-5)
    np.testing.assert_allclose(y, (batch - batch.mean(0)) / np.sqrt(batch.var(0) + 1e-5), rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(stats.mean, running_mean, rtol=1e-6)  # reading the statistics
    np.testing.assert_allclose(stats.var, running_var, rtol=1e-6)
    np.testing.assert_array_equal(stats.count, 1)

    y, same = jn.batch_norm(sample, stats, training=False, epsilon=1e-5)
    np.testing.assert_allclose(y, (sample - running_mean) / np.sqrt(running_var + 1e-5), rtol=1e-6)
    assert same is stats


def test_the_whole_tensor_recipe(rng):
    """ingredients.mean(), .var(), 0.001 under the root: every number shares, which is layer_norm(axis=None)."""
    ingredients = rng.normal(size=(6, 4)).astype(np.float32) * 20 + 10
    gamma, beta = 1.5, -0.5
    expected = gamma * (ingredients - ingredients.mean()) / np.sqrt(ingredients.var() + 0.001) + beta
    y = jn.layer_norm(ingredients, jnp.full((1, 1), gamma), jnp.full((1, 1), beta), axis=None, epsilon=0.001)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


def test_the_three_by_four_example_as_the_text_has_it():
    """Population variance 10.6667 and -1.2247, 0, 1.2247 in every column."""
    y, stats = jn.batch_norm(THREE_BY_FOUR, jn.RunningStats.init(4), training=True, momentum=0.0)
    np.testing.assert_allclose(stats.mean, [5, 6, 7, 8])
    np.testing.assert_allclose(stats.var, [10.6667] * 4, atol=5e-5)
    np.testing.assert_allclose(y, np.tile([[-1.2247], [0], [1.2247]], 4), atol=5e-5)


def test_the_three_by_four_example_as_its_code_runs():
    """The same lesson's code calls torch's var, which is unbiased (ddof=1): 16, and -1, 0, 1."""
    variance = THREE_BY_FOUR.var(0, ddof=1)
    np.testing.assert_allclose(variance, 16)
    m = jn.moments(THREE_BY_FOUR, 0)
    unbiased = jn.RunningStats.from_moments(m, ddof=1)
    np.testing.assert_allclose(unbiased.var, variance)
    y = jn.normalize(THREE_BY_FOUR, unbiased.mean, unbiased.var, axis=0, epsilon=1e-5)
    np.testing.assert_allclose(y, np.tile([[-1.0], [0], [1]], 4), atol=1e-6)


def test_gamma_stretches_and_beta_shifts(rng):
    x = rng.normal(size=(50, 3)).astype(np.float32) * 7 + 4
    gamma, beta = jnp.array([2.0, 0.5, 1.0]), jnp.array([1.0, -3.0, 0.0])
    y, _ = jn.batch_norm(x, None, gamma, beta, training=True)
    np.testing.assert_allclose(y.std(0), gamma, rtol=1e-4)
    np.testing.assert_allclose(y.mean(0), beta, atol=1e-5)


def test_gamma_and_beta_can_undo_the_normalization_exactly(rng):
    """gamma = sqrt(variance + epsilon), beta = mean: the identity, to rounding."""
    x = rng.normal(size=(50, 3)).astype(np.float32) * 7 + 4
    m = jn.moments(x, 0)
    y, _ = jn.batch_norm(x, None, jnp.sqrt(m.var + 1e-5), m.mean, training=True, epsilon=1e-5)
    np.testing.assert_allclose(y, x, rtol=1e-6, atol=1e-6)


def test_leaving_epsilon_out():
    """Harmless until a feature is constant; then 0/0."""
    x = jnp.array([[1.0, 5.0], [3.0, 5.0]])
    without, _ = jn.batch_norm(x, None, training=True, epsilon=0.0)
    np.testing.assert_allclose(without[:, 0], [-1, 1])
    assert np.isnan(without[:, 1]).all()
    with_epsilon, _ = jn.batch_norm(x, None, training=True)
    np.testing.assert_array_equal(with_epsilon[:, 1], 0)


def test_the_training_switch():
    """Training depends on the rest of the batch, inference on one sample alone."""
    stats = jn.RunningStats(jnp.array([2.0]), jnp.array([4.0]), jnp.array([1.0]))
    x = jnp.array([[1.0], [2.0], [6.0]])
    other = x.at[1].set(100.0)
    for training in (True, False):
        changed = (
            jn.batch_norm(x, stats, training=training)[0][0] != jn.batch_norm(other, stats, training=training)[0][0]
        )
        assert bool(changed[0]) is training


def test_batch_norm_is_feature_scaling_of_raw_inputs():
    """What StandardScaler does to columns of the wine data, whose means go from 0.1 to 747."""
    data = load_wine().data
    expected = StandardScaler().fit_transform(data)
    y, stats = jn.batch_norm(
        data.astype(np.float32), jn.RunningStats.init(data.shape[1]), training=True, epsilon=0.0, momentum=0.0
    )
    np.testing.assert_allclose(y, expected, atol=1e-5)
    scaler = StandardScaler().fit(data)
    np.testing.assert_allclose(stats.mean, scaler.mean_, rtol=1e-6)
    np.testing.assert_allclose(stats.var, scaler.var_, rtol=1e-5)
    new, _ = jn.batch_norm(data[:3].astype(np.float32), stats, training=False, epsilon=0.0)
    np.testing.assert_allclose(new, scaler.transform(data[:3]), atol=1e-5)


def test_the_shop_who_shares_with_whom(rng):
    """Batch: across paintings; layer: within one; instance: each of its colours alone; group: its colours in eights."""
    paintings = jnp.asarray(rng.normal(size=(32, 5, 5, 16)) + 2, jnp.float32)
    changed = paintings.at[1].multiply(3.0)
    batch, _ = jn.batch_norm(paintings, None, training=True)
    assert not np.allclose(batch[0], jn.batch_norm(changed, None, training=True)[0][0])
    for norm in (
        lambda x: jn.layer_norm(x, axis=(1, 2, 3)),
        jn.instance_norm,
        lambda x: jn.group_norm(x, group_size=8),
    ):
        np.testing.assert_array_equal(norm(paintings)[0], norm(changed)[0])
    one_colour = paintings.at[..., 9].multiply(3.0)
    own = jax.tree.map(lambda x: np.asarray(jn.instance_norm(x)), (paintings, one_colour))
    np.testing.assert_array_equal(own[0][..., :9], own[1][..., :9])
    eights = jax.tree.map(lambda x: np.asarray(jn.group_norm(x, group_size=8)), (paintings, one_colour))
    np.testing.assert_array_equal(eights[0][..., :8], eights[1][..., :8])
    assert not np.allclose(eights[0][..., 8], eights[1][..., 8])
