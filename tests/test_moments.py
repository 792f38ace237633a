"""The algebra: moments of parts merge to the moments of the whole, however the parts are cut, ordered and grouped."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import jaxnorm as jn

SPLITS = [(1,) * 24, (12, 12), (1, 23), (0, 5, 0, 18, 1), (7, 2, 15), (24, 0)]


def parts_of(x: np.ndarray, sizes) -> list[jn.Moments]:
    return [jn.moments(part, 0) for part in np.split(x, np.cumsum(sizes)[:-1])]


def assert_moments(actual: jn.Moments, x: np.ndarray) -> None:
    """To 1e-6, and for the variance besides what float32 means must cost, whatever the formula.

    A part's mean is known to half an ulp (4e-6 where it is 100). Two parts d apart contribute d^2 w_a w_b, so an error
    of an ulp in d costs 2 d ulp w_a w_b, at most about sigma ulp.
    """
    wide = x.astype(np.float64)
    np.testing.assert_allclose(actual.mean, wide.mean(0), rtol=1e-6, atol=1e-6)
    limit = 1e-6 * np.maximum(wide.var(0), 1) + wide.std(0) * np.spacing(np.abs(wide.mean(0)).astype(np.float32))
    error = np.abs(np.asarray(actual.var, np.float64) - wide.var(0))
    assert (error <= limit).all(), (error / limit).max()
    np.testing.assert_array_equal(actual.count, len(x))


@pytest.fixture(params=[0.0, 1.0, 10.0, 100.0], ids=lambda mean: f"mean {mean} sigma")
def x(request, rng) -> np.ndarray:
    return (rng.normal(size=(24, 3, 2)) + request.param).astype(np.float32)


@pytest.mark.parametrize("sizes", SPLITS, ids=str)
def test_any_split_merges_to_the_whole(x, sizes, rng):
    parts = parts_of(x, sizes)
    assert_moments(functools.reduce(jn.merge, parts), x)
    assert_moments(functools.reduce(jn.merge, reversed(parts)), x)
    shuffled = [parts[i] for i in rng.permutation(len(parts))]
    assert_moments(functools.reduce(lambda a, b: jn.merge(b, a), shuffled, jn.Moments.empty((3, 2))), x)


@pytest.mark.parametrize("sizes", SPLITS, ids=str)
def test_any_split_merges_in_scan_and_associative_scan(x, sizes):
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *parts_of(x, sizes))
    last, prefixes = jax.lax.scan(lambda a, b: (jn.merge(a, b),) * 2, jn.Moments.empty((3, 2)), stacked)
    assert_moments(last, x)
    prefixes_too = jax.lax.associative_scan(jn.merge, stacked)
    assert_moments(jax.tree.map(lambda leaf: leaf[-1], prefixes_too), x)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), prefixes, prefixes_too)


@pytest.mark.parametrize("sizes", SPLITS, ids=str)
def test_any_split_merges_over_a_named_axis(x, sizes):
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *parts_of(x, sizes))
    pooled = jax.vmap(lambda m: jn.merge_over(m, "parts"), axis_name="parts")(stacked)
    for i in range(len(sizes)):
        assert_moments(jax.tree.map(lambda leaf, i=i: leaf[i], pooled), x)


def test_an_empty_part_changes_no_bit(rng):
    m = jn.moments(rng.normal(size=(7, 3)).astype(np.float32) + 50, 0)
    nothing = jn.moments(np.zeros((0, 3), np.float32), 0)
    garbage = nothing._replace(mean=nothing.mean + 17, var=nothing.var * np.nan)
    for empty in (nothing, jn.Moments.empty(3), garbage):
        for merged in (jn.merge(m, empty), jn.merge(empty, m)):
            jax.tree.map(np.testing.assert_array_equal, merged, m)
    jax.tree.map(np.testing.assert_array_equal, jn.merge(nothing, nothing), jn.Moments.empty(3))
    parts = jax.tree.map(lambda a, b: jnp.stack([a, b]), m, garbage._replace(mean=garbage.mean * np.inf))
    pooled = jax.vmap(lambda m: jn.merge_over(m, "parts"), axis_name="parts")(parts)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a[1], b, rtol=1e-6), pooled, m)


@given(st.lists(st.integers(0, 6), min_size=1, max_size=6), st.integers(0, 100), st.integers(0, 9))
def test_merge_is_commutative_and_associative(sizes, mean, seed):
    x = (np.random.default_rng(seed).normal(size=(sum(sizes), 2)) + mean).astype(np.float32)
    left = functools.reduce(jn.merge, parts_of(x, sizes))
    right = functools.reduce(lambda a, b: jn.merge(b, a), reversed(parts_of(x, sizes)))
    for a, b in zip(left, right, strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-6, atol=1e-5)


def test_merge_is_differentiable_like_the_whole(rng):
    x = jnp.asarray(rng.normal(size=(6, 3)) + 2, jnp.float32)
    weight = jnp.asarray(rng.normal(size=(2, 3)), jnp.float32)

    def loss(m):
        return jnp.sum(m.mean * weight[0] + m.var * weight[1])

    split = jax.grad(lambda x: loss(jn.merge(jn.moments(x[:2], 0), jn.moments(x[2:], 0))))(x)
    np.testing.assert_allclose(split, jax.grad(lambda x: loss(jn.moments(x, 0)))(x), atol=1e-6)
    wide = np.asarray(x, np.float64)
    expected = (np.asarray(weight[0]) + np.asarray(weight[1]) * 2 * (wide - wide.mean(0))) / 6
    np.testing.assert_allclose(split, expected, atol=1e-6)


def test_normalizing_by_merged_moments_equals_normalizing_the_whole(x):
    m = functools.reduce(jn.merge, parts_of(x, (7, 2, 15)))
    wide = x.astype(np.float64)
    expected = (wide - wide.mean(0)) / np.sqrt(wide.var(0) + 1e-5)
    np.testing.assert_allclose(jn.normalize(x, m.mean, m.var, axis=0, epsilon=1e-5), expected, atol=1e-5)


def test_moments_keep_the_shape_of_the_kept_axes(rng):
    x = rng.normal(size=(4, 5, 6)).astype(np.float32) + 3
    for axis, shape in ((None, ()), (1, (4, 6)), ((0, -1), (5,)), ((), (4, 5, 6))):
        m = jn.moments(x, axis)
        assert m.mean.shape == m.var.shape == m.count.shape == shape
        np.testing.assert_allclose(m.mean, x.mean(axis, dtype=np.float64), rtol=1e-6)
        np.testing.assert_allclose(m.var, x.var(axis, dtype=np.float64), rtol=1e-5, atol=1e-6)


def test_uncentred_moments_are_mean_squares(rng):
    x = rng.normal(size=(4, 5)).astype(np.float32) + 3
    m = jn.moments(x, 1, center=False)
    np.testing.assert_array_equal(m.mean, 0)
    np.testing.assert_allclose(m.var, (x.astype(np.float64) ** 2).mean(1), rtol=1e-6)


def test_moments_of_masked_data_count_per_feature(rng):
    x = rng.normal(size=(6, 3)).astype(np.float32)
    where = rng.random((6, 3)) > 0.5
    where[:, 1] = False
    m = jn.moments(np.where(where, x, np.nan), 0, where=where)
    np.testing.assert_array_equal(m.count, where.sum(0))
    for feature in (0, 2):
        np.testing.assert_allclose(m.mean[feature], x[where[:, feature], feature].mean(), rtol=1e-6)
        np.testing.assert_allclose(m.var[feature], x[where[:, feature], feature].var(), rtol=1e-5)
    assert (m.mean[1], m.var[1]) == (0, 1)


def test_half_precision_is_measured_in_float32(rng):
    x = (rng.normal(size=(1000, 2)) * 100).astype(np.float16)
    m = jn.moments(x, 0)
    assert m.mean.dtype == m.var.dtype == m.count.dtype == jnp.float32
    np.testing.assert_allclose(m.var, x.astype(np.float64).var(0), rtol=1e-5)


@pytest.mark.parametrize("state", [jn.Moments.empty(2), jn.RunningStats.init(2)], ids=lambda s: type(s).__name__)
def test_tuple_arithmetic_raises(state):
    for attempt in (
        lambda: state + state,
        lambda: (1,) + state,  # noqa: RUF005
        lambda: sum([state, state]),
        lambda: state * 2,
        lambda: 2 * state,
    ):
        with pytest.raises(TypeError, match="would concatenate or repeat"):
            attempt()
