"""Statistics over devices: four devices with ragged masks, one of them empty, equal one device with everything."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxnorm as jn

DEVICES, ROWS, SPACE, FEATURES = 4, 3, 5, 6
COUNTS = [15, 4, 0, 1]  # valid values per device: all, some, none, one


@pytest.fixture
def data(rng):
    shape = (DEVICES * ROWS, SPACE, FEATURES)
    x, dy = (jnp.asarray(rng.normal(size=shape) + mean, jnp.float32) for mean in (30, 0))
    where = np.zeros((DEVICES, ROWS * SPACE), bool)
    for device, count in enumerate(COUNTS):
        where[device, rng.permutation(ROWS * SPACE)[:count]] = True
    scale, bias = (jnp.asarray(rng.normal(size=FEATURES), jnp.float32) for _ in range(2))
    return x, dy, jnp.asarray(where.reshape((*shape[:2], 1))), scale, bias


def norm(x, where, scale, bias, stats, **options):
    return jn.batch_norm(x, stats, scale, bias, training=True, where=where, ddof=1, **options)


def by_vmap(f):
    def split(a):
        return a.reshape(DEVICES, -1, *a.shape[1:])

    def run(x, where, *rest):
        y, stats = jax.vmap(lambda x, where: f(x, where, *rest), axis_name="data")(split(x), split(where))
        return y.reshape(x.shape), jax.tree.map(lambda leaf: leaf[2], stats)

    return run


def by_shard_map(f, check_vma, axis_type=AxisType.Auto):
    mesh = jax.make_mesh((DEVICES,), ("data",), axis_types=(axis_type,), devices=jax.devices()[:DEVICES])

    def run(x, where, *rest):
        put = functools.partial(jax.device_put, device=NamedSharding(mesh, P("data")))
        if axis_type == AxisType.Explicit:
            x, where = put(x), put(where)
        specs = (P("data"), P("data"), *(P() for _ in rest))
        mapped = jax.shard_map(f, mesh=mesh, in_specs=specs, out_specs=(P("data"), P()), check_vma=check_vma)
        return mapped(x, where, *rest)

    return run


MAPS = {
    "vmap": by_vmap,
    "shard_map": functools.partial(by_shard_map, check_vma=True),
    "shard_map unchecked": functools.partial(by_shard_map, check_vma=False),
    "shard_map explicit": functools.partial(by_shard_map, check_vma=True, axis_type=AxisType.Explicit),
}


@pytest.mark.parametrize("how", MAPS)
def test_batch_norm_over_devices_equals_one_device(data, how):
    x, dy, where, scale, bias = data
    stats = jn.RunningStats.init(FEATURES)

    @functools.partial(jax.jit, static_argnums=0)
    def everything(f, x, scale, bias):
        y, pull, new = jax.vjp(lambda x, scale, bias: f(x, where, scale, bias, stats), x, scale, bias, has_aux=True)
        return y, pull(dy), new

    expected = everything(norm, x, scale, bias)
    actual = everything(MAPS[how](functools.partial(norm, axis_name="data")), x, scale, bias)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=4e-6), actual, expected)


@pytest.mark.parametrize("how", ["vmap", "shard_map", "shard_map unchecked"])
@pytest.mark.parametrize("argument", ["scale", "bias"])
def test_gradient_of_one_parameter_alone_over_devices(data, how, argument):
    x, dy, where, scale, bias = data
    stats = jn.RunningStats.init(FEATURES)
    parameters = {"scale": scale, "bias": bias}

    def loss(f, value):
        p = parameters | {argument: value}
        return jnp.sum(f(x, where, p["scale"], p["bias"], stats)[0] * dy)

    f = MAPS[how](functools.partial(norm, axis_name="data"))
    actual = jax.grad(functools.partial(loss, f))(parameters[argument])
    np.testing.assert_allclose(actual, jax.grad(functools.partial(loss, norm))(parameters[argument]), atol=4e-6)


@pytest.mark.full
@pytest.mark.parametrize("how", ["vmap", "shard_map"])
def test_forward_mode_and_second_order_over_devices(data, how):
    x, dy, where, scale, bias = data
    stats = jn.RunningStats.init(FEATURES)
    f = MAPS[how](functools.partial(norm, axis_name="data"))

    def products(f):
        loss = lambda x: jnp.sum(f(x, where, scale, bias, stats)[0] ** 2 * dy)
        return jax.jvp(jax.grad(loss), (x,), (dy,))

    for a, b in zip(products(f), products(norm), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_without_masks_the_shards_are_weighted_equally(rng):
    x = jnp.asarray(rng.normal(size=(4, 2, 3)) + 5, jnp.float32)
    m = jax.vmap(lambda x: jn.moments(x, 0, axis_name="d"), axis_name="d")(x)
    np.testing.assert_allclose(m.mean[1], x.mean((0, 1)), rtol=1e-6)
    np.testing.assert_allclose(m.var[1], x.var((0, 1)), rtol=1e-5)
    np.testing.assert_array_equal(m.count, 8)


GROUPS = [[[0, 2], [1, 3]], [[0, 1, 2, 3]], [[3], [0, 1, 2]]]


@pytest.mark.parametrize("how", ["vmap", "shard_map"])
@pytest.mark.parametrize("groups", GROUPS, ids=str)
def test_index_groups_share_statistics_within_each_group(groups, how, rng):
    """Groups of any size; a NaN in one group stays there."""
    x = np.asarray(rng.normal(size=(4, 5, 3)) + np.arange(4)[:, None, None] * 10, np.float32)
    x[3] = np.nan
    dy = jnp.asarray(rng.normal(size=x.shape), jnp.float32)
    f = functools.partial(jn.batch_norm, training=True, axis_name="d", axis_index_groups=groups)

    def run(x):
        if how == "vmap":
            return jax.vmap(lambda x: f(x, None)[0], axis_name="d")(x)
        mesh = jax.make_mesh((4,), ("d",), axis_types=(AxisType.Auto,), devices=jax.devices()[:4])
        return jax.shard_map(lambda x: f(x[0], None)[0][None], mesh=mesh, in_specs=P("d"), out_specs=P("d"))(x)

    y, pull = jax.vjp(run, jnp.asarray(x))
    (dx,) = pull(dy)
    for group in map(np.array, groups):
        together = x[group].reshape(-1, 3)
        expected, pull_together = jax.vjp(lambda x: jn.batch_norm(x, None, training=True)[0], jnp.asarray(together))
        np.testing.assert_allclose(y[group].reshape(-1, 3), expected, atol=1e-5)
        np.testing.assert_allclose(dx[group].reshape(-1, 3), pull_together(dy[group].reshape(-1, 3))[0], atol=1e-5)


def test_merge_over_groups():
    m = jn.Moments(jnp.array([1.0, 2.0, 3.0, 4.0]), jnp.ones(4), jnp.array([1.0, 2.0, 3.0, 0.0]))
    f = lambda m: jn.merge_over(m, "d", [[0, 3], [1, 2]])
    pooled = jax.vmap(f, axis_name="d")(m)
    np.testing.assert_allclose(pooled.mean, [1.0, 2.6, 2.6, 1.0], rtol=1e-6)
    np.testing.assert_allclose(pooled.var, [1.0, 1.24, 1.24, 1.0], rtol=1e-6)
    np.testing.assert_array_equal(pooled.count, [1, 5, 5, 1])


def test_a_constant_over_devices_gives_exactly_zero():
    y, _ = jax.vmap(lambda x: jn.batch_norm(x, None, training=True, axis_name="d"), axis_name="d")(
        jnp.full((7, 41, 3), 3.3)
    )
    np.testing.assert_array_equal(y, 0)


def test_a_large_mean_over_devices(rng):
    x = (rng.normal(size=(8, 500, 3)) + 1e6).astype(np.float32)
    y = jax.vmap(lambda x: jn.batch_norm(x, None, training=True, axis_name="d")[0], axis_name="d")(x)
    wide = x.astype(np.float64)
    expected = (wide - wide.mean((0, 1))) / np.sqrt(wide.var((0, 1)) + 1e-5)
    np.testing.assert_allclose(y, expected, atol=1e-5)


@pytest.mark.parametrize("name", ["layer_norm", "rms_norm", "group_norm", "instance_norm"])
def test_sharded_features_or_space(name, rng):
    """The norms without state over an axis that devices share: features for rows, space for groups and instances."""
    x = jnp.asarray(rng.normal(size=(3, 8, 6)) + 3, jnp.float32)
    axis = 2 if name in ("layer_norm", "rms_norm") else 1
    options = {"num_groups": 2} if name == "group_norm" else {}
    f = functools.partial(getattr(jn, name), **options)
    pieces = jnp.stack(jnp.split(x, 2, axis))
    y = jax.vmap(lambda x: f(x, axis_name="d"), axis_name="d")(pieces)
    np.testing.assert_allclose(jnp.concatenate(list(y), axis), f(x), atol=1e-6)


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit], ids=str)
def test_sharded_jit_gathers_nothing_and_equals_one_device(data, axis_type):
    x, dy, where, scale, bias = data
    mesh = jax.make_mesh((4,), ("data",), axis_types=(axis_type,), devices=jax.devices()[:4])
    put = functools.partial(jax.device_put, device=NamedSharding(mesh, P("data")))
    stats = jn.RunningStats.init(FEATURES)

    @jax.jit
    def run(x, where, dy, scale, bias):
        y, pull, new = jax.vjp(lambda *args: norm(args[0], where, *args[1:], stats), x, scale, bias, has_aux=True)
        return y, pull(dy), new

    arguments = put(x), put(where), put(dy), scale, bias
    actual = run(*arguments)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=4e-6), actual, run(x, where, dy, scale, bias)
    )
    assert "all-gather" not in run.lower(*arguments).compile().as_text()


def test_features_sharded_over_an_explicit_mesh(rng):
    """Statistics, update and merge live where the features live."""
    mesh = jax.make_mesh((2, 2), ("d", "m"), axis_types=(AxisType.Explicit,) * 2, devices=jax.devices()[:4])
    x = jnp.asarray(rng.normal(size=(8, 3, 6)) + 3, jnp.float32)
    with jax.set_mesh(mesh):
        put = lambda a, *spec: jax.device_put(a, NamedSharding(mesh, P(*spec)))
        sharded = put(x, "d", None, "m")
        stats = jax.tree.map(lambda leaf: put(leaf, "m"), jn.RunningStats.init(6))
        y, new = jax.jit(lambda x, stats: jn.batch_norm(x, stats, training=True))(sharded, stats)
        m = jn.merge(jn.moments(sharded, (0, 1)), jn.moments(sharded, (0, 1)))
        assert new.mean.sharding.spec == P("m")
    expected, expected_stats = jn.batch_norm(x, jn.RunningStats.init(6), training=True)
    np.testing.assert_allclose(y, expected, atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), new, expected_stats)
    np.testing.assert_allclose(m.var, x.var((0, 1)), rtol=1e-5)


def test_a_mask_that_varies_over_fewer_devices_than_the_data(rng):
    mesh = jax.make_mesh((2, 4), ("a", "b"), axis_types=(AxisType.Auto,) * 2)
    x = jnp.asarray(rng.normal(size=(4, 8, 3)) + 3, jnp.float32)
    where = jnp.array([True, False, True, True])[:, None, None]
    f = lambda x, w: jn.batch_norm(x, None, training=True, where=w, axis_name=["a", "b"])[0]
    mapped = jax.shard_map(f, mesh=mesh, in_specs=(P("a", "b"), P("a")), out_specs=P("a", "b"))
    expected, _ = jn.batch_norm(x, None, training=True, where=where)
    np.testing.assert_allclose(jax.jit(mapped)(x, where), expected, atol=1e-5)


def test_groups_over_two_names(rng):
    x = jnp.asarray(rng.normal(size=(2, 2, 5, 3)), jnp.float32)
    groups = [[0, 3], [1, 2]]  # counted row by row over both names
    f = lambda x: jn.batch_norm(x, None, training=True, axis_name=("a", "b"), axis_index_groups=groups)[0]
    y = jax.vmap(jax.vmap(f, axis_name="b"), axis_name="a")(x).reshape(4, 5, 3)
    for group in map(np.array, groups):
        together = x.reshape(4, 5, 3)[group].reshape(-1, 3)
        expected, _ = jn.batch_norm(together, None, training=True)
        np.testing.assert_allclose(y[group].reshape(-1, 3), expected, atol=1e-5)
