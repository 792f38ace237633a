"""Batch norms with a state of their own kind: domains, renorm, mean-only, EvoNorm-B0."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import jaxnorm as jn


def draw(rng, *shape):
    return jnp.asarray(rng.normal(size=shape) * 2 + 3, jnp.float32)


@pytest.mark.parametrize("traced", [False, True])
def test_a_domain_is_a_batch_norm_of_its_own_and_the_others_stay(traced, rng):
    """Three domains, visited in turn, beside three batch norms."""
    stacked, apart = jn.RunningStats.init((3, 4)), [jn.RunningStats.init(4) for _ in range(3)]
    step = lambda x, stats, domain: jn.domain_batch_norm(x, stats, domain, training=True, momentum=0.7, ddof=1)
    step = jax.jit(step) if traced else step
    for domain in (1, 0, 1, 1):
        x = draw(rng, 6, 4) + domain
        y, new = step(x, stacked, domain)
        expected, apart[domain] = jn.batch_norm(x, apart[domain], training=True, momentum=0.7, ddof=1)
        assert_allclose(y, expected, atol=1e-6)
        others = jnp.array([d for d in range(3) if d != domain])
        jax.tree.map(lambda a, b, others=others: assert_array_equal(a[others], b[others]), new, stacked)
        stacked = new
    jax.tree.map(lambda a, *b: assert_allclose(a, jnp.stack(b), rtol=1e-6), stacked, *apart)
    x = draw(rng, 5, 4)
    y, same = jn.domain_batch_norm(x, stacked, 1, training=False)
    assert same is stacked
    assert_allclose(y, jn.batch_norm(x, apart[1], training=False)[0], atol=1e-6)


def test_renorm_with_the_narrowest_limits_is_batch_norm_bit_for_bit(rng):
    x, scale, bias = draw(rng, 6, 4), draw(rng, 4), draw(rng, 4)
    stats = jn.RunningStats(draw(rng, 4), jnp.abs(draw(rng, 4)), jnp.ones(4))
    options = {"training": True, "epsilon": 1e-3, "momentum": 0.99}
    renorm = partial(jn.batch_renorm, r_max=1.0, d_max=0.0, **options)
    # Each under jit: in other surroundings XLA may contract another product with the sum of the running average.
    y, new = jax.jit(renorm)(x, stats, scale, bias)
    expected, state = jax.jit(partial(jn.batch_norm, **options))(x, stats, scale, bias)
    assert_array_equal(y, expected)
    jax.tree.map(assert_array_equal, new, state)


def test_renorm_with_the_widest_limits_is_inference_and_its_gradient_is_batch_norm_s(rng):
    x, dy = draw(rng, 6, 4), draw(rng, 6, 4)
    stats = jn.RunningStats(draw(rng, 4), jnp.abs(draw(rng, 4)) + 1, jnp.ones(4))
    run = lambda x: jn.batch_renorm(x, stats, training=True, r_max=1e6, d_max=1e6)[0]
    assert_allclose(run(x), jn.batch_norm(x, stats, training=False, epsilon=1e-3)[0], rtol=1e-5, atol=1e-5)
    r = jnp.sqrt((jnp.var(x, 0) + 1e-3) / (stats.var + 1e-3))
    batch = lambda x: jn.batch_norm(x, None, training=True, epsilon=1e-3)[0] * r[None]
    expected = jax.vjp(batch, x)[1](dy)[0]
    assert_allclose(jax.vjp(run, x)[1](dy)[0], expected, rtol=1e-4, atol=1e-5)  # r and d are constants


def test_a_schedule_may_be_traced(rng):
    x, stats = draw(rng, 6, 4), jn.RunningStats.init(4)
    run = jax.jit(lambda r, d: jn.batch_renorm(x, stats, training=True, r_max=r, d_max=d)[0])
    for r, d in ((1.0, 0.0), (1.5, 0.5), (3.0, 5.0)):
        assert_allclose(run(r, d), jn.batch_renorm(x, stats, training=True, r_max=r, d_max=d)[0], atol=1e-6)


@pytest.mark.parametrize("function", ["batch_renorm", "mean_only_batch_norm", "evo_norm_b0"])
def test_state_is_batch_norm_s_and_an_empty_batch_leaves_it(function, rng):
    x = draw(rng, 3, 5, 4)
    stats = jn.RunningStats(draw(rng, 4), jnp.abs(draw(rng, 4)), jnp.full(4, 2.0))
    extra = (None,) if function == "evo_norm_b0" else ()
    run = lambda where: getattr(jn, function)(x, stats, *extra, training=True, momentum=0.8, ddof=1, where=where)[1]
    where = jnp.asarray(rng.random((3, 5, 1)) > 0.3)
    expected = jn.batch_norm(x, stats, training=True, momentum=0.8, ddof=1, where=where)[1]
    jax.tree.map(lambda a, b: assert_allclose(a, b, rtol=1e-6), run(where), expected)
    jax.tree.map(assert_array_equal, run(jnp.zeros((3, 5, 1), bool)), stats)


@pytest.mark.parametrize("function", ["batch_renorm", "mean_only_batch_norm", "evo_norm_b0"])
def test_devices_equal_one_device_and_inference_uses_the_state(function, rng):
    x, extra = draw(rng, 8, 5, 4), (None,) if function == "evo_norm_b0" else ()
    stats = jn.RunningStats(draw(rng, 4), jnp.abs(draw(rng, 4)), jnp.ones(4))
    norm = getattr(jn, function)
    where = jnp.asarray(rng.random((8, 5, 1)) > 0.4)
    run = lambda x, where, name=None: norm(x, stats, *extra, training=True, where=where, axis_name=name)
    y, new = run(x, where)
    parts = jax.vmap(lambda x, w: run(x, w, "d"), axis_name="d")(x.reshape(4, 2, 5, 4), where.reshape(4, 2, 5, 1))
    assert_allclose(parts[0].reshape(x.shape), y, rtol=1e-5, atol=1e-5)
    jax.tree.map(lambda a, b: assert_allclose(a[3], b, rtol=1e-5), parts[1], new)
    y, same = norm(x, stats, *extra, training=False)
    assert same is stats
    x, mean, var = (np.asarray(a, np.float64) for a in (x, stats.mean, stats.var))
    mean = 0 if function == "evo_norm_b0" else mean
    epsilon = {"batch_renorm": 1e-3, "evo_norm_b0": 1e-5}.get(function)
    expected = x - mean if epsilon is None else (x - mean) / np.sqrt(var + epsilon)
    assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


def test_complex_renorm_moves_the_mean_no_further_than_d_max(rng):
    x = jnp.asarray(rng.normal(size=(6, 4)) + 1j * rng.normal(size=(6, 4)) + 5 - 5j, jnp.complex64)
    stats = jn.RunningStats.init(4, jnp.complex64)
    y, new = jn.batch_renorm(x, stats, training=True, d_max=0.5, r_max=1.0)
    assert_allclose(np.abs(np.mean(np.asarray(y), 0)), 0.5, rtol=1e-4)
    assert new.mean.dtype == jnp.complex64


X = jnp.ones((6, 4))
STATS = jn.RunningStats.init(4)
ERRORS = {
    "batch_renorm: `r_max` must be at least 1; got r_max=0.5.": lambda: jn.batch_renorm(
        X, STATS, training=True, r_max=0.5
    ),
    "batch_renorm: `d_max` must not be negative; got d_max=-1.": lambda: jn.batch_renorm(
        X, STATS, training=True, d_max=-1
    ),
    "batch_renorm: `stats` must be given, in training too; got stats=None.": lambda: jn.batch_renorm(
        X, None, training=True
    ),
    "domain_batch_norm: `domain` must be from 0 to 1; got domain=2.": lambda: jn.domain_batch_norm(
        X, jn.RunningStats.init((2, 4)), 2, training=True
    ),
    "domain_batch_norm: `domain` must be an integer; got float.": lambda: jn.domain_batch_norm(
        X, jn.RunningStats.init((2, 4)), 1.0, training=True
    ),
    "domain_batch_norm: `domain` must be an integer; got dtype float32.": lambda: jn.domain_batch_norm(
        X, jn.RunningStats.init((2, 4)), jnp.float32(1), training=True
    ),
    "domain_batch_norm: `domain` must be one number; got shape (6,).": lambda: jn.domain_batch_norm(
        X, jn.RunningStats.init((2, 4)), jnp.zeros(6, int), training=True
    ),
    "batch_norm: `stats` must have the shape of the feature axes": lambda: jn.domain_batch_norm(
        X, jn.RunningStats.init((2, 5)), 1, training=True
    ),
}


@pytest.mark.parametrize("message", ERRORS)
def test_errors(message):
    with pytest.raises((ValueError, TypeError)) as caught:
        ERRORS[message]()
    assert str(caught.value).startswith(message)
