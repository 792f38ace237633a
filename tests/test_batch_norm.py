"""What is batch norm's own: ghosts, the state's shape, parameters that undo it, several feature axes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnorm as jn


@pytest.mark.parametrize(
    ("rows", "size", "ghosts"),
    [(8, 2, [2, 2, 2, 2]), (7, 3, [3, 4]), (8, 3, [3, 3, 2]), (5, 9, [5]), (5, 4, [5]), (6, 6, [6]), (3, 2, [3])],
)
def test_ghosts_are_normalized_apart_and_the_state_is_the_whole_batchs(rows, size, ghosts, rng):
    """A remainder is a smaller ghost; of a single value it joins its neighbour."""
    x = jnp.asarray(rng.normal(size=(rows, 3)) + np.arange(rows)[:, None] * 5, jnp.float32)
    stats = jn.RunningStats.init(3)
    y, new = jn.batch_norm(x, stats, training=True, ghost_size=size)
    parts = np.split(np.asarray(x), np.cumsum(ghosts)[:-1])
    expected = np.concatenate([(p - p.mean(0)) / np.sqrt(p.var(0) + 1e-5) for p in parts])
    np.testing.assert_allclose(y, expected, atol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), new, jn.batch_norm(x, stats, training=True)[1]
    )


def test_a_remainder_of_one_row_with_space_is_a_ghost_of_its_own(rng):
    x = jnp.asarray(rng.normal(size=(5, 4, 3)) + 2, jnp.float32)
    y, _ = jn.batch_norm(x, None, training=True, ghost_size=2)
    np.testing.assert_allclose(y[4:], jn.batch_norm(x[4:], None, training=True)[0], atol=1e-6)


def test_ghosts_with_a_mask_and_full_rank_parameters(rng):
    x = jnp.asarray(rng.normal(size=(5, 4, 3)) + 2, jnp.float32)
    where = rng.random((5, 4, 1)) > 0.3
    scale = jnp.asarray(rng.normal(size=(5, 1, 3)), jnp.float32)
    y, _ = jn.batch_norm(x, None, scale, training=True, where=where, ghost_size=2)
    for part in (slice(0, 2), slice(2, 4), slice(4, 5)):
        alone, _ = jn.batch_norm(x[part], None, scale[part], training=True, where=where[part])
        np.testing.assert_allclose(y[part], alone, atol=1e-6)


def test_ghosts_split_the_leading_axis_that_is_not_a_feature(rng):
    x = jnp.asarray(rng.normal(size=(3, 4, 2)) + 2, jnp.float32)
    y, stats = jn.batch_norm(x, jn.RunningStats.init(3), training=True, ghost_size=2, feature_axis=0)
    for part in (slice(0, 2), slice(2, 4)):
        alone, _ = jn.batch_norm(x[:, part], None, training=True, feature_axis=0)
        np.testing.assert_allclose(y[:, part], alone, atol=1e-6)
    np.testing.assert_allclose(stats.mean, 0.1 * x.mean((1, 2)), rtol=1e-5)


def test_ghosts_are_one_reshape_not_a_loop():
    """The program does not grow with the number of ghosts."""

    def operations(rows):
        f = lambda x: jn.batch_norm(x, None, training=True, ghost_size=2)[0]
        return len(jax.jit(f).lower(jnp.zeros((rows, 3))).as_text().splitlines())

    assert operations(4) == operations(64)


def test_statistics_have_the_shape_of_the_feature_axes_in_the_order_of_x(rng):
    x = jnp.asarray(rng.normal(size=(4, 5, 6, 7)) + 2, jnp.float32)
    for axis in ((3, 1), (1, 3), (-1, -3)):
        _, stats = jn.batch_norm(x, jn.RunningStats.init((5, 7)), training=True, momentum=0.0, feature_axis=axis)
        np.testing.assert_allclose(stats.mean, x.mean((0, 2)), rtol=1e-5)
    with pytest.raises(ValueError, match="features"):
        jn.batch_norm(x, jn.RunningStats.init((7, 5)), training=True, feature_axis=(3, 1))


def test_training_without_a_state_uses_the_batch_and_returns_none(rng):
    x = jnp.asarray(rng.normal(size=(6, 3)), jnp.float32)
    y, nothing = jn.batch_norm(x, None, training=True)
    assert nothing is None
    np.testing.assert_array_equal(y, jn.batch_norm(x, jn.RunningStats.init(3), training=True)[0])


def test_output_uses_the_population_variance_whatever_ddof_the_state_stores(rng):
    x = jnp.asarray(rng.normal(size=(6, 3)), jnp.float32)
    y = [jn.batch_norm(x, jn.RunningStats.init(3), training=True, ddof=ddof)[0] for ddof in (0, 1)]
    np.testing.assert_array_equal(*y)


@pytest.mark.parametrize("training", [np.bool_(True), True])
def test_training_may_be_a_numpy_bool(training, rng):
    x = jnp.asarray(rng.normal(size=(6, 3)), jnp.float32)
    assert jn.batch_norm(x, jn.RunningStats.init(3), training=training)[1].count[0] == 1


def test_static_training_under_jit_compiles_one_program_for_each_mode(rng):
    x = jnp.asarray(rng.normal(size=(6, 3)), jnp.float32)
    traces = []

    def step(x, stats, training):
        traces.append(training)
        return jn.batch_norm(x, stats, training=training)

    step = jax.jit(step, static_argnames="training")
    stats = jn.RunningStats.init(3)
    for _ in range(4):
        _, stats = step(x, stats, training=True)
        step(x, stats, training=False)
    assert traces == [True, False]


def test_the_frozen_norm_keeps_its_state_and_trains_its_parameters(rng):
    """Freezing is inference mode with gradients: nothing else is needed."""
    x = jnp.asarray(rng.normal(size=(6, 3)) + 2, jnp.float32)
    stats = jn.RunningStats(jnp.full(3, 2.0), jnp.ones(3), jnp.ones(3))
    loss = lambda scale, bias: jnp.sum(jn.batch_norm(x, stats, scale, bias, training=False)[0] ** 2)
    for gradient in jax.grad(loss, (0, 1))(jnp.ones(3), jnp.ones(3)):
        assert (np.abs(gradient) > 1e-3).all()
