"""Flax Linen: what jaxnorm must agree with, and where Flax is wrong and jaxnorm is not."""

import flax.linen as nn
import jax
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import jaxnorm as jn

EPSILON = 1e-3  # large enough to be seen at 1e-5
STABLE = {"epsilon": EPSILON, "use_fast_variance": False}


@pytest.fixture
def peer():
    """Calls a peer's function under JAX's default promotion rules, which its code was written for."""

    def call(function, *args, **kwargs):
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            return function(*args, **kwargs)

    return call


def offset_data(rng, shape):
    """Float32; features, last, differ in mean, 1 to 3 (not near 0, where errors are not relative), and in spread."""
    mean, spread = rng.uniform(1, 3, shape[-1]), rng.uniform(0.5, 2, shape[-1])
    return (mean + spread * rng.standard_normal(shape)).astype(np.float32)


def draw_parameters(rng, like):
    return jax.tree.map(lambda p: rng.uniform(0.5, 2, p.shape).astype(np.float32), like)


def batch_norm(x, *parameters, **options):
    return jn.batch_norm(x, None, *parameters, training=True, **options)[0]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("shape", [(9, 5), (4, 6, 3, 5)])
def test_twenty_training_steps_give_flax_statistics_and_inference(shape, masked, peer):
    rng = np.random.default_rng(0)
    layer = nn.BatchNorm(momentum=0.99, use_fast_variance=False)
    theirs = peer(layer.init, jax.random.key(0), offset_data(rng, shape), use_running_average=False)
    theirs["params"] = draw_parameters(rng, theirs["params"])
    ours = jn.RunningStats.init(shape[-1])
    for _ in range(20):
        x = offset_data(rng, shape)
        where = rng.random(shape) < 0.7 if masked else None
        _, state = peer(layer.apply, theirs, x, use_running_average=False, mask=where, mutable="batch_stats")
        theirs |= state
        _, ours = jn.batch_norm(x, ours, training=True, momentum=0.99, where=where)
    assert_allclose(ours.mean, theirs["batch_stats"]["mean"], rtol=1e-6, atol=1e-7)
    assert_allclose(ours.var, theirs["batch_stats"]["var"], rtol=1e-6, atol=1e-7)
    y, _ = jn.batch_norm(x, ours, **theirs["params"], training=False)
    assert_allclose(y, peer(layer.apply, theirs, x, use_running_average=True), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("ours", "theirs", "options"),
    [
        pytest.param(batch_norm, nn.BatchNorm(False, **STABLE), {}, id="batch"),
        pytest.param(jn.layer_norm, nn.LayerNorm(**STABLE), {}, id="layer"),
        pytest.param(jn.rms_norm, nn.RMSNorm(**STABLE), {}, id="rms"),
        pytest.param(jn.group_norm, nn.GroupNorm(num_groups=3, **STABLE), {"num_groups": 3}, id="group"),
        pytest.param(jn.instance_norm, nn.InstanceNorm(**STABLE), {}, id="instance"),
    ],
)
def test_output_is_flax(ours, theirs, options, peer):
    rng = np.random.default_rng(1)
    x = offset_data(rng, (4, 5, 7, 6))
    parameters = draw_parameters(rng, peer(theirs.init, jax.random.key(0), x)["params"])
    y, _ = peer(theirs.apply, {"params": parameters}, x, mutable="batch_stats")
    assert_allclose(ours(x, **parameters, **options, epsilon=EPSILON), y, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("ours", "theirs", "options", "axis", "epsilon"),
    [
        pytest.param(batch_norm, nn.BatchNorm(False), {}, (0, 1), 1e-5, id="batch"),
        pytest.param(jn.layer_norm, nn.LayerNorm(), {}, 2, 1e-6, id="layer"),
        pytest.param(jn.group_norm, nn.GroupNorm(1), {"num_groups": 1}, (1, 2), 1e-6, id="group"),
        pytest.param(jn.instance_norm, nn.InstanceNorm(), {}, 1, 1e-6, id="instance"),
    ],
)
def test_flax_default_variance_drowns_in_a_large_mean_and_ours_does_not(ours, theirs, options, axis, epsilon, peer):
    x = np.random.default_rng(2).normal(1e4, 1, (6, 50, 40)).astype(np.float32)
    exact = x.astype(np.float64)
    exact = (exact - exact.mean(axis, keepdims=True)) / np.sqrt(exact.var(axis, keepdims=True) + epsilon)
    y, _ = peer(theirs.init_with_output, jax.random.key(0), x)
    assert np.abs(np.asarray(y) - exact).max() > 100
    assert_allclose(ours(x, **options), exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("ours", "theirs", "axis"),
    [
        pytest.param(batch_norm, nn.BatchNorm(False, use_fast_variance=False), 0, id="batch"),
        pytest.param(jn.layer_norm, nn.LayerNorm(use_fast_variance=False), 1, id="layer"),
    ],
)
def test_nan_behind_a_mask_reaches_flax_gradients_and_not_ours(ours, theirs, axis, peer):
    rng = np.random.default_rng(3)
    x, cotangent = offset_data(rng, (8, 7)), rng.standard_normal((8, 7)).astype(np.float32)
    valid = np.arange(x.shape[axis]) != 3
    where = np.expand_dims(valid, 1 - axis)
    compact = x.compress(valid, axis), cotangent.compress(valid, axis)
    np.moveaxis(x, axis, 0)[3, 0] = np.nan

    def gradient(norm, x, cotangent, where):
        _, vjp = jax.vjp(lambda x: norm(x, where), x)
        return vjp(cotangent)[0]

    # No cotangent arrives at masked places, as from a loss that ignores them.
    arrays = x, np.where(where, cotangent, 0), where
    broken = peer(gradient, lambda x, where: theirs.init_with_output(jax.random.key(0), x, mask=where)[0], *arrays)
    assert np.isnan(broken).compress(valid, axis).any()
    right, expected = (gradient(lambda x, where: ours(x, where=where), *a) for a in (arrays, (*compact, None)))
    assert_array_equal(right.compress(~valid, axis), 0)
    assert_allclose(right.compress(valid, axis), expected, rtol=1e-5, atol=1e-6)


def test_a_batch_without_valid_values_makes_flax_statistics_nan_and_leaves_ours(peer):
    rng = np.random.default_rng(4)
    x = offset_data(rng, (8, 5))
    where = np.zeros((8, 1), bool)
    before = jn.RunningStats(*rng.uniform(1, 3, (3, 5)).astype(np.float32))
    variables = {"batch_stats": {"mean": before.mean, "var": before.var}}
    layer = nn.BatchNorm(use_bias=False, use_scale=False, use_fast_variance=False)
    _, state = peer(layer.apply, variables, x, use_running_average=False, mask=where, mutable="batch_stats")
    assert np.isnan(state["batch_stats"]["mean"]).all()
    y, after = jn.batch_norm(x, before, training=True, where=where)
    assert_array_equal(y, 0)
    jax.tree.map(assert_array_equal, after, before)


@pytest.mark.parametrize("counts", [(1, 3, 8), (0, 3, 8)])
def test_flax_averages_the_averages_of_ragged_shards_and_ours_equal_one_device(counts, peer):
    rng = np.random.default_rng(5)
    x, counts = offset_data(rng, (3, 8, 5)), np.array(counts)
    where = np.arange(8)[:, None] < counts[:, None, None]
    layer = nn.BatchNorm(False, momentum=0, axis_name="shards", use_fast_variance=False)

    def flax_statistics(x, where):
        _, state = layer.init_with_output(jax.random.key(0), x)
        return layer.apply(state, x, mask=where, mutable="batch_stats")[1]["batch_stats"]

    def ours(x, where):
        stats = jn.RunningStats.init(5)
        return jn.batch_norm(x, stats, training=True, momentum=0.0, where=where, axis_name="shards")

    exact = x.astype(np.float64)
    mean, var = (f((0, 1), where=where) for f in (exact.mean, exact.var))
    with np.errstate(invalid="ignore"):  # 0 / 0: the mean of an empty shard
        averages = (x * where).sum(1, dtype=np.float64) / counts[:, None]
    theirs = np.asarray(peer(jax.vmap(flax_statistics, axis_name="shards"), x, where)["mean"])
    assert_allclose(theirs, np.broadcast_to(averages.mean(0), (3, 5)), rtol=1e-5)
    assert not np.any(np.abs(theirs - mean) < 0.01)

    y, stats = jax.vmap(ours, axis_name="shards")(x, where)
    assert_allclose(stats.mean, np.broadcast_to(mean, (3, 5)), rtol=1e-6, atol=1e-7)
    assert_allclose(stats.var, np.broadcast_to(var, (3, 5)), rtol=1e-6, atol=1e-7)
    assert_allclose(y, batch_norm(x, where=where), rtol=1e-5, atol=1e-5)
