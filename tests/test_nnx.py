"""`jaxnorm.nnx` beside `flax.nnx`: the same variables, outputs, statistics and gradients; then every difference, with
Flax's number and ours; then what Flax does not have. Run against Flax 0.12.8 and 0.12.12."""

import contextlib
import functools
import inspect
import itertools
import subprocess
import sys
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from numpy.testing import assert_allclose, assert_array_equal
from tolerance import assert_close, ulp

import jaxnorm as jn
from jaxnorm import nnx as ours

FEATURES = {"BatchNorm": (6,), "LayerNorm": (6,), "RMSNorm": (6,), "GroupNorm": (6, 3), "InstanceNorm": (6,)}
NAMES = list(FEATURES)
SHAPE = (4, 3, 5, 6)
BF16, F16 = jnp.bfloat16, jnp.float16
STABLE = {"use_fast_variance": False}
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}  # each program runs once
quick_jit = functools.partial(jax.jit, compiler_options=QUICK)


@contextlib.contextmanager
def default_promotion():
    """JAX's promotion rules, which Flax was written for and mixed dtypes need."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def flax(name, *args, seed=0, **options):
    return getattr(nnx, name)(*(args or FEATURES[name]), rngs=nnx.Rngs(seed), **STABLE | options)


def jaxnorm(name, *args, seed=0, **options):
    return getattr(ours, name)(*(args or FEATURES[name]), rngs=nnx.Rngs(seed), **options)


def data(shape, dtype=jnp.float32, seed=0):
    """Mean and spread differ by feature; the mean is not zero."""
    rng = np.random.default_rng(seed)
    mean, spread = rng.uniform(0.3, 1, shape[-1]), rng.uniform(0.5, 2, shape[-1])
    x = mean + spread * rng.standard_normal(shape)
    return jnp.asarray(np.round(10 * x) if jnp.issubdtype(dtype, jnp.integer) else x, dtype)


def assert_agrees(actual, expected, norms=1):
    """1e-6 and 4 float32 units in the last place for each of the norms in a row; in half precision one unit."""
    assert actual.dtype == expected.dtype
    assert actual.shape == expected.shape
    wide = np.asarray(expected, np.float64)
    limit = norms * (1e-6 + 4 * np.spacing(np.abs(wide).astype(np.float32)))
    if actual.dtype.itemsize == 2:
        limit = limit + ulp(wide, actual.dtype)
    assert np.all(np.abs(np.asarray(actual, np.float64) - wide) <= limit), np.abs(np.asarray(actual) - wide).max()


def variables(module) -> dict:
    return {path: (type(v), v.shape, v.dtype, v.get_metadata()) for path, v in nnx.to_flat_state(nnx.state(module))}


# -- the same as Flax ------------------------------------------------------------------------------------------------


class Case(NamedTuple):
    name: str
    options: Mapping[str, Any] = MappingProxyType({})
    args: tuple = ()
    shape: tuple[int, ...] = SHAPE
    dtype: Any = jnp.float32
    mask: tuple[int, ...] | None = None

    def __str__(self):
        words = [
            self.name,
            *map(str, self.args),
            *(f"{k}={getattr(v, '__name__', v)}" for k, v in self.options.items()),
        ]
        if self.shape != SHAPE:
            words.append(str(self.shape))
        if self.dtype != jnp.float32:
            words.append(f"x:{jnp.dtype(self.dtype)}")
        return " ".join(words) + (f" mask{self.mask}" if self.mask else "")


def only_x_to_half(args, /, *, dtype=None, inexact=True):
    return (args[0].astype(BF16), *args[1:])


EVERY_NORM: list[dict[str, Any]] = [
    {},
    {"options": {"epsilon": 0.1}},
    {"options": {"use_scale": False}},
    {"options": {"dtype": BF16}},
    {"options": {"dtype": BF16}, "dtype": BF16},
    {"options": {"param_dtype": BF16}, "dtype": BF16},
    {"options": {"promote_dtype": only_x_to_half}},
    {"options": {"scale_metadata": {"note": "gain"}}},
    {"dtype": F16},
    {"dtype": jnp.int32},
    {"shape": (4, 5, 6)},
]
CASES = [Case(name, **row) for name, step in (("BatchNorm", 1), ("GroupNorm", 2)) for row in EVERY_NORM[::step]]
CASES += [Case(name, **row) for name in ("LayerNorm", "RMSNorm", "InstanceNorm") for row in EVERY_NORM[::5]]
CASES += [Case(name, {"use_bias": False, "bias_metadata": {"note": "shift"}}) for name in NAMES if name != "RMSNorm"]
CASES += [Case(name, mask=shape) for name in NAMES if name != "GroupNorm" for shape in [SHAPE, (4, 1, 5, 6)]]
CASES += [
    Case("BatchNorm", mask=(3, 5, 1)),
    Case("InstanceNorm", mask=(3, 5, 1)),
    Case("BatchNorm", {"momentum": 0.7}),
    Case("BatchNorm", {"axis": 1}, (3,)),
    Case("BatchNorm", {"axis": -3, "use_running_average": True}, (3,)),
    Case("BatchNorm", {"use_running_average": True}, dtype=BF16),
    Case("BatchNorm", shape=(7, 6)),
    Case("GroupNorm", {"group_size": 2}, (6, None)),
    Case("GroupNorm", args=(6, 6)),
    Case("GroupNorm", args=(6, 1)),
    Case("GroupNorm", args=(64,), shape=(2, 3, 64)),
    Case("GroupNorm", args=(6, 1), shape=(7, 6)),
    Case("GroupNorm", {"reduction_axes": (1, 2, 3)}),
    Case("GroupNorm", {"reduction_axes": (-3, -2, -1)}),
    Case("GroupNorm", mask=SHAPE),
    Case("InstanceNorm", {"feature_axes": 1}, (3,)),
    Case("InstanceNorm", {"feature_axes": (-1, 1)}, (18,)),
]
for norm in ("LayerNorm", "RMSNorm"):
    CASES += [
        Case(norm, {"reduction_axes": (1, 2, -1)}),
        Case(norm, {"reduction_axes": (-1, 3, 1)}),
        Case(norm, {"reduction_axes": (1, 2), "feature_axes": (2, 1)}, (15,)),
        Case(norm, {"reduction_axes": 0, "feature_axes": -2}, (5,)),
        Case(norm, {"reduction_axes": (1, 2)}, mask=(5, 1)),
        Case(norm, shape=(6,)),
    ]

FULL = [Case(name, **row) for name in NAMES for row in EVERY_NORM]
HALF_OPTIONS = [
    {"dtype": d, "param_dtype": p} for d, p in itertools.product((None, jnp.float32, BF16, F16), repeat=2) if p
]
FULL += [
    Case(name, options | switches, shape=(3, 7, 6), dtype=dtype)
    for name, options, dtype in itertools.product(NAMES, HALF_OPTIONS, (jnp.float32, BF16))
    for switches in ([{}] if name == "RMSNorm" else [{}, {"use_bias": False}, {"use_bias": False, "use_scale": False}])
]


def build(make, case):
    """Parameters from random initializers: equal values mean the same draws in the same order."""
    random = {"scale_init": nnx.initializers.normal(1.0), "bias_init": nnx.initializers.normal(1.0)}
    if case.name == "RMSNorm":
        del random["bias_init"]
    return make(case.name, *case.args, **random | dict(case.options))


@functools.partial(quick_jit, static_argnums=0)
def run(graph, state, x, dy, mask):
    """Output, gradients and new statistics of one call."""
    params, rest = nnx.split_state(state, nnx.Param, ...)

    def apply(params, x):
        module = nnx.merge(graph, params, rest, copy=True)
        return module(x, mask=mask), nnx.state(module, nnx.BatchStat)

    if jnp.issubdtype(x.dtype, jnp.integer):
        y, pull, stats = jax.vjp(lambda params: apply(params, x), params, has_aux=True)
    else:
        y, pull, stats = jax.vjp(apply, params, x, has_aux=True)
    return y, pull(dy.astype(y.dtype)), stats


def check(case):
    with default_promotion():
        theirs, mine = build(flax, case), build(jaxnorm, case)
        assert variables(mine) == variables(theirs)
        jax.tree.map(assert_array_equal, nnx.state(mine), nnx.state(theirs))

        x, mask = data(case.shape, case.dtype), None
        dy = data(case.shape, seed=1)
        if case.mask:
            mask = jnp.asarray(np.random.default_rng(2).random(case.mask) < 0.8)
            dy = jnp.where(mask, dy, 0)  # what lies behind a mask differs deliberately
        results = [run(*nnx.split(module), x, dy, mask) for module in (mine, theirs)]
        (y, gradients, stats), (expected, expected_gradients, expected_stats) = results
    if mask is not None:
        y, expected = (jnp.where(mask, a, 0) for a in (y, expected))
    assert_agrees(y, expected)
    jax.tree.map(assert_agrees, stats, expected_stats)
    used = [case.dtype, *case.options.values()]
    half = BF16 if BF16 in used or only_x_to_half in used else F16 if F16 in used else None
    for a, b in zip(jax.tree.leaves(gradients), jax.tree.leaves(expected_gradients), strict=True):
        wide = np.asarray(b, np.float64)
        if half:  # Flax adds several terms that are each rounded to it
            assert_allclose(np.asarray(a, np.float64), wide, rtol=0, atol=8 * ulp(np.abs(wide).max(), half))
        else:
            assert_close(a, wide, a.dtype, x.size, np.abs(wide).max())


@pytest.mark.parametrize("case", CASES, ids=str)
def test_equals_flax(case):
    check(case)


@pytest.mark.full
@pytest.mark.parametrize("case", FULL, ids=str)
def test_equals_flax_everywhere(case):
    check(case)


@pytest.mark.parametrize("name", NAMES)
def test_arguments_are_those_of_flax(name):
    theirs, mine = (inspect.signature(getattr(module, name).__init__).parameters for module in (nnx, ours))
    assert list(mine)[: len(theirs)] == list(theirs)
    assert all(mine[p].default == theirs[p].default and mine[p].kind == theirs[p].kind for p in theirs)
    assert all(p.default in (0, None, -1) for p in list(mine.values())[len(theirs) :])  # 0.0 == False == 0
    calls = [inspect.signature(getattr(module, name).__call__).parameters for module in (nnx, ours)]
    assert [(p.name, p.default, p.kind) for p in calls[0].values()] == [
        (p.name, p.default, p.kind) for p in calls[1].values()
    ]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("switches", [{}, {"use_scale": False}])
def test_random_draws_are_those_of_flax(name, switches):
    counts = []
    for module in (nnx, ours):
        rngs = nnx.Rngs(0)
        getattr(module, name)(*FEATURES[name], rngs=rngs, **switches)
        counts.append(int(rngs.default.count[...]))
    assert counts[0] == counts[1]


@pytest.mark.parametrize("name", NAMES)
def test_attributes_are_those_of_flax(name):
    theirs, mine = (vars(make(name)) for make in (flax, jaxnorm))
    assert set(theirs) <= set(mine)
    for key, value in theirs.items():
        if isinstance(value, (int, float, str)) and not key.startswith("_") and key != "use_fast_variance":
            assert mine[key] == value


@pytest.mark.parametrize("name", NAMES)
def test_checkpoints_load_both_ways(name):
    x, random = data(SHAPE), {"scale_init": nnx.initializers.normal(1.0)}
    for source, target in [(flax, jaxnorm), (jaxnorm, flax)]:
        old, new = source(name, **random), target(name, seed=1, **random)
        with default_promotion():
            old(x)
            nnx.update(new, nnx.state(old))
            jax.tree.map(assert_array_equal, nnx.state(new), nnx.state(old))
            for module in (old, new):
                module.eval()
            assert_agrees(new(x), old(x))
        graph, _ = nnx.split(new)
        jax.tree.map(assert_array_equal, nnx.state(nnx.merge(graph, nnx.state(old))), nnx.state(old))


def both(name, f, *args, **options):
    """f(module, *args) for ours under strict promotion, and for Flax's; with their variables afterwards."""
    mine, theirs = jaxnorm(name, **options), flax(name, **options)
    actual = f(mine, *args)
    with default_promotion():
        expected = f(theirs, *args)
    jax.tree.map(assert_agrees, actual, expected)
    jax.tree.map(assert_agrees, nnx.state(mine), nnx.state(theirs))


@pytest.mark.parametrize("name", NAMES)
def test_jit(name):
    step = nnx.jit(lambda module, x: module(x))
    both(name, lambda module, xs: [step(module, x) for x in xs], [data(SHAPE, seed=s) for s in range(3)])


@pytest.mark.parametrize("name", NAMES)
def test_vmap_over_stacked_modules_and_scan_over_layers(name):
    def everything(norms, x):
        @nnx.split_rngs(splits=3)
        @nnx.vmap
        def stack(rngs):
            options = STABLE | {"scale_init": nnx.initializers.normal(1.0)}
            return getattr(norms, name)(*FEATURES[name], rngs=rngs, **options)

        @nnx.scan(in_axes=(0, nnx.Carry), out_axes=nnx.Carry)
        def forward(layer, x):
            return layer(x) + 1

        layers = stack(nnx.Rngs(0))
        y = nnx.vmap(lambda layer, x: layer(x))(layers, x)
        return y, forward(layers, x[0]), nnx.state(layers)

    everything = quick_jit(everything, static_argnums=0)
    actual = everything(ours, data((3, *SHAPE)))
    with default_promotion():
        expected = everything(nnx, data((3, *SHAPE)))
    assert len(set(np.ravel(actual[2]["scale"][...]).tolist())) == 18
    # Three norms in a row: from float64 ours is 0.7e-6 away, and Flax's 1.1e-6.
    jax.tree.map(functools.partial(assert_agrees, norms=3), actual, expected)


@pytest.mark.parametrize("name", NAMES)
def test_eval_shape(name):
    abstract = [nnx.eval_shape(functools.partial(make, name)) for make in (jaxnorm, flax)]
    assert variables(abstract[0]) == variables(abstract[1])
    out = nnx.eval_shape(lambda module, x: module(x), jaxnorm(name), data(SHAPE, BF16).astype(jnp.float32))
    assert (out.shape, out.dtype) == (SHAPE, jnp.float32)


@pytest.mark.parametrize("name", NAMES)
def test_axis_name(name):
    def spread(module, x):
        graph, state = nnx.split(module)

        def shard(x):
            module = nnx.merge(graph, state, copy=True)
            return module(x), nnx.state(module)

        return quick_jit(jax.vmap(shard, axis_name="shards"))(x)

    both(name, spread, data((2, *SHAPE)), axis_name="shards")


def test_train_eval_and_view():
    def calls(norm, x):
        ys = [norm(x)]
        view = nnx.view(norm, use_running_average=True)
        assert view.mean is norm.mean
        assert not norm.use_running_average
        ys += [view(x), norm(x), norm(x, True)]
        norm.eval()
        ys += [norm(x), norm(x, use_running_average=False)]
        norm.train()
        return [*ys, norm(x)]

    both("BatchNorm", calls, data(SHAPE))


@pytest.mark.parametrize(
    ("name", "args", "options", "x"),
    [
        ("GroupNorm", (6, 3, 2), {}, None),
        ("GroupNorm", (6, None, None), {}, None),
        ("GroupNorm", (6, 4), {}, None),
        ("GroupNorm", (6, None, 4), {}, None),
        ("GroupNorm", (6, 0), {}, None),
        ("GroupNorm", (6, 3.0), {}, None),
        ("GroupNorm", (12, 3), {"use_scale": False, "use_bias": False}, SHAPE),
        ("InstanceNorm", (4,), {"feature_axes": 0}, SHAPE),
        ("BatchNorm", (6,), {"use_running_average": None}, SHAPE),
        ("BatchNorm", (6,), {"dtype": jnp.int32}, SHAPE),
        *((name, (3, 3)[: len(FEATURES[name])], {}, SHAPE) for name in NAMES),
        ("LayerNorm", (6,), {"reduction_axes": 4}, SHAPE),
        ("LayerNorm", (6,), {"feature_axes": 4}, SHAPE),
    ],
)
def test_what_flax_refuses_is_refused_by_name(name, args, options, x):
    def call(make):
        module = make(name, *args, **options)
        if x is not None:
            module(data(x))

    with default_promotion(), pytest.raises((ValueError, TypeError, IndexError)):
        call(flax)
    with pytest.raises(ValueError, match=f"^({name}: |batch_norm: |Dtype must be inexact)"):
        call(jaxnorm)


@pytest.mark.parametrize("name", ["BatchNorm", "LayerNorm"])
def test_an_unbound_axis_name_is_a_name_error(name):
    with pytest.raises(NameError, match="unbound axis name"):
        jaxnorm(name, axis_name="absent")(data(SHAPE))


def test_without_flax_the_error_names_the_extra():
    code = "import sys; sys.modules['flax'] = None; import jaxnorm; import jaxnorm.nnx"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert out.stderr.strip().splitlines()[-1] == "ImportError: jaxnorm.nnx needs flax: pip install 'jaxnorm[flax]'"


# -- where Flax is wrong ---------------------------------------------------------------------------------------------


def standardized(x, axis, epsilon, where=True):
    x = np.asarray(x, np.float64)
    mean = x.mean(axis, keepdims=True, where=where)
    return (x - mean) / np.sqrt(x.var(axis, keepdims=True, where=where) + epsilon)


@pytest.mark.parametrize(
    ("name", "args", "axis", "epsilon"),
    [
        ("BatchNorm", (40,), (0, 1), 1e-5),
        ("LayerNorm", (40,), 2, 1e-6),
        ("GroupNorm", (40, 1), (1, 2), 1e-6),
        ("InstanceNorm", (40,), 1, 1e-6),
    ],
)
@pytest.mark.parametrize("fast", [True, False])
def test_the_variance_is_stable_whatever_the_flag_says(name, args, axis, epsilon, fast):
    x = jnp.asarray(np.random.default_rng(2).normal(1e4, 1, (6, 50, 40)), jnp.float32)
    exact = standardized(x, axis, epsilon)
    with default_promotion():
        assert np.abs(flax(name, *args, use_fast_variance=True)(x) - exact).max() > 100
    assert_allclose(jaxnorm(name, *args, use_fast_variance=fast)(x), exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_nan_behind_a_mask_reaches_flax_gradients_and_not_ours(name):
    x, dy = data(SHAPE), data(SHAPE, seed=1)
    mask = np.ones(SHAPE, bool)
    mask[:, 1] = mask[3] = False
    broken, dy = jnp.where(mask, x, jnp.nan), jnp.where(mask, dy, 0)

    def gradient(make, x, mask):
        return quick_jit(lambda x: jax.vjp(lambda x: make(name)(x, mask=mask), x)[1](dy)[0])(x)

    with default_promotion():
        assert np.isnan(gradient(flax, broken, jnp.asarray(mask))).any()
    for given in (mask, mask.astype(np.float32), mask.astype(np.int32) * 7):
        y = jaxnorm(name)(broken, mask=jnp.asarray(given))
        assert_array_equal(y, jaxnorm(name)(x, mask=jnp.asarray(mask)))
        assert_array_equal(y[~mask], 0)
        assert np.all(np.asarray(y)[mask] != 0)
    assert_array_equal(gradient(jaxnorm, broken, mask), gradient(jaxnorm, x, mask))
    with default_promotion(), pytest.raises((ValueError, TypeError)):
        flax(name)(x, mask=jnp.asarray(mask, jnp.int32))


def test_masked_places_are_zero_in_inference_too():
    x, mask = data(SHAPE), jnp.arange(6) != 2
    norm, theirs = (make("BatchNorm", use_running_average=True) for make in (jaxnorm, flax))
    with default_promotion():
        assert np.all(theirs(x, mask=mask) != 0)
    assert_array_equal(norm(x.at[..., 2].set(jnp.nan), mask=mask)[..., 2], 0)


def test_an_empty_batch_makes_flax_statistics_nan_and_leaves_ours():
    x, empty = data(SHAPE), jnp.zeros(SHAPE, bool)
    mine, theirs = jaxnorm("BatchNorm", debias=True), flax("BatchNorm")
    mine(x)
    before = jax.tree.map(jnp.copy, nnx.state(mine))
    assert_array_equal(mine(x, mask=empty), 0)
    jax.tree.map(assert_array_equal, nnx.state(mine), before)
    with default_promotion():
        theirs(x, mask=empty)
    assert np.isnan(theirs.mean[...]).all()


def test_flax_averages_the_averages_of_ragged_shards_and_ours_equal_one_device():
    x, counts = data((3, 8, 6)), np.array([1, 3, 8])
    mask = jnp.asarray(np.arange(8)[:, None] < counts[:, None, None])

    def statistics(make):
        def shard(x, mask):
            norm = make("BatchNorm", momentum=0.0, axis_name="shards")
            return norm(x, mask=mask), norm.mean[...]

        return quick_jit(jax.vmap(shard, axis_name="shards"))(x, mask)

    exact = np.asarray(x, np.float64).mean((0, 1), where=np.asarray(mask))
    y, mean = statistics(jaxnorm)
    assert_allclose(mean, np.broadcast_to(exact, (3, 6)), rtol=1e-6)
    assert_allclose(y, jnp.where(mask, standardized(x, (0, 1), 1e-5, mask), 0), rtol=1e-5, atol=1e-5)
    with default_promotion():
        assert np.abs(statistics(flax)[1] - exact).max() > 0.1


@pytest.mark.parametrize("name", NAMES)
def test_groups_of_devices_share_statistics_where_flax_cannot(name):
    x, groups = data((4, *SHAPE)), [[0, 2], [1, 3]]

    def call(make, x, **options):
        return quick_jit(jax.vmap(lambda x: make(name, axis_name="shards", **options)(x), axis_name="shards"))(x)

    with default_promotion(), pytest.raises(NotImplementedError):
        call(flax, x, axis_index_groups=groups)
    y = np.asarray(call(jaxnorm, x, axis_index_groups=groups))
    for group in groups:
        assert_allclose(y[group], call(jaxnorm, np.asarray(x)[group]), atol=1e-6)
    assert_array_equal(jaxnorm(name, axis_index_groups=groups)(x[0]), jaxnorm(name)(x[0]))  # nothing to group, as Flax


@pytest.mark.parametrize(("name", "shape"), [("BatchNorm", (1, 6)), ("GroupNorm", (3, 6)), ("InstanceNorm", (3, 6))])
def test_one_value_has_no_variance(name, shape):
    x, args = data(shape), (6, 6)[: len(FEATURES[name])]
    with default_promotion():
        assert_array_equal(flax(name, *args)(x), 0)
    with pytest.raises(ValueError, match="one value per set"):
        jaxnorm(name, *args)(x)
    with pytest.raises(ValueError, match="one value per set"):
        nnx.eval_shape(lambda: jaxnorm(name, *args)(x))
    norm = functools.partial(jaxnorm, name, *args, axis_name="d", axis_index_groups=[[0], [1, 2]])
    with pytest.raises(ValueError, match="one value per set"):
        jax.vmap(lambda x: norm()(x), axis_name="d")(jnp.stack([x] * 3))
    if name == "BatchNorm":
        assert jaxnorm(name, use_running_average=True)(x).shape == shape


@pytest.mark.parametrize("dtype", [BF16, F16])
def test_running_statistics_are_never_rounded(dtype):
    theirs, mine = flax("BatchNorm", dtype=dtype), jaxnorm("BatchNorm", dtype=dtype)
    x = jnp.full((2, 6), 2050, dtype)
    for norm in (theirs, mine):
        norm.mean[...] = jnp.full(6, 2051.0)
        norm.eval()
    with default_promotion():
        assert np.abs(np.asarray(theirs(x), np.float32) + 1 / np.sqrt(1 + 1e-5)).max() > 0.5
    y = mine(x)
    assert y.dtype == dtype
    expected = (np.asarray(x, np.float32) - 2051) / np.sqrt(1 + 1e-5)
    assert_allclose(np.asarray(y, np.float32), expected, rtol=2**-8)
    mine.train()
    mine(data(SHAPE, dtype))
    assert mine.mean.dtype == mine.var.dtype == jnp.float32


@pytest.mark.filterwarnings("ignore")
def test_flax_drops_the_imaginary_part_of_a_mean_and_ours_asks_for_a_complex_state():
    x = jax.lax.complex(data(SHAPE), data(SHAPE, seed=1))
    mine, theirs = jaxnorm("BatchNorm", momentum=0.0), flax("BatchNorm", momentum=0.0)
    with default_promotion():
        theirs(x)
        assert not jnp.iscomplexobj(theirs.mean[...])
        with pytest.raises(TypeError, match="complex x needs a complex state"):
            mine(x)
        mine.mean = nnx.BatchStat(jnp.zeros(6, jnp.complex64))
        y = mine(x)
        assert_allclose(mine.mean[...], x.mean((0, 1, 2)), rtol=1e-5)
        mine.eval()
        assert_allclose(mine(x), y, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("reduction_axes", [(2, 3), (-1,), (1, -1), (0, 1, 2, 3), (0, -1)])
def test_group_norm_reduces_the_axes_it_is_given(reduction_axes):
    x, norm = data(SHAPE), jaxnorm("GroupNorm", reduction_axes=reduction_axes)
    space = tuple(a for a in reduction_axes if a not in (-1, 3))
    exact = standardized(x.reshape(4, 3, 5, 3, 2), (*space, 4), 1e-6).reshape(SHAPE)
    assert_allclose(norm(x), exact, rtol=1e-4, atol=1e-4)
    with default_promotion():
        try:
            wrong = np.abs(flax("GroupNorm", reduction_axes=reduction_axes)(x) - exact).max() > 0.1
        except (ValueError, TypeError):
            wrong = True
    assert wrong
    with pytest.raises(ValueError, match="must include the features"):
        jaxnorm("GroupNorm", reduction_axes=(1, 2))(x)


def test_group_norm_masks_broadcast():
    x, mask = data(SHAPE), jnp.asarray(np.random.default_rng(3).random((4, 3, 5, 1)) < 0.7)
    full = jnp.broadcast_to(mask, SHAPE)
    assert_array_equal(jaxnorm("GroupNorm")(x, mask=mask), jaxnorm("GroupNorm")(x, mask=full))
    with default_promotion(), pytest.raises(TypeError, match="cannot reshape"):
        flax("GroupNorm")(x, mask=mask)


@pytest.mark.parametrize("axis", [1, 2, -3, (2, 3)])
def test_group_norm_takes_any_feature_axis(axis):
    axes = tuple(np.atleast_1d(axis))
    x = data((4, 6, 6, 5)) if isinstance(axis, int) else data((4, 5, 2, 3))
    last = jnp.moveaxis(x, axes, range(-len(axes), 0))
    random = {"scale_init": nnx.initializers.normal(1.0), "bias_init": nnx.initializers.normal(1.0)}
    y = jaxnorm("GroupNorm", feature_axis=axis, **random)(x)
    expected = jaxnorm("GroupNorm", **random)(last.reshape(*last.shape[: -len(axes)], 6)).reshape(last.shape)
    assert_allclose(y, jnp.moveaxis(expected, range(-len(axes), 0), axes), atol=1e-6)


# -- what Flax does not have -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "groups"), [*((name, None) for name in NAMES), ("GroupNorm", [[0, 1]])])
def test_scale_offset(name, groups):
    options = {"axis_name": "d", "axis_index_groups": groups}
    if name != "RMSNorm":
        options["bias_init"] = nnx.initializers.normal(1.0)

    def norm(x, offset, scale):
        return jaxnorm(name, scale_offset=offset, scale_init=nnx.initializers.constant(scale), **options)(x)

    every = lambda x: (norm(x, 1.0, 0.25), norm(x, 0.0, 1.25), norm(x, 0.0, 0.25))
    with_offset, without, forgotten = quick_jit(jax.vmap(every, axis_name="d"))(data((2, *SHAPE)))
    assert_allclose(with_offset, without, atol=1e-6)
    assert np.abs(with_offset - forgotten).max() > 0.5


@pytest.mark.parametrize(
    "options",
    [
        {"ghost_size": 2},
        {"debias": True},
        {"debias": True, "momentum": 0.5, "ddof": 1},
        {"momentum": None},
        {"ddof": 1},
    ],
    ids=str,
)
def test_running_options_are_those_of_the_function(options):
    norm, stats = jaxnorm("BatchNorm", **options), jn.RunningStats.init(6)
    counted = options.get("momentum", 0) is None or "debias" in options
    assert set(nnx.state(norm, nnx.BatchStat)) == {"mean", "var"} | ({"count"} if counted else set())
    step = nnx.jit(lambda norm, x: norm(x))
    for seed in range(3):
        x = data(SHAPE, seed=seed)
        expected, stats = jn.batch_norm(x, stats, training=True, **{"momentum": 0.99} | options)
        assert_allclose(step(norm, x), expected, atol=1e-6)
    for key, value in nnx.to_pure_dict(nnx.state(norm, nnx.BatchStat)).items():
        assert_allclose(value, getattr(stats, key), rtol=1e-6)
    plain = jaxnorm("BatchNorm")
    nnx.jit(lambda norm, x: norm(x))(plain, x)
    assert not np.allclose(plain.var[...], norm.var[...], rtol=1e-6) or "ghost_size" in options


def test_debiased_and_cumulative_statistics_after_one_batch_are_the_batch():
    x = data(SHAPE)
    for options in ({"debias": True}, {"momentum": None}):
        norm = jaxnorm("BatchNorm", **options)
        norm(x)
        assert_allclose(norm.mean[...], x.mean((0, 1, 2)), rtol=1e-5)
        assert_array_equal(norm.count[...], 1)


def test_frozen_normalizes_by_running_statistics_and_trains_the_affine():
    x = data(SHAPE)
    norm, thawed = jaxnorm("BatchNorm", frozen=True), jaxnorm("BatchNorm")
    before = jax.tree.map(jnp.copy, nnx.state(norm))
    norm.train()
    assert_array_equal(norm(x), thawed(x, use_running_average=True))
    jax.tree.map(assert_array_equal, nnx.state(norm), before)
    grads = nnx.grad(lambda norm: jnp.sum(norm(x) ** 2))(norm)
    assert np.all(grads["scale"][...] != 0)
    view = nnx.view(thawed, frozen=True)
    view(x)
    assert_array_equal(thawed.mean[...], 0)
    nnx.view(view, frozen=False)(x)
    assert np.all(thawed.mean[...] != 0)
    norm(x[:1, 0, 0])  # a batch of one is no batch


def test_a_model_cast_to_half_precision_still_runs_and_its_statistics_grow_wide_again():
    norm = jaxnorm("BatchNorm")
    nnx.update(norm, jax.tree.map(lambda a: a.astype(BF16), nnx.state(norm)))
    y = norm(data((4, 6), BF16))
    assert y.dtype == BF16
    assert norm.mean.dtype == norm.var.dtype == jnp.float32
