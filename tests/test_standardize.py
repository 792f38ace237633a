"""The two doors for norms of one's own: `standardize` (measure and normalize) and `normalize` (anyone's statistics)."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from cases import label

import jaxnorm as jn

SHAPE = (3, 4, 5)
AREAS = label(np.indices(SHAPE)[1])  # statistics shared over axes 0 and 2
INDEX = np.indices(SHAPE)[1]


@pytest.fixture
def data(rng):
    x = jnp.asarray(rng.normal(size=SHAPE) * 2 + 3, jnp.float32)
    scale, bias = (jnp.asarray(rng.normal(size=4), jnp.float32) for _ in range(2))
    return x, scale, bias, rng.random((3, 1, 5)) > 0.3


@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize("masked", [True, False])
def test_standardize_equals_the_reference_and_returns_the_moments(data, center, masked):
    x, scale, bias, where = data
    where = where if masked else None
    y, m = jn.standardize(x, scale, bias, axis=(0, 2), epsilon=0.1, where=where, center=center, scale_offset=0.5)
    options = {"epsilon": 0.1, "where": where, "center": center}
    np.testing.assert_allclose(y, reference.standardize(x, AREAS, INDEX, scale, bias, offset=0.5, **options), atol=1e-5)
    jax.tree.map(np.testing.assert_array_equal, m, jn.moments(x, (0, 2), where=where, center=center))


def test_standardize_returns_the_dtype_asked_for_and_moments_of_its_own(data):
    x, scale, bias, _ = data
    y, m = jn.standardize(x.astype(jnp.float16), scale, bias, axis=(0, 2), epsilon=0.1, dtype=jnp.bfloat16)
    assert (y.dtype, m.mean.dtype) == (jnp.bfloat16, jnp.float32)


@pytest.mark.parametrize("groups", [None, [[0, 2], [1]]], ids=str)
def test_standardize_over_devices(data, groups):
    x, scale, bias, where = data
    f = functools.partial(
        jn.standardize, axis=1, epsilon=0.1, axis_name="d", axis_index_groups=groups, center=groups is None
    )
    y, m = jax.vmap(lambda x, w: f(x, scale, bias, where=w), axis_name="d")(x, jnp.asarray(where))
    for group in map(np.array, groups or [[0, 1, 2]]):
        options = {"epsilon": 0.1, "where": where[group], "center": groups is None}
        expected = reference.standardize(x[group], AREAS[group], INDEX[group], scale, bias, **options)
        np.testing.assert_allclose(y[group], expected, atol=1e-5)
        np.testing.assert_array_equal(m.count[group], where[group].sum())


def test_derivatives_flow_through_the_moments_that_standardize_returns(data, rng):
    x, *_, where = data
    w = jnp.asarray(rng.normal(size=(3, 4)), jnp.float32)

    def loss(measure, x):
        m = measure(x)
        return jnp.sum(m.mean * w[0] + m.var * w[1])

    one = jax.grad(functools.partial(loss, lambda x: jn.standardize(x, axis=(0, 2), epsilon=0.1, where=where)[1]))(x)
    wide, valid = np.asarray(x, np.float64), np.broadcast_to(where, SHAPE)
    n = where.sum()
    mean = (wide * valid).sum((0, 2), keepdims=True) / n
    expected = valid * (np.asarray(w)[0][:, None] + np.asarray(w)[1][:, None] * 2 * (wide - mean)) / n
    np.testing.assert_allclose(one, expected, atol=1e-6)
    two = jax.grad(functools.partial(loss, lambda x: jn.moments(x, (0, 2), where=where)))(x)
    np.testing.assert_allclose(two, expected, atol=1e-6)


def test_epsilon_and_scale_offset_have_derivatives(data, rng):
    x, scale, bias, _ = data
    dy = rng.normal(size=SHAPE)

    def value(epsilon, offset):
        y = reference.standardize(x, AREAS, INDEX, scale, bias, epsilon=epsilon, offset=offset)
        return np.sum(y * dy)

    def ours(function, epsilon, offset):
        y = function(x, scale, bias, axis=(0, 2), epsilon=epsilon, scale_offset=offset)
        return jnp.sum((y[0] if isinstance(y, tuple) else y) * jnp.asarray(dy, jnp.float32))

    m = jn.moments(x, (0, 2))
    step = 1e-6
    expected = (
        (value(0.1 + step, 0.5) - value(0.1 - step, 0.5)) / (2 * step),
        (value(0.1, 0.5 + step) - value(0.1, 0.5 - step)) / (2 * step),
    )
    for function in (jn.standardize, lambda x, *args, **options: jn.normalize(x, m.mean, m.var, *args, **options)):
        np.testing.assert_allclose(jax.grad(ours, (1, 2))(function, 0.1, 0.5), expected, rtol=1e-4)
        tangents = jax.jvp(functools.partial(ours, function), (0.1, 0.5), (1.0, 2.0))[1]
        np.testing.assert_allclose(tangents, expected[0] + 2 * expected[1], rtol=1e-4)


@pytest.mark.parametrize("full_rank", [True, False])
def test_normalize_by_anyone_s_statistics(data, full_rank, rng):
    x, scale, bias, _ = data
    mean, var = rng.normal(size=4), rng.uniform(0.5, 2, 4)
    expected = reference.standardize(x, AREAS, INDEX, scale, bias, epsilon=0.1, given=(mean, var), offset=0.5)
    arrays = [jnp.asarray(a, jnp.float32) for a in (mean, var, scale, bias)]
    if full_rank:
        arrays = [a[None, :, None] for a in arrays]
    y = jn.normalize(x, *arrays, axis=(0, 2), epsilon=0.1, scale_offset=0.5)
    np.testing.assert_allclose(y, expected, atol=1e-5)
    half = jn.normalize(x, *arrays, axis=(0, 2), epsilon=0.1, scale_offset=0.5, dtype=jnp.bfloat16)
    np.testing.assert_array_equal(half, y.astype(jnp.bfloat16))


def test_normalize_keeps_x_and_small_arrays_alone(data):
    x, scale, bias, _ = data
    m = jn.moments(x, (0, 2))
    f = functools.partial(jn.normalize, axis=(0, 2), epsilon=0.1)
    leaves = jax.tree.leaves(jax.vjp(f, x.astype(jnp.bfloat16), m.mean, m.var, scale, bias)[1])
    assert [(leaf.size, leaf.dtype) for leaf in leaves if leaf.size >= x.size] == [(x.size, jnp.bfloat16)]


def test_modulate_is_film_and_adaptive_layer_norm(rng):
    y = jnp.asarray(rng.normal(size=(2, 3, 4)), jnp.bfloat16)
    scale, bias = (jnp.asarray(rng.normal(size=(2, 1, 4)), jnp.float32) for _ in range(2))
    wide = np.asarray(y, np.float64)
    for offset in (0.0, 1.0):
        expected = (offset + np.asarray(scale, np.float64)) * wide + np.asarray(bias)
        out = jn.modulate(y, scale, bias, scale_offset=offset)
        assert out.dtype == jnp.bfloat16
        np.testing.assert_allclose(np.asarray(out, np.float64), expected, rtol=2**-8, atol=1e-6)
    np.testing.assert_array_equal(jn.modulate(y, None, None), y)
    np.testing.assert_allclose(jn.modulate(wide.astype(np.float32), 2.0, 1.0), 2 * wide + 1, rtol=1e-6)


@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize("axis", [(0, 2), 1, (1, 2)], ids=str)
@pytest.mark.parametrize("implementation", ["xla", None])
def test_derivatives_flow_through_the_output_and_its_statistics(implementation, axis, center):
    rng = np.random.default_rng(0)
    draw = lambda shape: jnp.asarray(rng.normal(0.5, 1, shape), jnp.float32)
    x = 2 * draw((4, 5, 6)) + 1
    kept = np.delete(x.shape, axis)
    scale, bias = draw(kept), draw(kept)

    def ours(x, scale, bias):
        options = {"axis": axis, "epsilon": 0.1, "center": center, "implementation": implementation}
        y, m = jn.standardize(x, scale, bias, **options)
        return y, m.mean, m.var

    def formula(x, scale, bias):
        mean = x.mean(axis, keepdims=True) * float(center)
        var = ((x - mean) ** 2).mean(axis, keepdims=True)
        wide = lambda p: jnp.expand_dims(p, axis)
        y = (x - mean) / jnp.sqrt(var + 0.1) * wide(scale) + wide(bias)
        return y, mean.squeeze(axis), var.squeeze(axis)

    values, pull = jax.vjp(ours, x, scale, bias)
    expected, plain_pull = jax.vjp(formula, x, scale, bias)
    cotangents = tuple(map(draw, (v.shape for v in expected)))
    tangents = tuple(map(draw, (p.shape for p in (x, scale, bias))))
    moved = [jax.jvp(f, (x, scale, bias), tangents)[1] for f in (ours, formula)]
    for found, right in ((values, expected), (pull(cotangents), plain_pull(cotangents)), moved):
        for a, b in zip(found, right, strict=True):
            np.testing.assert_allclose(a, b, atol=2e-5, rtol=2e-5)
