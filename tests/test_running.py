"""Running statistics: every framework's convention, exact pooling, blending, and what inference does with them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from jax.sharding import PartitionSpec as P

import jaxnorm as jn
from jaxnorm import rules
from jaxnorm.rules import averaging

STEPS = 20


@pytest.fixture
def batches(rng):
    """Twenty batches of unequal sizes whose mean and spread drift."""
    return [
        (rng.normal(size=(rng.integers(2, 9), 4, 3)) * (1 + i / 10) + 3 + i / 5).astype(np.float32)
        for i in range(STEPS)
    ]


def measured(batch):
    wide = batch.astype(np.float64).reshape(-1, batch.shape[-1])
    return wide.mean(0), wide.var(0), len(wide)


CONVENTIONS = {
    "Flax": {"momentum": 0.99},
    "Keras": {"momentum": 0.99, "epsilon": 1e-3},
    "torch": {"momentum": 0.9, "ddof": 1},
    "lessons": {"momentum": 0.9},
    "all past": {"momentum": 1.0},
    "no past": {"momentum": 0.0},
}


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "jit"])
@pytest.mark.parametrize("options", CONVENTIONS.values(), ids=CONVENTIONS)
def test_exponential_conventions(options, compiled, batches):
    """momentum * old + (1 - momentum) * batch, from mean 0 and variance 1."""
    stats, expected = jn.RunningStats.init(3), (np.zeros(3), np.ones(3))
    step = functools.partial(jn.batch_norm, training=True, **options)
    step = jax.jit(step) if compiled else step
    for batch in batches:
        _, stats = step(batch, stats)
        expected = reference.running(expected, measured(batch), past=options["momentum"], ddof=options.get("ddof", 0))
    np.testing.assert_allclose(stats.mean, expected[0], rtol=1e-6)
    np.testing.assert_allclose(stats.var, expected[1], rtol=1e-6)
    np.testing.assert_array_equal(stats.count, STEPS)


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9, 0.999])
def test_haiku_debiasing(momentum, batches):
    """A zero-initialized average divided by 1 - momentum^t, at every step; the first equals its batch."""
    stats, hidden = jn.RunningStats.init(3), [np.zeros(3), np.zeros(3)]
    for t, batch in enumerate(batches, start=1):
        _, stats = jn.batch_norm(batch, stats, training=True, momentum=momentum, debias=True)
        hidden = [momentum * h + (1 - momentum) * b for h, b in zip(hidden, measured(batch)[:2], strict=True)]
        if t == 1:
            m = jn.moments(batch, (0, 1))
            np.testing.assert_array_equal(stats.mean, m.mean)
            np.testing.assert_array_equal(stats.var, m.var)
        np.testing.assert_allclose(stats.mean, hidden[0] / (1 - momentum**t), rtol=1e-6)
        np.testing.assert_allclose(stats.var, hidden[1] / (1 - momentum**t), rtol=1e-6)


@pytest.mark.parametrize("ddof", [0, 1])
def test_cumulative_average(ddof, batches):
    """momentum=None: torch's cumulative mode, all updates weigh the same."""
    stats = jn.RunningStats.init(3)
    for batch in batches:
        _, stats = jn.batch_norm(batch, stats, training=True, momentum=None, ddof=ddof)
    means, variances, counts = map(np.array, zip(*map(measured, batches), strict=True))
    np.testing.assert_allclose(stats.mean, means.mean(0), rtol=1e-6)
    np.testing.assert_allclose(stats.var, (variances * (counts / (counts - ddof))[:, None]).mean(0), rtol=1e-6)


@pytest.mark.parametrize("options", [{}, {"debias": True}], ids=str)
def test_traced_momentum_equals_a_python_number(options, batches):
    m = jn.moments(batches[0], (0, 1))
    stats = jn.RunningStats(jnp.ones(3), jnp.ones(3), jnp.full(3, 4.0))
    traced = jax.jit(lambda momentum: stats.update(m, momentum=momentum, **options))(0.9)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), traced, stats.update(m, momentum=0.9, **options)
    )


@pytest.mark.parametrize("options", [{"ddof": 1}, {"debias": True}, {"momentum": None}, {"momentum": 0.5}], ids=str)
def test_batch_renorm_keeps_the_statistics_that_batch_norm_keeps(options, batches):
    options = {"momentum": 0.9, **options}
    renorm = norm = jn.RunningStats.init(3)
    for batch in batches:
        _, renorm = jn.batch_renorm(batch, renorm, training=True, **options)
        _, norm = jn.batch_norm(batch, norm, training=True, **options)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), renorm, norm)


COUNTS = {
    "one for all": np.float32(7),
    "each its own": np.float32([0, 1, 2, 3, 40]),
    "a Python number": 7,
    "integers": np.int32([0, 1, 2, 3, 40]),
    "half precision": np.arange(5, dtype=jnp.bfloat16),
}


@pytest.mark.parametrize("implementation", [None, "xla"], ids=["by the kernel, if there is one", "by the formula"])
@pytest.mark.parametrize("n", COUNTS.values(), ids=COUNTS)
@pytest.mark.parametrize("ddof", [0, True, 2])
def test_a_step(ddof, n, implementation, rng):
    """Every array is another, and a feature that has not more than ddof values keeps every bit."""
    arrays = np.add(rng.normal(size=(5, 5)), [[0], [9], [0], [9], [9]])
    mean, var, count, batch_mean, batch_var = arrays.astype(np.float32)
    residual = np.float32([0, 1e-3, -2e-3, 0.5, 0])
    batch = rules.Statistics(batch_mean, residual, batch_var, n)
    options = {"ddof": ddof, "debias": False, "implementation": implementation}
    rates = averaging.averaging_rates
    step = jax.jit(lambda old, batch, momentum: averaging.step(*old, batch, rates(momentum), **options))
    new = step((mean, var, count), batch, 0.75)

    values = np.broadcast_to(np.asarray(n, np.float64), 5)
    enough = values > ddof
    factor = np.where(enough, values / np.where(enough, values - ddof, 1), 1)
    np.testing.assert_allclose(new[0][enough], (0.75 * mean + 0.25 * (batch_mean + residual))[enough], rtol=1e-6)
    np.testing.assert_allclose(new[1][enough], (0.75 * var + 0.25 * batch_var * factor)[enough], rtol=1e-6)
    np.testing.assert_array_equal(new[2][enough], count[enough] + 1)
    for a, old in zip(new, (mean, var, count), strict=True):
        np.testing.assert_array_equal(a[~enough], old[~enough])


@pytest.mark.parametrize("shape", [(3, 1), (1, 4), (3, 4)])
def test_counts_are_broadcast_to_the_features(shape):
    m = jn.Moments(jnp.ones((3, 4)), jnp.ones((3, 4)), jnp.arange(float(np.prod(shape))).reshape(shape))
    new = jn.RunningStats.init((3, 4)).update(m, momentum=0.5, ddof=1)
    np.testing.assert_array_equal(new.count, np.broadcast_to(m.count > 1, (3, 4)))
    with pytest.raises((TypeError, ValueError), match=r"\(7,\)"):
        jn.RunningStats.init(3).update(jn.Moments(jnp.ones(3), jnp.ones(3), jnp.ones(7)))


@pytest.mark.parametrize("what", ["momentum", "count"])
def test_a_step_that_differs_between_devices_is_known_to_differ(what):
    mesh = jax.make_mesh((2,), ("data",))

    def update(stats):
        of_device = jnp.float32(2) + jax.lax.axis_index("data").astype(jnp.float32)
        batch = jn.Moments(stats.var, stats.var, jnp.full(3, of_device if what == "count" else 9.0))
        return stats.update(batch, momentum=1 / of_device if what == "momentum" else 0.5)

    with pytest.raises(ValueError, match="out_specs"):
        jax.shard_map(update, mesh=mesh, in_specs=P(), out_specs=P())(jn.RunningStats.init(3))
    new = jax.shard_map(update, mesh=mesh, in_specs=P(), out_specs=P("data"))(jn.RunningStats.init(3))
    np.testing.assert_allclose(new.mean, np.repeat([1 / 2, 2 / 3] if what == "momentum" else [0.5, 0.5], 3), rtol=1e-6)


def test_no_gradient_flows_through_a_step(rng):
    m = jn.moments(rng.normal(size=(9, 3)), 0)
    stats = jn.RunningStats(jnp.ones(3), jnp.ones(3), jnp.full(3, 4.0))
    gradients = jax.grad(lambda *a: sum(leaf.sum() for leaf in a[0].update(a[1], momentum=a[2])), (0, 1, 2))(
        stats, m, 0.5
    )
    assert not any(leaf.any() for leaf in jax.tree.leaves(gradients))


def test_before_any_update_inference_changes_nothing_but_epsilon(rng):
    x = rng.normal(size=(5, 3)).astype(np.float32)
    y, stats = jn.batch_norm(x, jn.RunningStats.init(3), training=False)
    np.testing.assert_allclose(y, x / np.sqrt(1 + 1e-5), rtol=1e-6)
    jax.tree.map(np.testing.assert_array_equal, stats, jn.RunningStats.init(3))


def test_inference_returns_the_very_state_and_does_not_see_the_batch(rng):
    x = rng.normal(size=(5, 3)).astype(np.float32)
    stats = jn.RunningStats(jnp.array([1.0, 2.0, 3.0]), jnp.array([4.0, 0.25, 1.0]), jnp.ones(3))
    y, new = jn.batch_norm(x, stats, jnp.full(3, 2.0), jnp.full(3, 1.0), training=False, ghost_size=2, epsilon=0.0)
    assert new is stats
    np.testing.assert_allclose(y, (x - [1, 2, 3]) / [2, 0.5, 1] * 2 + 1, rtol=1e-5, atol=1e-6)
    one, _ = jn.batch_norm(x[:1], stats, training=False, epsilon=0.0)
    np.testing.assert_allclose(one, (x[:1] - [1, 2, 3]) / [2, 0.5, 1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_state_dtype_never_depends_on_the_data(dtype, rng):
    x = jnp.asarray(rng.normal(size=(8, 3)) * 100 + 1000, dtype)
    _, stats = jn.batch_norm(x, jn.RunningStats.init(3), training=True, momentum=0.0)
    assert {leaf.dtype for leaf in stats} == {jnp.dtype(jnp.float32)}
    np.testing.assert_allclose(stats.mean, np.asarray(x, np.float64).mean(0), rtol=1e-6)
    y, _ = jn.batch_norm(x, stats, training=False)
    wide = np.asarray(x, np.float64)
    expected = (wide - wide.mean(0)) / np.sqrt(wide.var(0) + 1e-5)
    np.testing.assert_allclose(np.asarray(y, np.float64), expected, rtol=float(jnp.finfo(dtype).eps), atol=1e-5)


def test_float64_data_keeps_a_float32_state_and_a_float64_state_stays(rng):
    with jax.enable_x64(True):
        x = rng.normal(size=(8, 3)) + 5
        _, stats = jn.batch_norm(x, jn.RunningStats.init(3), training=True)
        assert stats.mean.dtype == stats.var.dtype == jnp.float32
        _, stats = jn.batch_norm(x, jn.RunningStats.init(3, jnp.float64), training=True, momentum=0.0)
        assert stats.mean.dtype == jnp.float64
        np.testing.assert_allclose(stats.var, x.var(0), rtol=1e-14)


@pytest.mark.parametrize("options", [{}, {"debias": True}, {"momentum": None}, {"ddof": 1, "ghost_size": 2}], ids=str)
@pytest.mark.parametrize("data", [np.float32, np.float64])
@pytest.mark.parametrize("state", [np.float32, np.float64])
def test_every_mixture_of_widths_under_strict_promotion(options, data, state, rng):
    with jax.enable_x64(True):
        x = rng.normal(size=(5, 3)).astype(data)
        y, stats = jn.batch_norm(x, jn.RunningStats.init(3, state), training=True, **options)
        assert (y.dtype, stats.mean.dtype, stats.var.dtype) == (data, state, state)


def test_statistics_wider_than_the_data_are_used_as_wide_as_they_are():
    """10,000,000.5 does not fit float32; subtracting it from 10,000,001 must still give 0.5."""
    with jax.enable_x64(True):
        mean, var = np.array([1e7 + 0.5]), np.array([1.0])
        y = jn.normalize(np.float32([[1e7 + 1]]), mean, var, axis=0, epsilon=0.0)
        assert (y.dtype, float(y[0, 0])) == (jnp.float32, 0.5)
        # Epsilon too: 0.1 in float32 is off by 1e-9.
        y = jn.normalize(np.float32([[1.0]]), mean * 0, var * 0, axis=0, epsilon=0.1, dtype=jnp.float64)
        np.testing.assert_allclose(y, 0.1**-0.5, rtol=1e-14)


def test_complex_state(rng):
    x = (rng.normal(size=(50, 2)) + 1j * rng.normal(size=(50, 2)) + 2 - 1j).astype(np.complex64)
    y, stats = jn.batch_norm(x, jn.RunningStats.init(2, jnp.complex64), training=True, momentum=0.0)
    np.testing.assert_allclose(stats.mean, x.mean(0), rtol=1e-5)
    np.testing.assert_allclose(stats.var, x.var(0), rtol=1e-5)
    assert (stats.mean.dtype, stats.var.dtype) == (jnp.complex64, jnp.float32)
    np.testing.assert_allclose(jn.batch_norm(x, stats, training=False)[0], y, atol=1e-5)


def test_recalibrate_pools_exactly_and_update_does_not(rng):
    """Means two apart and unit variances: the truth is near 5, the usual average near 1."""
    a, b = (rng.normal(size=(500, 1)) + mean for mean in (-2, 2))
    batches = [np.float32(a), np.float32(b)]
    exact = jn.RunningStats.from_moments(jn.recalibrate(lambda batch: jn.moments(batch, 0), batches))
    np.testing.assert_allclose(exact.var, np.concatenate(batches).astype(np.float64).var(0), rtol=1e-6)
    usual = jn.RunningStats.init(1)
    for batch in batches:
        usual = usual.update(jn.moments(batch, 0), momentum=None)
    np.testing.assert_allclose(usual.var, (a.var() + b.var()) / 2, rtol=1e-5)


@pytest.mark.parametrize("kind", [list, iter], ids=["list", "iterator"])
def test_recalibrate_trees_of_unequal_batches(kind, batches):
    total = jn.recalibrate(
        jax.jit(lambda x: {"first": jn.moments(x, (0, 1)), "rows": (jn.moments(x[..., 0], 0),)}), kind(batches)
    )
    whole = np.concatenate(batches).astype(np.float64)
    np.testing.assert_allclose(total["first"].mean, whole.mean((0, 1)), rtol=1e-6)
    np.testing.assert_allclose(total["first"].var, whole.var((0, 1)), rtol=2e-6)
    np.testing.assert_allclose(total["rows"][0].var, whole[..., 0].var(0), rtol=2e-6)
    np.testing.assert_array_equal(total["rows"][0].count, len(whole))


def test_from_moments():
    m = jn.Moments(jnp.array([5.0, 1.0]), jnp.array([10.0, 0.0]), jnp.array([5.0, 1.0]))
    stats = jn.RunningStats.from_moments(m, ddof=1, count=7)
    np.testing.assert_allclose(stats.mean, [5, 0])
    np.testing.assert_allclose(stats.var, [12.5, 1])
    np.testing.assert_array_equal(stats.count, [7, 0])
    np.testing.assert_allclose(jn.RunningStats.from_moments(m).var, [10, 0])


def test_blend_weighs_by_counts():
    """Schneider et al. 2020, eq. 2: N / (N + n) source + n / (N + n) target."""
    source = jn.RunningStats(jnp.array([1.0, 1.0]), jnp.array([4.0, 4.0]), jnp.array([9.0, 9.0]))
    target = jn.Moments(jnp.array([5.0, 7.0]), jnp.array([10.0, 3.0]), jnp.array([5.0, 0.0]))
    blended = jn.blend(source, target, prior_count=15)
    np.testing.assert_allclose(blended.mean, [0.75 * 1 + 0.25 * 5, 1])
    np.testing.assert_allclose(blended.var, [0.75 * 4 + 0.25 * 10, 4])
    np.testing.assert_array_equal(blended.count, source.count)
    np.testing.assert_allclose(jn.blend(source, target, prior_count=0).mean, [5, 1])
    single = target._replace(count=jnp.ones(2))
    np.testing.assert_allclose(jn.blend(source, single, prior_count=0).mean, [5, 7])
    np.testing.assert_allclose(jn.blend(source, single, prior_count=0.25).mean, [0.2 * 1 + 0.8 * 5, 0.2 * 1 + 0.8 * 7])
    gradient = jax.grad(lambda mean: jn.blend(source, target._replace(mean=mean), prior_count=15).mean[0])(target.mean)
    np.testing.assert_allclose(gradient, [0.25, 0])


def test_a_checkpoint_of_the_state_round_trips():
    import flax.serialization

    stats = jn.RunningStats(jnp.array([1.0]), jnp.array([2.0]), jnp.array([3.0]))
    data = flax.serialization.to_bytes({"norm": stats})
    restored = flax.serialization.from_bytes({"norm": jn.RunningStats.init(1)}, data)["norm"]
    assert isinstance(restored, jn.RunningStats)
    jax.tree.map(np.testing.assert_array_equal, restored, stats)
