"""Whitening: what it is for, its state, its devices, and derivatives where eigenvalues meet."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from numpy.testing import assert_allclose, assert_array_equal

import jaxnorm as jn

METHODS = ("zca", "newton", "cholesky")


def draw(rng, *shape):
    """Features that are correlated, with a mean."""
    x = rng.normal(size=shape) @ rng.normal(size=(shape[-1], shape[-1])) + 5
    return jnp.asarray(x, jnp.float32)


@pytest.mark.parametrize("method", METHODS)
def test_groups_come_out_uncorrelated(method, rng):
    x = draw(rng, 40, 10, 6)
    y, _ = jn.whiten(x, None, training=True, method=method, group_size=3, steps=12)
    rows = np.asarray(y, np.float64).reshape(-1, 6)
    covariance = rows.T @ rows / len(rows)
    for group in (slice(0, 3), slice(3, 6)):
        assert_allclose(covariance[group, group], np.eye(3), atol=2e-3)
    assert np.abs(covariance[:3, 3:]).max() > 0.05  # features of two groups still are correlated


def test_zca_turns_as_little_as_possible_and_cholesky_keeps_the_first_feature(rng):
    x = draw(rng, 400, 3)
    zca, cholesky = (np.asarray(jn.whiten(x, None, training=True, method=m)[0]) for m in ("zca", "cholesky"))
    centred = np.asarray(x) - np.asarray(x).mean(0)
    assert_allclose(cholesky[:, 0], centred[:, 0] / centred[:, 0].std(), atol=1e-3)
    distance = lambda y: ((y - centred) ** 2).sum()
    assert distance(zca) < distance(cholesky)
    w = np.linalg.lstsq(centred, zca, rcond=None)[0]
    assert_allclose(w, w.T, atol=1e-3)


@pytest.mark.parametrize("method", METHODS)
def test_state_and_inference(method, rng):
    """The covariance is averaged; inference whitens by it; an empty batch leaves every bit."""
    x, stats = draw(rng, 60, 4), jn.WhiteningStats.init(4, group_size=2)
    options = {"method": method, "group_size": 2, "momentum": 0.25, "steps": 10}
    _, new = jn.whiten(x, stats, training=True, **options)
    wide = np.asarray(x, np.float64)
    cov = np.cov(wide.T, ddof=0)
    assert_allclose(new.mean, 0.75 * wide.mean(0), rtol=1e-5)
    assert_allclose(new.cov, 0.25 * np.eye(2) + 0.75 * np.stack([cov[:2, :2], cov[2:, 2:]]), rtol=1e-4, atol=1e-5)
    assert new.count == 1
    _, exact = jn.whiten(x, stats, training=True, **options | {"momentum": 0.0})
    trained, inferred = (jn.whiten(x, s, training=t, **options)[0] for s, t in ((None, True), (exact, False)))
    assert_allclose(inferred, trained, atol=1e-4)
    assert jn.whiten(x, new, training=False, **options)[1] is new
    y, same = jn.whiten(x, new, training=True, where=jnp.zeros((60, 1), bool), **options)
    assert_array_equal(y, 0)
    jax.tree.map(assert_array_equal, same, new)
    _, first = jn.whiten(x, stats, training=True, **options | {"momentum": 0.9}, debias=True)
    assert_allclose(first.cov, exact.cov, rtol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_devices_equal_one_device(method, rng):
    x, where = draw(rng, 24, 4), jnp.asarray(rng.random((24, 1)) > 0.4)
    run = lambda x, where, name=None: jn.whiten(
        x, jn.WhiteningStats.init(4), training=True, method=method, where=where, axis_name=name
    )
    y, new = run(x, where)
    parts = jax.vmap(lambda x, w: run(x, w, "d"), axis_name="d")(x.reshape(4, 6, 4), where.reshape(4, 6, 1))
    assert_allclose(parts[0].reshape(x.shape), y, atol=2e-4)
    jax.tree.map(lambda a, b: assert_allclose(a[2], b, rtol=1e-5, atol=1e-5), parts[1], new)
    mesh = jax.make_mesh((4,), ("d",), axis_types=(AxisType.Explicit,), devices=jax.devices()[:4])
    with jax.set_mesh(mesh):
        split = jax.jit(run)(*jax.device_put((x, where), NamedSharding(mesh, PartitionSpec("d"))))
    jax.tree.map(lambda a, b: assert_allclose(a, b, rtol=1e-5, atol=2e-4), split, (y, new))


@pytest.mark.full
@pytest.mark.parametrize("method", METHODS)
def test_derivatives_of_every_order_where_eigenvalues_are_equal(method):
    """The corners of a square: covariance 1. An eigendecomposition has no derivative there; the whitening has."""
    x = jnp.array([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    t, w = jnp.array(np.random.default_rng(0).normal(size=(2, 4, 2)), jnp.float32)
    run = lambda x: jn.whiten(x, None, training=True, method=method, epsilon=0.0)[0]
    loss = lambda x: jnp.sum(run(x) * w) + jnp.sum(run(x) ** 3)
    with jax.enable_x64(True):
        x, t, w = (jnp.asarray(a, jnp.float64) for a in (x, t, w))
        slope = lambda x: jnp.sum(jax.grad(loss)(x) * t)
        assert_allclose(slope(x), (loss(x + 1e-5 * t) - loss(x - 1e-5 * t)) / 2e-5, rtol=1e-6)
        second = (slope(x + 1e-5 * t) - slope(x - 1e-5 * t)) / 2e-5
        assert_allclose(jax.jvp(slope, (x,), (t,))[1], second, rtol=1e-5)
        assert_allclose(jnp.sum(jax.grad(slope)(x) * t), second, rtol=1e-5)
        assert np.isfinite(jax.hessian(loss)(x)).all()


X = jnp.ones((6, 4))
ERRORS = {
    "whiten: `method` must be one of zca, newton, cholesky; got 'pca'.": {"method": "pca"},
    "whiten: `group_size` must divide the features; got group_size=3": {"group_size": 3},
    "whiten: give exactly one of `num_groups` and `group_size`": {"group_size": 2, "num_groups": 2},
    "whiten: `where` must be the same for all features; got where.shape=(6, 4).": {"where": jnp.ones((6, 4), bool)},
    "whiten: `stats` must be a WhiteningStats; got RunningStats.": {"stats": jn.RunningStats.init(4)},
    "whiten: `stats` must fit the groups": {"stats": jn.WhiteningStats.init(4), "group_size": 2},
    "whiten: `stats` must be a WhiteningStats; got NoneType.": {"training": False},
    "whiten: `x` must be real; got x of complex64.": {"x": X.astype(jnp.complex64)},
    "whiten: `feature_axis` must be one axis; got feature_axis=(0, 1).": {"feature_axis": (0, 1)},
    "whiten: every set of numbers that shares statistics needs at least two": {"x": X[:1]},
}


@pytest.mark.parametrize("message", ERRORS)
def test_errors(message):
    options = {"x": X, "stats": None, "training": True} | ERRORS[message]
    with pytest.raises((ValueError, TypeError)) as caught:
        jn.whiten(options.pop("x"), options.pop("stats"), **options)
    assert str(caught.value).startswith(message)
