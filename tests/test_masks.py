"""`where`: what stands behind a False is not there at all."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import having

import jaxnorm as jn

BAD = [np.nan, np.inf, -np.inf, 3e38]


def masks(case, rng):
    """A mask for every element, one that broadcasts, and one that empties whole sets."""
    shape = (*case.shape[:-1], 1) if "masks per feature" in case.lacks else case.shape
    empty = rng.random(shape) > 0.4
    empty[np.broadcast_to(case.areas == 0, case.shape)[..., : shape[-1]]] = False
    return {"full": rng.random(shape) > 0.4, "broadcast": rng.random((*case.shape[:-1], 1)) > 0.4, "empty": empty}


def run(case, x, scale, bias, dy, where):
    y, pull = jax.vjp(lambda *args: case.call(*args, where=where), x, scale, bias)
    return y, pull(dy)


@pytest.mark.parametrize("kind", ["full", "broadcast", "empty"])
@pytest.mark.parametrize("case", having("masks"), ids=str)
def test_nan_behind_a_mask_changes_no_bit_of_output_or_gradient(case, kind, rng):
    x, scale, bias, dy = case.data()
    where = masks(case, rng)[kind]
    go = jax.jit(lambda x: run(case, x, scale, bias, dy, where))
    clean = go(x)
    for bad in BAD:
        jax.tree.map(np.testing.assert_array_equal, go(jnp.where(where, x, bad)), clean)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(clean))
    y, (dx, *_) = clean
    outside = ~np.broadcast_to(where, case.shape)
    np.testing.assert_array_equal(np.asarray(y)[outside], 0)
    np.testing.assert_array_equal(np.asarray(dx)[outside], 0)


@pytest.mark.parametrize("case", having("masks", "scale"), ids=str)
def test_nan_in_full_rank_parameters_behind_a_mask_stays_there(case, rng):
    """Adaptive norms compute scale and bias from a condition that is padded too."""
    x, _, _, dy = case.data()
    where = masks(case, rng)["full"]
    scale, bias = (jnp.asarray(rng.normal(size=case.shape), jnp.float32) for _ in range(2))

    def go(scale, bias):
        y, (dx, dscale, *_) = run(case, x, scale, bias, dy, where)
        tangents = (dy, scale, bias) if case.has_bias else (dy, scale)
        primals = (x, scale, bias) if case.has_bias else (x, scale)
        return y, dx, dscale, jax.jvp(lambda *args: case.call(*args, where=where), primals, tangents)[1]

    clean = jax.jit(go)(scale, bias)
    dirty = jax.jit(go)(*(jnp.where(where, p, jnp.nan) for p in (scale, bias)))
    jax.tree.map(np.testing.assert_array_equal, dirty, clean)


@pytest.mark.parametrize("case", having("masks"), ids=str)
def test_a_full_mask_changes_nothing(case):
    x, scale, bias, _ = case.data()
    np.testing.assert_allclose(case.call(x, scale, bias, where=True), case.call(x, scale, bias), atol=1e-6)


@pytest.mark.parametrize("epsilon", [1e-5, 0.0])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("options", [{}, {"ghost_size": 2}, {"ddof": 1}, {"momentum": None}, {"debias": True}], ids=str)
def test_a_fully_masked_batch_leaves_the_state_and_no_gradient(options, training, epsilon):
    x = jnp.full((5, 3), jnp.nan)
    stats = jn.RunningStats(jnp.array([0.1, 0.2, 0.3]), jnp.array([1.1, 1.2, 1.3]), jnp.array([3.0, 0.0, 7.0]))

    def run(x, scale, bias):
        y, new = jn.batch_norm(
            x, stats, scale, bias, training=training, where=jnp.zeros((5, 1), bool), epsilon=epsilon, **options
        )
        return y, new

    y, pull, new = jax.vjp(run, x, jnp.ones(3), jnp.ones(3), has_aux=True)
    np.testing.assert_array_equal(y, 0)
    jax.tree.map(np.testing.assert_array_equal, new, stats)
    for gradient in pull(jnp.ones_like(y)):
        np.testing.assert_array_equal(gradient, 0)


def test_features_are_updated_by_what_they_saw(rng):
    """One feature empty, one with a single value, one full: each by its own count."""
    x = jnp.asarray(rng.normal(size=(6, 3)), jnp.float32)
    where = np.ones((6, 3), bool)
    where[:, 0] = False
    where[1:, 1] = False
    stats = jn.RunningStats.init(3)
    _, new = jn.batch_norm(x, stats, training=True, where=where, ddof=1, momentum=0.5)
    np.testing.assert_array_equal(new.count, [0, 0, 1])
    np.testing.assert_array_equal(new.mean[:2], [0, 0])
    np.testing.assert_array_equal(new.var[:2], [1, 1])
    np.testing.assert_allclose(new.var[2], 0.5 + 0.5 * np.var(x[:, 2], ddof=1), rtol=1e-6)
    _, new = jn.batch_norm(x, stats, training=True, where=where, momentum=0.5)
    np.testing.assert_array_equal(new.count, [0, 1, 1])
    np.testing.assert_array_equal(new.var[1], 0.5)


@pytest.mark.parametrize("ghost_size", [None, 3])
def test_masked_batch_norm_equals_the_compacted_batch(ghost_size, rng):
    """Rows of padding: output, gradient and state as if they had been cut away."""
    x = jnp.asarray(rng.normal(size=(9, 4, 5)) + 3, jnp.float32)
    dy = jnp.asarray(rng.normal(size=(9, 4, 5)), jnp.float32)
    rows = np.array([0, 1, 2, 6, 7, 8]) if ghost_size else np.array([1, 4, 5, 8])
    where = np.isin(np.arange(9), rows)[:, None, None]
    stats = jn.RunningStats.init(5)

    def run(x, where):
        return jn.batch_norm(x, stats, training=True, where=where, ghost_size=ghost_size, ddof=1)

    y, pull, new = jax.vjp(lambda x: run(x, where), x, has_aux=True)
    y_cut, pull_cut, new_cut = jax.vjp(lambda x: run(x, None), x[rows], has_aux=True)
    np.testing.assert_allclose(y[rows], y_cut, atol=1e-6)
    np.testing.assert_allclose(pull(dy)[0][rows], pull_cut(dy[rows])[0], atol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), new, new_cut)


def test_masked_rows_equal_shorter_rows(rng):
    """Padding along the features: each row as if it were as long as its valid part."""
    x = jnp.asarray(rng.normal(size=(4, 7)) + 3, jnp.float32)
    lengths = [7, 5, 2, 1]
    where = np.arange(7) < np.array(lengths)[:, None]
    for norm in (jn.layer_norm, jn.rms_norm):
        y = norm(x, where=where)
        for i, length in enumerate(lengths):
            np.testing.assert_allclose(y[i, :length], norm(x[i, :length]), atol=1e-6)
