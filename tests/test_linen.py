"""`jaxnorm.linen` is `flax.linen`: the same variables, outputs, statistics, gradients; and better where it must be."""

import functools
from typing import Any

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnorm.linen as jnl

KEY = jax.random.key(0)
SMALL, IMAGES = (6, 5), (3, 4, 5, 6)
partitioned = nn.with_partitioning(nn.initializers.ones, ("model",))
normal = nn.initializers.normal()

# norm: [(shape, dtype, constructor arguments, mask shape)]; the first few run in the plain command.
GRID: dict[str, list[tuple[tuple[int, ...], Any, dict, tuple[int, ...] | None]]] = {
    "BatchNorm": [
        (IMAGES, "float32", {}, None),
        (SMALL, "bfloat16", {"momentum": 0.9, "epsilon": 1e-3}, (6, 1)),
        (IMAGES, "float32", {"axis": 1, "use_bias": False, "scale_init": normal}, (3, 1, 5, 6)),
        (IMAGES, "bfloat16", {"dtype": jnp.bfloat16, "use_scale": False}, None),
        (IMAGES, "float16", {"dtype": jnp.float16, "axis": (1, -1)}, None),
        (SMALL, "float32", {"dtype": jnp.bfloat16, "param_dtype": jnp.bfloat16}, None),
        (SMALL, "float32", {"use_bias": False, "use_scale": False, "momentum": 0.0}, SMALL),
        (IMAGES, "float32", {"axis": (3, 1), "bias_init": normal, "momentum": 1.0}, IMAGES),
        (SMALL, "float32", {"scale_init": partitioned}, None),
        (SMALL, "int32", {}, None),
    ],
    "LayerNorm": [
        (IMAGES, "float32", {}, None),
        (IMAGES, "bfloat16", {"reduction_axes": (1, 2, 3), "epsilon": 1e-3}, IMAGES),
        (
            IMAGES,
            "float32",
            {"reduction_axes": (1, 2), "feature_axes": -1, "use_bias": False, "scale_init": normal},
            None,
        ),
        (IMAGES, "float32", {"reduction_axes": (-1, 1), "feature_axes": (2, 3), "bias_init": normal}, (3, 4, 1, 1)),
        (SMALL, "float16", {"dtype": jnp.float32, "param_dtype": jnp.float16}, None),
        (SMALL, "bfloat16", {"dtype": jnp.bfloat16, "use_scale": False}, (6, 5)),
        (SMALL, "float32", {"reduction_axes": 0, "feature_axes": 0, "scale_init": partitioned}, None),
        (SMALL, "int32", {}, None),
    ],
    "RMSNorm": [
        (IMAGES, "float32", {}, None),
        (SMALL, "bfloat16", {"epsilon": 1e-3, "scale_init": normal}, (6, 5)),
        (IMAGES, "float32", {"reduction_axes": (1, -1), "feature_axes": (1, 3)}, (3, 4, 1, 1)),
        (IMAGES, "bfloat16", {"dtype": jnp.bfloat16, "param_dtype": jnp.bfloat16}, None),
        (SMALL, "float32", {"use_scale": False, "reduction_axes": 0}, None),
    ],
    "GroupNorm": [
        (IMAGES, "float32", {"num_groups": 3}, None),
        (IMAGES, "bfloat16", {"num_groups": None, "group_size": 2, "epsilon": 1e-3}, IMAGES),
        (IMAGES, "float32", {"num_groups": 2, "reduction_axes": (2, 3), "scale_init": normal}, None),
        (IMAGES, "float32", {"num_groups": 1, "use_bias": False, "reduction_axes": (0, 1, -1)}, None),
        (IMAGES, "bfloat16", {"num_groups": 6, "dtype": jnp.bfloat16, "use_scale": False}, IMAGES),
        (SMALL, "float32", {"num_groups": 1, "bias_init": normal, "param_dtype": jnp.float16}, None),
    ],
    "InstanceNorm": [
        (IMAGES, "float32", {}, None),
        (IMAGES, "bfloat16", {"epsilon": 1e-3, "scale_init": normal}, (3, 4, 5, 1)),
        (IMAGES, "float32", {"feature_axes": (1, -1), "use_bias": False}, IMAGES),
        (IMAGES, "bfloat16", {"feature_axes": 1, "dtype": jnp.bfloat16, "use_scale": False}, None),
    ],
}
ROWS = [
    pytest.param(name, *row, id=f"{name}-{i}", marks=[pytest.mark.full] if i > 2 else [])
    for name, rows in GRID.items()
    for i, row in enumerate(rows)
]


@pytest.fixture(autouse=True)
def as_flax_expects():
    """Flax's own code promotes dtypes and ranks."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def data(shape, dtype, mask_shape):
    """x with a mean; a mask that leaves two values in every set, whatever shares."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=shape) * 2 + 3).astype(dtype)
    if mask_shape is None:
        return x, None
    mask = rng.random(mask_shape) > 0.25
    mask[:2] = True
    return x, jnp.asarray(mask)


def shapes(tree):
    """Structure, shapes, dtypes and partitioning metadata."""
    return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree), jax.tree.structure(tree)


def close(ours, theirs, size=1.0):
    """1e-6 and four units in the last place of float32; one unit in half precision."""
    assert ours.dtype == theirs.dtype
    a, b = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    unit = float(jnp.finfo(ours.dtype).eps)
    limit = 1e-6 * size + (4 if ours.dtype.itemsize >= 4 else 1) * unit * np.maximum(
        np.abs(b), size if unit < 1e-6 else 0
    )
    assert (np.abs(a - b) <= limit).all(), np.max(np.abs(a - b) - limit)


def pair(name, options):
    return getattr(jnl, name)(**options), getattr(nn, name)(use_fast_variance=False, **options)


@pytest.mark.parametrize(("name", "shape", "dtype", "options", "mask_shape"), ROWS)
def test_variables_outputs_statistics_and_gradients_are_flax_s(name, shape, dtype, options, mask_shape):
    x, mask = data(shape, dtype, mask_shape)
    modes = [{"use_running_average": False}, {"use_running_average": True}] if name == "BatchNorm" else [{}]
    ours, theirs = pair(name, options)
    variables = theirs.init(KEY, x, **modes[0])
    # Identical variables, from the same key; then anything but the initial values.
    mine = ours.init(KEY, x, **modes[0])
    assert shapes(mine) == shapes(variables)
    jax.tree.map(np.testing.assert_array_equal, mine, variables)
    rng = np.random.default_rng(1)
    variables = jax.tree.map(lambda v: jnp.asarray(rng.uniform(0.5, 1.5, v.shape), v.dtype), variables)
    weight = jnp.asarray(rng.normal(size=shape), jnp.float32)
    if mask is not None:
        weight = weight * mask  # Flax normalizes masked entries too

    for mode in modes:

        def run(module, params, x, mode=mode):
            y, state = module.apply({**variables, **params}, x, mask=mask, mutable=["batch_stats"], **mode)
            return jnp.sum(y.astype(jnp.float32) * weight), (y, state)

        params = {k: v for k, v in variables.items() if k == "params"}
        (_, (y, state)), grads = jax.value_and_grad(functools.partial(run, ours), has_aux=True)(params, x.astype(float))
        (_, (y_flax, state_flax)), grads_flax = jax.value_and_grad(functools.partial(run, theirs), has_aux=True)(
            params, x.astype(float)
        )
        y, y_flax = (
            module.apply(variables, x, mask=mask, mutable=["batch_stats"], **mode)[0] for module in (ours, theirs)
        )
        valid = np.broadcast_to(True if mask is None else np.asarray(mask), shape)
        assert y.dtype == y_flax.dtype
        close(jnp.where(valid, y, 0), jnp.where(valid, y_flax, 0), size=4.0)
        assert shapes(state) == shapes(state_flax)
        jax.tree.map(close, state, state_flax)
        jax.tree.map(functools.partial(close, size=32.0), grads, grads_flax)


def test_a_flax_checkpoint_restores_and_back():
    import flax.serialization

    x, _ = data(IMAGES, "float32", None)
    for name in GRID:
        options = {"num_groups": 3} if name == "GroupNorm" else {}
        mode = {"use_running_average": False} if name == "BatchNorm" else {}
        ours, theirs = pair(name, options)
        for one, other in ((ours, theirs), (theirs, ours)):
            written = flax.serialization.to_bytes(one.init(KEY, x, **mode))
            restored = flax.serialization.from_bytes(other.init(jax.random.key(1), x, **mode), written)
            jax.tree.map(np.testing.assert_array_equal, restored, one.init(KEY, x, **mode))


class Block(nn.Module):
    """A residual block in the published order, with norms from `lib`."""

    lib: Any

    @nn.compact
    def __call__(self, x, training):
        norm = functools.partial(self.lib.BatchNorm, use_running_average=not training, momentum=0.9)
        y = nn.relu(norm()(nn.Conv(8, (3, 3), use_bias=False)(x)))
        y = norm(scale_init=nn.initializers.zeros)(nn.Conv(8, (3, 3), use_bias=False)(y))
        return nn.relu(y + nn.Conv(8, (1, 1))(x))


class ResNet(nn.Module):
    lib: Any

    @nn.compact
    def __call__(self, x, training):
        for _ in range(2):
            x = Block(self.lib)(x, training)
        return nn.Dense(3)(x.mean((1, 2)))


class Transformer(nn.Module):
    """A pre-norm block with layer norm, one with RMS norm."""

    lib: Any

    @nn.compact
    def __call__(self, x, training):
        x = x.reshape(x.shape[0], -1, x.shape[-1])
        for norm in (self.lib.LayerNorm, self.lib.RMSNorm):
            x = x + nn.MultiHeadDotProductAttention(2, qkv_features=8)(norm()(x))
            x = x + nn.Dense(x.shape[-1])(nn.gelu(nn.Dense(16)(norm()(x))))
        return nn.Dense(3)(x.mean(1))


class UNetBlock(nn.Module):
    lib: Any

    @nn.compact
    def __call__(self, x, training):
        down = nn.silu(self.lib.GroupNorm(num_groups=2)(nn.Conv(8, (3, 3))(x)))
        deep = nn.silu(self.lib.GroupNorm(num_groups=4)(nn.Conv(16, (3, 3), strides=2)(down)))
        up = jax.image.resize(deep, (*down.shape[:3], 16), "nearest")
        joined = nn.Conv(8, (3, 3))(jnp.concatenate([up, down], -1))
        return nn.Dense(3)(nn.silu(self.lib.InstanceNorm()(joined)).mean((1, 2)))


class Stable:
    """Flax's norms with the stable variance."""

    def __getattr__(self, name):
        return functools.partial(getattr(nn, name), use_fast_variance=False)


@pytest.mark.parametrize(
    "model",
    [Transformer, *(pytest.param(m, marks=pytest.mark.full) for m in (ResNet, UNetBlock))],
    ids=lambda m: m.__name__,
)
def test_a_model_written_once_trains_to_the_same_losses(model):
    """The same tree from the same key, the same outputs, twenty SGD steps to the same losses."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(8, 6, 6, 4)) + 1, jnp.float32)
    labels = jnp.asarray(rng.integers(0, 3, 8))

    def train(lib):
        module = model(lib)
        variables = module.init(KEY, x, training=True)

        @jax.jit
        def step(variables):
            def loss(params):
                logits, state = module.apply({**variables, "params": params}, x, training=True, mutable=["batch_stats"])
                log_p = jax.nn.log_softmax(logits)
                return -jnp.mean(jnp.take_along_axis(log_p, labels[:, None], 1)), state

            (value, state), grads = jax.value_and_grad(loss, has_aux=True)(variables["params"])
            params = jax.tree.map(lambda p, g: p - 0.05 * g, variables["params"], grads)
            return {**variables, **state, "params": params}, value

        losses = []
        first = variables
        for _ in range(20):
            variables, value = step(variables)
            losses.append(float(value))
        return first, losses, module.apply(variables, x, training=False)

    (ours, losses, y), (theirs, losses_flax, y_flax) = train(jnl), train(Stable())
    assert shapes(ours) == shapes(theirs)
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    np.testing.assert_allclose(losses, losses_flax, rtol=0, atol=1e-5)
    np.testing.assert_allclose(y, y_flax, atol=1e-4)
    assert losses[-1] < losses[0]


def layers(lib, transform):
    """Three layers of dense and batch norm, by a lifted transform."""

    class Layer(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            x = lib.BatchNorm(use_running_average=False, momentum=0.9)(nn.Dense(x.shape[-1])(x))
            return x, None

    if transform == "remat":
        Layer = nn.remat(Layer)
    if transform == "vmap":
        lifted = nn.vmap(
            Layer, variable_axes={"params": 0, "batch_stats": 0}, split_rngs={"params": True}, in_axes=(0, None)
        )
        return lambda x: lifted()(jnp.stack([x, x + 1, x * 2]), None)[0]
    return lambda x: nn.scan(
        Layer, variable_axes={"params": 0, "batch_stats": 0}, split_rngs={"params": True}, length=3
    )()(x, None)[0]


@pytest.mark.parametrize("transform", ["scan", *(pytest.param(t, marks=pytest.mark.full) for t in ("vmap", "remat"))])
def test_lifted_transforms(transform):
    x, _ = data(SMALL, "float32", None)
    results = []
    for lib in (jnl, Stable()):

        class Model(nn.Module):
            lib: Any

            @nn.compact
            def __call__(self, x):
                return layers(self.lib, transform)(x)

        model = Model(lib)
        variables = model.init(KEY, x)
        y, state = jax.jit(lambda v, x, model=model: model.apply(v, x, mutable=["batch_stats"]))(variables, x)
        grads = jax.grad(
            lambda p, v=variables, model=model: jnp.sum(
                model.apply({**v, "params": p}, x, mutable=["batch_stats"])[0] ** 3
            )
        )(variables["params"])
        results.append((variables, y, state, grads))
    (v, y, state, grads), (v2, y2, state2, grads2) = results
    assert shapes(v) == shapes(v2)
    np.testing.assert_allclose(y, y2, atol=1e-5)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), state, state2)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=2e-4), grads, grads2)


@pytest.mark.parametrize("name", GRID)
def test_axis_name_is_flax_s_where_shards_are_equal(name):
    x, _ = data((4, *IMAGES), "float32", None)
    options = {"axis_name": "d"} | ({"num_groups": 3} if name == "GroupNorm" else {})
    mode = {"use_running_average": False} if name == "BatchNorm" else {}
    ours, theirs = pair(name, options)
    plain = getattr(nn, name)(**{k: v for k, v in options.items() if k != "axis_name"})
    variables = plain.init(KEY, x[0], **mode)

    def run(module):
        f = lambda x: module.apply(variables, x, mutable=["batch_stats"], **mode)
        return jax.vmap(f, axis_name="d")(x)

    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=2e-6), run(ours), run(theirs))


def test_batch_norm_initializes_without_its_axis_and_without_an_update():
    x, _ = data(SMALL, "float32", None)
    variables = jnl.BatchNorm(axis_name="d").init(KEY, x[:1], use_running_average=False)
    np.testing.assert_array_equal(variables["batch_stats"]["mean"], 0)


ERRORS = [
    (lambda lib: lib.BatchNorm(), SMALL, {}),
    (lambda lib: lib.BatchNorm(use_running_average=True), SMALL, {"use_running_average": True}),
    (lambda lib: lib.GroupNorm(), IMAGES, {}),
    (lambda lib: lib.GroupNorm(num_groups=2, group_size=2), IMAGES, {}),
    (lambda lib: lib.GroupNorm(num_groups=None), IMAGES, {}),
    (lambda lib: lib.GroupNorm(num_groups=None, group_size=4), IMAGES, {}),
    (lambda lib: lib.GroupNorm(num_groups=2, reduction_axes=(1, 2)), IMAGES, {}),
    (lambda lib: lib.InstanceNorm(feature_axes=0), IMAGES, {}),
    (lambda lib: lib.LayerNorm(dtype=jnp.int32), SMALL, {}),
]


@pytest.mark.parametrize("row", range(len(ERRORS)))
def test_errors_of_flax_are_errors_here(row):
    make, shape, call = ERRORS[row]
    for lib in (nn, jnl):
        with pytest.raises((ValueError, TypeError)):
            make(lib).init(KEY, jnp.ones(shape), **call)


# -- different on purpose ----------------------------------------------------------------------------------------------


def apply(module, x, **call):
    mode = {"use_running_average": False} if isinstance(module, (nn.BatchNorm, jnl.BatchNorm)) else {}
    variables = module.init(KEY, jnp.ones_like(x), **mode)
    return module.apply(variables, x, mutable=["batch_stats"], **mode, **call)


@pytest.mark.parametrize("fast", [True, False])
def test_the_variance_is_stable_whatever_use_fast_variance_says(fast):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(64, 64)) + 1e4, jnp.float32)
    wide = np.asarray(x, np.float64)
    expected = (wide - wide.mean(1, keepdims=True)) / np.sqrt(wide.var(1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(apply(jnl.LayerNorm(use_fast_variance=fast), x)[0], expected, atol=1e-5)
    assert np.abs(apply(nn.LayerNorm(), x)[0] - expected).max() > 10


def test_nan_behind_a_mask_stays_there_and_masked_places_are_zero():
    x = jnp.asarray(np.random.default_rng(0).normal(size=SMALL), jnp.float32)
    mask = jnp.ones(SMALL, bool).at[2, 3].set(False)
    grads = []
    for lib in (jnl, nn):
        module = lib.LayerNorm()
        variables = module.init(KEY, x)
        f = lambda x, module=module, v=variables: jnp.sum(module.apply(v, x, mask=mask) ** 3, where=mask)
        grads.append(jax.grad(f)(x.at[2, 3].set(jnp.nan)))
    assert np.isfinite(grads[0]).all()
    assert np.isnan(grads[1][2]).any()
    assert apply(jnl.LayerNorm(), x, mask=mask)[0][2, 3] == 0
    assert apply(nn.LayerNorm(), x, mask=mask)[0][2, 3] != 0


def test_devices_are_weighted_by_their_counts():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 4, 3)) + np.array([0, 5])[:, None, None], jnp.float32)
    mask = jnp.array([[1, 0, 0, 0], [1, 1, 1, 1]])[..., None]
    expected = np.concatenate([x[0, :1], x[1]]).mean(0)
    means = []
    for lib in (jnl, nn):
        module = lib.BatchNorm(use_running_average=False, momentum=0.0, axis_name="d")
        variables = module.init(KEY, x[0])
        f = lambda x, m, module=module, v=variables: module.apply(v, x, mask=m, mutable=["batch_stats"])[1]
        means.append(jax.vmap(f, axis_name="d")(x, mask)["batch_stats"]["mean"][0])
    np.testing.assert_allclose(means[0], expected, rtol=1e-5)
    assert np.abs(means[1] - expected).max() > 1


def test_an_empty_batch_leaves_the_statistics():
    x, mask = jnp.ones(SMALL), jnp.zeros(SMALL, bool)
    stats = [apply(lib.BatchNorm(), x, mask=mask)[1]["batch_stats"] for lib in (jnl, nn)]
    np.testing.assert_array_equal(stats[0]["mean"], 0)
    np.testing.assert_array_equal(stats[0]["var"], 1)
    assert np.isnan(stats[1]["mean"]).all()


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda lib: lib.BatchNorm(), (1, 4)),
        (lambda lib: lib.InstanceNorm(), (3, 4)),
        (lambda lib: lib.GroupNorm(4), (3, 4)),
    ],
)
def test_one_value_raises_in_training_and_not_while_initializing(make, shape):
    x = jnp.ones(shape)
    assert not np.any(apply(make(nn), x)[0])  # Flax: zeros, silently
    with pytest.raises(ValueError, match="needs at least two"):
        apply(make(jnl), x)


def test_statistics_are_float32_whatever_the_parameters_are():
    """Flax subtracts 1004, bfloat16's nearest, for a running mean of 1003.5; and starts from bfloat16 statistics."""
    x = jnp.full(SMALL, 1001.0) + jnp.arange(6.0)[:, None]
    options = {"force_float32_reductions": False, "param_dtype": jnp.bfloat16, "momentum": 0.0}
    right = (np.arange(6) - 2.5) / np.sqrt(35 / 12 + 1e-5)
    results = []
    for lib in (jnl, nn):
        module = lib.BatchNorm(**options)
        variables = module.init(KEY, x, use_running_average=False)
        _, state = module.apply(variables, x, use_running_average=False, mutable=["batch_stats"])
        y = module.apply({**variables, **state}, x, use_running_average=True)[:, 0]
        results.append((variables["batch_stats"]["mean"].dtype, np.asarray(y, np.float32)))
    assert [dtype for dtype, _ in results] == [jnp.float32, jnp.bfloat16]
    np.testing.assert_allclose(results[0][1], right, atol=1e-5)
    assert np.abs(results[1][1] - right).max() > 0.2


def test_group_norm_takes_any_feature_axis_and_broadcast_masks():
    x, _ = data(IMAGES, "float32", None)
    mask = jnp.ones((3, 4, 5, 1), bool).at[:, 1].set(False)
    y, _ = apply(jnl.GroupNorm(2), x, mask=mask)
    moved, _ = apply(jnl.GroupNorm(2, feature_axis=1), jnp.moveaxis(x, -1, 1), mask=jnp.moveaxis(mask, -1, 1))
    np.testing.assert_allclose(jnp.moveaxis(moved, 1, -1), y, atol=1e-6)
    full, _ = apply(jnl.GroupNorm(2), x, mask=jnp.broadcast_to(mask, IMAGES))
    np.testing.assert_allclose(full, y, atol=1e-6)
    with pytest.raises(TypeError):
        apply(nn.GroupNorm(2), x, mask=mask)


# -- beyond Flax -------------------------------------------------------------------------------------------------------


def test_count_appears_only_where_it_is_needed():
    for options in ({}, {"ddof": 1}, {"ghost_size": 2}, {"frozen": True}):
        variables = jnl.BatchNorm(**options).init(KEY, jnp.ones(SMALL), use_running_average=False)
        assert set(variables["batch_stats"]) == {"mean", "var"}
    for options in ({"debias": True}, {"momentum": None}):
        variables = jnl.BatchNorm(**options).init(KEY, jnp.ones(SMALL), use_running_average=False)
        assert set(variables["batch_stats"]) == {"mean", "var", "count"}


@pytest.mark.parametrize("options", [{"debias": True}, {"momentum": None}, {"ddof": 1}, {"ghost_size": 2}], ids=str)
def test_options_reach_the_function(options):
    import jaxnorm as jn

    module = jnl.BatchNorm(use_running_average=False, **options)
    variables = module.init(KEY, jnp.ones(SMALL))
    stats = jn.RunningStats.init(5)
    for step in range(3):
        x = jnp.asarray(np.random.default_rng(step).normal(size=SMALL) + step, jnp.float32)
        y, state = module.apply(variables, x, mutable=["batch_stats"])
        variables = {**variables, **state}
        expected, stats = jn.batch_norm(x, stats, training=True, **({"momentum": 0.99} | options))
        np.testing.assert_allclose(y, expected, atol=1e-6)
    for name, value in variables["batch_stats"].items():
        np.testing.assert_allclose(value, getattr(stats, name), rtol=1e-6)


def test_a_frozen_norm_keeps_its_statistics_and_trains_its_parameters():
    x, _ = data(SMALL, "float32", None)
    module = jnl.BatchNorm(frozen=True)
    variables = module.init(KEY, x, use_running_average=False)

    def loss(params):
        y, state = module.apply({**variables, "params": params}, x, use_running_average=False, mutable=["batch_stats"])
        return jnp.sum(y**2), state

    grads, state = jax.grad(loss, has_aux=True)(variables["params"])
    jax.tree.map(np.testing.assert_array_equal, state["batch_stats"], variables["batch_stats"])
    assert all(np.abs(leaf).min() > 0 for leaf in jax.tree.leaves(grads))


@pytest.mark.parametrize("name", GRID)
def test_scale_offset(name):
    x, _ = data(IMAGES, "float32", None)
    options = {"num_groups": 3} if name == "GroupNorm" else {}
    around_zero = getattr(jnl, name)(**options, scale_offset=1.0, scale_init=nn.initializers.zeros)
    np.testing.assert_allclose(apply(around_zero, x)[0], apply(getattr(jnl, name)(**options), x)[0], atol=1e-6)


def test_names_of_all_variables_are_flax_s():
    x = jnp.ones(IMAGES)
    tree = ResNet(jnl).init(KEY, x, training=True)
    flat = flax.traverse_util.flatten_dict(tree, sep="/")
    assert "params/Block_0/BatchNorm_0/scale" in flat
    assert "batch_stats/Block_1/BatchNorm_1/var" in flat


@pytest.mark.parametrize(
    "module",
    [
        jnl.LayerNorm(reduction_axes=5),
        jnl.LayerNorm(feature_axes=5),
        jnl.RMSNorm(reduction_axes=(1, -3)),
        jnl.BatchNorm(use_running_average=False, axis=3),
        jnl.InstanceNorm(feature_axes=5),
    ],
    ids=lambda m: type(m).__name__,
)
def test_axes_that_are_not_there_are_refused_and_not_wrapped(module):
    with pytest.raises(ValueError, match="axes must lie within the 2 dimensions"):
        module.init(KEY, jnp.ones((4, 6)))


def test_float64_statistics_of_a_checkpoint_are_used_as_they_are():
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        x, mean = jnp.asarray(rng.normal(size=(8, 6))), jnp.asarray(rng.normal(size=6))
        norm = jnl.BatchNorm(use_running_average=True, use_bias=False, use_scale=False, epsilon=0.0)
        y = norm.apply({"batch_stats": {"mean": mean, "var": jnp.full(6, 4.0, jnp.float64)}}, x)
        np.testing.assert_allclose(y, (np.asarray(x) - np.asarray(mean)) / 2, rtol=1e-14, atol=1e-14)


def test_a_frozen_norm_need_not_be_told_its_mode():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 6)), jnp.float32)
    variables = jnl.BatchNorm(frozen=True).init(KEY, x)
    np.testing.assert_allclose(jnl.BatchNorm(frozen=True).apply(variables, x), x / np.sqrt(1 + 1e-5), rtol=1e-6)
