"""The family's modules: thin. In both idioms they are their function, on parameters and statistics of those names."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from numpy.testing import assert_allclose, assert_array_equal

import jaxnorm as jn
import jaxnorm.linen as jnl
import jaxnorm.nnx as jnnx

SHAPE, N = (4, 5, 6), 6
STYLE = jnp.asarray(np.random.default_rng(7).normal(size=SHAPE) * 2 + 1, jnp.float32)
CONDITION = jnp.asarray(np.random.default_rng(8).normal(size=(4, 3)), jnp.float32)
LABELS = jnp.array([2, 0, 1, 2])


@dataclass(frozen=True)
class Row:
    """options: of both constructors. sizes: what NNX needs to know first. parameters: name -> shape, in Linen's tree.

    pure: (parameters, stats, x, mask, training) -> y or (y, new stats). after: what the call takes after x.
    """

    name: str
    pure: Callable
    parameters: dict[str, tuple[int, ...]] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=lambda: {"num_features": N})
    options: dict[str, Any] = field(default_factory=dict)
    after: tuple[Any, ...] = ()
    initial: Any = None
    rngs: bool = True
    label: str = ""

    def __str__(self) -> str:
        return self.name + self.label

    def linen(self, **more) -> nn.Module:
        return getattr(jnl, self.name)(**self.options, **more)

    def nnx(self, **more) -> nnx.Module:
        rngs = {"rngs": nnx.Rngs(0)} if self.rngs else {}
        return getattr(jnnx, self.name)(**self.sizes, **self.options, **rngs, **more)


VECTOR = {"scale": (N,), "bias": (N,)}
STATS = jn.RunningStats(jnp.linspace(1.0, 2.0, N), jnp.linspace(0.5, 1.5, N), jnp.zeros(N))
DOMAINS = jax.tree.map(lambda a: jnp.stack([a, a + 1]), STATS)
A = np.random.default_rng(3).normal(size=(3, 2, 2))
COVARIANCE = jn.WhiteningStats(STATS.mean, jnp.asarray(A @ A.swapaxes(1, 2) + np.eye(2), jnp.float32), jnp.zeros(()))


def rest(p, *names):
    return (p.get(name) for name in ("scale", "bias", *names))


def spread(part, count):
    return jnp.split(part[:, None, :], count, -1)


def renorm(p, stats, x, mask, training, **limits):
    return jn.batch_renorm(x, stats, *rest(p), training=training, where=mask, **limits)


def domain(p, stats, x, mask, training, shared=True):
    scale, bias = (v if shared else v[1] for v in (p["scale"], p["bias"]))
    return jn.domain_batch_norm(x, stats, 1, scale, bias, training=training, where=mask, momentum=0.99)


def centred(p, stats, x, mask, training):
    return jn.mean_only_batch_norm(x, stats, p["bias"], training=training, where=mask, momentum=0.99, ddof=1)


def white(p, stats, x, mask, training):
    return jn.whiten(x, stats, *rest(p), training=training, where=mask, momentum=0.99, group_size=2, method="newton")


def b0(p, stats, x, mask, training):
    return jn.evo_norm_b0(x, stats, p["v"], *rest(p), training=training, where=mask, momentum=0.99)


def conditional(p, stats, x, mask, training):
    table = p["classes/embedding"][LABELS] if "classes/embedding" in p else CONDITION @ p["modulation/kernel"]
    options = {"momentum": 0.99, "scale_offset": 1.0, "where": mask}
    return jn.batch_norm(x, stats, *spread(table, 2), training=training, **options)


def adaptive(p, stats, x, mask, training):
    parts = jax.nn.silu(CONDITION) @ p["modulation/kernel"] + p["modulation/bias"]
    scale, bias, gate = spread(parts, 3)
    return jn.layer_norm(x, scale, bias, scale_offset=1.0, where=mask), gate


def learned_epsilon(p, stats, x, mask, training):
    scale, bias, threshold, extra = rest(p, "threshold", "learned_epsilon")
    return jn.filter_response_norm(x, scale, bias, threshold, epsilon=1e-6 + jnp.abs(extra), where=mask)


ROWS = [
    Row("BatchRenorm", renorm, VECTOR, initial=STATS),
    Row("DomainBatchNorm", domain, VECTOR, {"num_features": N, "num_domains": 2}, after=(1,), initial=DOMAINS),
    Row(
        "DomainBatchNorm",
        lambda *args: domain(*args, shared=False),
        dict.fromkeys(VECTOR, (2, N)),
        {"num_features": N, "num_domains": 2},
        {"shared": False},
        (1,),
        DOMAINS,
        label="[own parameters]",
    ),
    Row("MeanOnlyBatchNorm", centred, {"bias": (N,)}, options={"ddof": 1}, initial=STATS),
    Row("Whiten", white, VECTOR, options={"group_size": 2, "method": "newton"}, initial=COVARIANCE),
    Row("EvoNormB0", b0, VECTOR | {"v": (N,)}, initial=STATS),
    Row(
        "EvoNormS0",
        lambda p, _, x, mask, training: jn.evo_norm_s0(x, p["v"], *rest(p), num_groups=3, where=mask),
        VECTOR | {"v": (N,)},
        options={"num_groups": 3},
    ),
    Row("GlobalResponseNorm", lambda p, _, x, mask, __: jn.global_response_norm(x, *rest(p), where=mask), VECTOR),
    Row(
        "FilterResponseNorm",
        lambda p, _, x, mask, __: jn.filter_response_norm(x, *rest(p, "threshold"), where=mask),
        VECTOR | {"threshold": (N,)},
    ),
    Row(
        "FilterResponseNorm",
        learned_epsilon,
        VECTOR | {"threshold": (N,), "learned_epsilon": ()},
        options={"learn_epsilon": True},
        label="[epsilon]",
    ),
    Row(
        "LocalResponseNorm",
        lambda p, _, x, mask, __: jn.local_response_norm(x, size=3, alpha=0.5, where=mask),
        sizes={},
        options={"size": 3, "alpha": 0.5},
        rngs=False,
    ),
    Row(
        "DynamicTanh",
        lambda p, _, x, mask, __: jn.dynamic_tanh(x, p["alpha"], *rest(p), where=mask),
        VECTOR | {"alpha": ()},
    ),
    Row(
        "DynamicErf",
        lambda p, _, x, mask, __: jn.dynamic_erf(x, p["alpha"], p["shift"], *rest(p), where=mask),
        VECTOR | {"alpha": (), "shift": ()},
    ),
    Row(
        "AdaptiveInstanceNorm",
        lambda p, _, x, mask, __: jn.adaptive_instance_norm(x, STYLE, where=mask),
        sizes={},
        after=(STYLE,),
        rngs=False,
    ),
    Row(
        "AdaptiveLayerNorm",
        adaptive,
        {"modulation/kernel": (3, 18), "modulation/bias": (18,)},
        {"num_features": N, "condition_features": 3},
        {"use_gate": True},
        (CONDITION,),
    ),
    Row(
        "ConditionalBatchNorm",
        conditional,
        {"classes/embedding": (3, 12)},
        options={"num_classes": 3},
        after=(LABELS,),
        initial=STATS,
    ),
    Row(
        "ConditionalBatchNorm",
        conditional,
        {"modulation/kernel": (3, 12)},
        {"num_features": N, "condition_features": 3},
        after=(CONDITION,),
        initial=STATS,
        label="[vector]",
    ),
    Row(
        "AddRMSNorm",
        lambda p, _, x, mask, __: jn.add_rms_norm(x, STYLE, p["scale"], where=mask),
        {"scale": (N,)},
        after=(STYLE,),
    ),
    Row(
        "AddLayerNorm",
        lambda p, _, x, mask, __: jn.add_layer_norm(x, STYLE, *rest(p), where=mask),
        VECTOR,
        after=(STYLE,),
    ),
    Row(
        "LpNormalize",
        lambda p, _, x, mask, __: p["scale"] * jn.lp_normalize(x, p=3, where=mask),
        {"scale": ()},
        options={"p": 3, "use_scale": True},
    ),
]
WITH_STATE = [row for row in ROWS if row.initial is not None]
WRAPPERS = {"BatchNorm", "LayerNorm", "RMSNorm", "GroupNorm", "InstanceNorm"}  # Flax's: test_linen.py, test_nnx.py
WRAPPERS |= {"WeightNorm", "SpectralNorm", "WeightStandardize"}  # test_weight_modules.py


def flat(tree) -> dict[str, Any]:
    return {jax.tree_util.keystr(k, simple=True, separator="/"): v for k, v in jax.tree.leaves_with_path(tree)}


def nested(names: dict[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for name, value in names.items():
        *path, last = name.split("/")
        part = tree
        for key in path:
            part = part.setdefault(key, {})
        part[last] = value
    return tree


def parameters(row, rng):
    return {n: jnp.asarray(rng.uniform(0.5, 1.5, s), jnp.float32) for n, s in sorted(row.parameters.items())}


def data(rng, masked):
    x = jnp.asarray(rng.normal(size=SHAPE) * 1.5 + 2, jnp.float32)
    mask = jnp.asarray(rng.random((4, 5, 1)) > 0.3) if masked else None
    return x if mask is None else jnp.where(mask, x, jnp.nan), mask


def by_linen(row, p, stats, x, mask, training):
    """(y, new statistics) of the Linen module."""
    variables = {"params": nested(p)} if p else {}
    mode = {"use_running_average": not training} if stats is not None else {}
    if stats is not None:
        variables["batch_stats"] = {n: v for n, v in stats._asdict().items() if n != "count"}
    y, new = row.linen(**mode).apply(variables, x, *row.after, mask=mask, mutable="batch_stats")
    return y, new.get("batch_stats", {})


def by_nnx(row, p, stats, x, mask, training):
    """The same of the NNX module."""
    module = row.nnx()
    for name, value in p.items():
        part = module
        for key in name.split("/"):
            part = getattr(part, key)
        part[...] = value
    mode = {"use_running_average": not training} if stats is not None else {}
    if stats is not None:
        for name, value in stats._asdict().items():
            if name != "count":
                getattr(module, name)[...] = value
    y = module(x, *row.after, mask=mask, **mode)
    return y, {} if stats is None else {n: getattr(module, n)[...] for n in stats._fields if n != "count"}


IDIOMS = {"linen": by_linen, "nnx": by_nnx}


@pytest.mark.parametrize("training", [True, pytest.param(False, marks=pytest.mark.full)], ids=["training", "inference"])
@pytest.mark.parametrize("idiom", ["linen", pytest.param("nnx", marks=pytest.mark.full)])
@pytest.mark.parametrize("row", ROWS, ids=str)
def test_a_module_is_its_function(row, idiom, training, rng):
    """Output, statistics and the gradients of x and every parameter; NaN behind the mask."""
    x, mask = data(rng, masked=True)
    p = parameters(row, rng)

    def pure(p, x):
        result = row.pure(p, row.initial, x, mask, training)
        return result if row.initial is not None else (result, {})

    def loss(f):
        weigh = lambda part: jnp.sum(part * jnp.cos(jnp.arange(part.size)).reshape(part.shape))
        return lambda p, x: sum(map(weigh, jax.tree.leaves(f(p, x)[0])))

    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        module = lambda p, x: IDIOMS[idiom](row, p, row.initial, x, mask, training)
        actual, expected = module(p, x), pure(p, x)
        jax.tree.map(lambda a, b: assert_allclose(a, b, rtol=1e-6, atol=1e-6), actual[0], expected[0])
        for name, value in actual[1].items():
            assert_allclose(value, getattr(expected[1], name), rtol=1e-6, atol=1e-6)
        gradients = [jax.grad(loss(f), (0, 1))(p, x) for f in (module, pure)]
    jax.tree.map(lambda a, b: assert_allclose(a, b, rtol=2e-5, atol=2e-5), *gradients)
    for name, g in gradients[0][0].items():
        assert np.abs(g).max() > 1e-3, f"{name} does not train"


FIRST = {"scale": (5,), "bias": (5,)}
OTHER = jn.RunningStats(jnp.linspace(1.0, 2.0, 5), jnp.linspace(0.5, 1.5, 5), jnp.zeros(5))
STYLE_MASK = jnp.arange(5)[None, :, None] < 3
VARIANTS = [  # options that are not the default, features on another axis than the last where there is a choice
    Row(
        "BatchRenorm",
        lambda p, stats, x, mask, training: jn.batch_renorm(
            x, stats, *rest(p), training=training, where=mask, feature_axis=1, ddof=1, scale_offset=1.0, r_max=1.5,
            d_max=0.5, momentum=0.5, epsilon=0.1,
        ),
        FIRST, {"num_features": 5},
        {"axis": 1, "ddof": 1, "scale_offset": 1.0, "r_max": 1.5, "d_max": 0.5, "momentum": 0.5, "epsilon": 0.1},
        initial=OTHER,
    ),
    Row(
        "DomainBatchNorm",
        lambda p, stats, x, mask, training: jn.domain_batch_norm(
            x, stats, 0, *rest(p), training=training, where=mask, feature_axis=1, ddof=1, scale_offset=1.0, epsilon=0.1,
            momentum=0.99,
        ),
        FIRST, {"num_features": 5, "num_domains": 2}, {"axis": 1, "ddof": 1, "scale_offset": 1.0, "epsilon": 0.1}, (0,),
        jax.tree.map(lambda a: jnp.stack([a, a]), OTHER),
    ),
    Row(
        "Whiten",
        lambda p, stats, x, mask, training: jn.whiten(
            x, stats, *rest(p), training=training, where=mask, num_groups=3, method="newton", steps=2, epsilon=0.1,
            scale_offset=1.0, momentum=0.99,
        ),
        VECTOR, options={"num_groups": 3, "method": "newton", "steps": 2, "epsilon": 0.1, "scale_offset": 1.0},
        initial=COVARIANCE,
    ),
    Row(
        "MeanOnlyBatchNorm",
        lambda p, stats, x, mask, training: jn.mean_only_batch_norm(
            x, stats, None, training=training, where=mask, feature_axis=1, momentum=0.99
        ),
        {}, {"num_features": 5}, {"axis": 1, "use_bias": False}, initial=OTHER,
    ),
    Row(
        "EvoNormB0",
        lambda p, stats, x, mask, training: jn.evo_norm_b0(
            x, stats, None, *rest(p), training=training, where=mask, feature_axis=1, ddof=1, scale_offset=1.0,
            epsilon=0.1, momentum=0.99,
        ),
        FIRST, {"num_features": 5},
        {"axis": 1, "ddof": 1, "scale_offset": 1.0, "epsilon": 0.1, "use_activation": False}, initial=OTHER,
    ),
    Row(
        "EvoNormS0",
        lambda p, _, x, mask, __: jn.evo_norm_s0(
            x, None, *rest(p), group_size=5, where=mask, feature_axis=1, scale_offset=1.0, epsilon=0.1
        ),
        FIRST, {"num_features": 5},
        {"num_groups": None, "group_size": 5, "use_activation": False, "feature_axis": 1, "scale_offset": 1.0}
        | {"epsilon": 0.1},
    ),
    Row(
        "GlobalResponseNorm",
        lambda p, _, x, mask, __: jn.global_response_norm(x, p["scale"], where=mask, feature_axis=1, epsilon=0.1),
        {"scale": (5,)}, {"num_features": 5}, {"feature_axis": 1, "epsilon": 0.1, "use_bias": False},
    ),
    Row(
        "FilterResponseNorm",
        lambda p, _, x, mask, __: jn.filter_response_norm(
            x, *rest(p), where=mask, feature_axis=1, scale_offset=1.0, epsilon=0.1 + jnp.abs(p["learned_epsilon"])
        ),
        FIRST | {"learned_epsilon": ()}, {"num_features": 5},
        {"use_threshold": False, "learn_epsilon": True, "feature_axis": 1, "scale_offset": 1.0, "epsilon": 0.1},
    ),
    Row(
        "LocalResponseNorm",
        lambda p, _, x, mask, __: jn.local_response_norm(
            x, size=3, alpha=0.5, beta=0.5, k=2.0, feature_axis=1, where=mask
        ),
        sizes={}, options={"size": 3, "alpha": 0.5, "beta": 0.5, "k": 2.0, "feature_axis": 1}, rngs=False,
    ),
    Row(
        "DynamicTanh",
        lambda p, _, x, mask, __: jn.dynamic_tanh(x, p["alpha"], p["scale"], where=mask, scale_offset=1.0),
        {"alpha": (), "scale": (N,)}, options={"use_bias": False, "scale_offset": 1.0},
    ),
    Row(
        "DynamicErf",
        lambda p, _, x, mask, __: jn.dynamic_erf(x, p["alpha"], p["shift"], p["scale"], where=mask, scale_offset=1.0),
        {"alpha": (), "shift": (), "scale": (N,)}, options={"use_bias": False, "scale_offset": 1.0},
    ),
    Row(
        "AdaptiveLayerNorm",
        lambda p, _, x, mask, __: jn.layer_norm(
            x, *spread(jnp.tanh(CONDITION) @ p["modulation/kernel"] + p["modulation/bias"], 2), scale_offset=1.0,
            where=mask, epsilon=0.1,
        ),
        {"modulation/kernel": (3, 12), "modulation/bias": (12,)}, {"num_features": N, "condition_features": 3},
        {"activation": jnp.tanh, "epsilon": 0.1}, (CONDITION,),
    ),
    Row(
        "ConditionalBatchNorm",
        lambda p, stats, x, mask, training: jn.batch_norm(
            x, stats, p["classes/embedding"][LABELS][:, :, None], training=training, where=mask, feature_axis=1, ddof=1,
            scale_offset=1.0, epsilon=0.1, momentum=0.99,
        ),
        {"classes/embedding": (3, 5)}, {"num_features": 5},
        {"num_classes": 3, "axis": 1, "ddof": 1, "use_bias": False, "epsilon": 0.1}, (LABELS,), OTHER,
    ),
    Row(
        "AddRMSNorm",
        lambda p, _, x, mask, __: jn.add_rms_norm(x, STYLE, p["scale"], where=mask, scale_offset=1.0, epsilon=0.1),
        {"scale": (N,)}, options={"scale_offset": 1.0, "epsilon": 0.1}, after=(STYLE,),
    ),
    Row(
        "AddLayerNorm",
        lambda p, _, x, mask, __: jn.add_layer_norm(x, STYLE, p["scale"], where=mask, scale_offset=1.0, epsilon=0.1),
        {"scale": (N,)}, options={"scale_offset": 1.0, "epsilon": 0.1, "use_bias": False}, after=(STYLE,),
    ),
    Row(
        "LpNormalize",
        lambda p, _, x, mask, __: jn.lp_normalize(x, p=1, axis=(1, 2), epsilon=100.0, where=mask),
        sizes={}, options={"p": 1, "axis": (1, 2), "epsilon": 100.0}, rngs=False,
    ),
]  # fmt: skip


@pytest.mark.full
@pytest.mark.parametrize("idiom", IDIOMS)
@pytest.mark.parametrize("row", VARIANTS, ids=str)
def test_every_option_reaches_the_function(row, idiom, rng):
    test_a_module_is_its_function(row, idiom, True, rng)


@pytest.mark.full
@pytest.mark.parametrize("idiom", IDIOMS)
@pytest.mark.parametrize("row", [row for row in WITH_STATE if row.name != "DomainBatchNorm"], ids=str)
def test_devices_and_debiasing_reach_the_function(row, idiom, rng):
    """Over four devices in pairs, from a state that has no weight: each pair's own statistics, and nothing else."""
    x = jnp.asarray(rng.normal(size=(4, *SHAPE)) + np.arange(4)[:, None, None, None], jnp.float32)
    options = {"axis_name": "d", "axis_index_groups": [[0, 1], [2, 3]], "debias": True, "momentum": 0.5}

    def run(x):
        if idiom == "linen":
            module = row.linen(use_running_average=False, **options)
            variables = module.init(jax.random.key(0), x, *row.after)
            return module.apply(variables, x, *row.after, mutable="batch_stats")[1]["batch_stats"]["mean"]
        module = row.nnx(**options)
        module(x, *row.after)
        return module.mean[...]

    means = jax.vmap(run, axis_name="d")(x)
    each = np.asarray(x).mean((1, 2))
    expected = np.stack([(each[i - i % 2] + each[i - i % 2 + 1]) / 2 for i in range(4)])
    assert_allclose(means, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("idiom", IDIOMS)
def test_the_style_has_a_mask_of_its_own(idiom, rng):
    x, _ = data(rng, masked=False)
    style = jnp.where(STYLE_MASK, STYLE, jnp.nan)
    module = jnl.AdaptiveInstanceNorm(epsilon=0.1) if idiom == "linen" else jnnx.AdaptiveInstanceNorm(epsilon=0.1)
    call = (lambda *a, **k: module.apply({}, *a, **k)) if idiom == "linen" else module
    expected = jn.adaptive_instance_norm(x, STYLE[:, :3], epsilon=0.1)
    assert_allclose(call(x, style, style_mask=STYLE_MASK), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("library", [jnl, jnnx], ids=["linen", "nnx"])
def test_initial_values_can_be_chosen(library):
    """alpha, shift and the initializers of what else is learned."""
    fill = jax.nn.initializers.constant
    for name, options in {
        "DynamicErf": {"alpha_init": 0.25, "shift_init": 0.75, "scale_init": fill(2.0), "bias_init": fill(3.0)},
        "FilterResponseNorm": {"threshold_init": fill(-1.0)},
        "EvoNormB0": {"v_init": fill(0.125)},
    }.items():
        sizes = {"num_features": N} if library is jnnx else {}
        module = getattr(library, name)(**sizes, **options, **({"rngs": nnx.Rngs(0)} if library is jnnx else {}))
        if library is jnl:
            mode = {"use_running_average": True} if name == "EvoNormB0" else {}
            params = module.init(jax.random.key(0), jnp.ones((2, 3, N)), **mode)["params"]
        else:
            params = nnx.to_pure_dict(nnx.state(module, nnx.Param))
        for option, value in options.items():
            wanted = value if isinstance(value, float) else float(value(jax.random.key(0), (), jnp.float32))
            assert_array_equal(params[option.removesuffix("_init")], wanted)


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_variables_have_these_names_and_shapes(row, rng):
    """And initializing measures nothing: a batch of one will do, no device axis is needed, statistics are untouched."""
    mode = {"use_running_average": False, "axis_name": "devices"} if row.initial is not None else {}
    first = [a[:1] if isinstance(a, jax.Array) else a for a in row.after]
    variables = row.linen(**mode).init(jax.random.key(0), jnp.ones((1, 5, N)), *first)
    assert {n: v.shape for n, v in flat(variables.get("params", {})).items()} == row.parameters
    if row.initial is not None:
        start = type(row.initial).init(**({"features": (2, N) if "Domain" in row.name else N} | group_of(row)))
        kept = {n: v for n, v in start._asdict().items() if n != "count"}
        jax.tree.map(assert_array_equal, variables["batch_stats"], kept)
        counted = row.linen(**mode, momentum=None).init(jax.random.key(0), jnp.ones((1, 5, N)), *first)
        assert set(counted["batch_stats"]) == {*kept, "count"}
    module = row.nnx()
    assert {n: v.shape for n, v in flat(nnx.to_pure_dict(nnx.state(module, nnx.Param))).items()} == row.parameters
    if row.initial is not None:
        jax.tree.map(assert_array_equal, nnx.to_pure_dict(nnx.state(module, nnx.BatchStat)), kept)


def group_of(row):
    return {k: v for k, v in row.options.items() if k == "group_size"}


@pytest.mark.full
@pytest.mark.parametrize("row", [row for row in ROWS if row.parameters], ids=str)
def test_both_idioms_start_with_the_same_numbers(row):
    first = [a[:1] if isinstance(a, jax.Array) else a for a in row.after]
    mode = {"use_running_average": False} if row.initial is not None else {}
    linen = flat(row.linen(**mode).init(jax.random.key(0), jnp.ones((1, 5, N)), *first)["params"])
    jax.tree.map(assert_array_equal, linen, flat(nnx.to_pure_dict(nnx.state(row.nnx(), nnx.Param))))


@pytest.mark.parametrize("row", WITH_STATE, ids=str)
def test_modes(row, rng):
    """eval() and train() switch NNX modules; who says nothing in Linen is told to; what is cumulative counts."""
    x, _ = data(rng, masked=False)
    module = row.nnx(momentum=None)
    start = jax.tree.map(jnp.copy, nnx.to_pure_dict(nnx.state(module, nnx.BatchStat)))
    module.eval()
    module(x, *row.after)
    jax.tree.map(assert_array_equal, nnx.to_pure_dict(nnx.state(module, nnx.BatchStat)), start)
    module.train()
    module(x, *row.after)
    assert np.max(module.count[...]) == 1
    view = nnx.view(module, use_running_average=True)
    view(x, *row.after)
    assert np.max(module.count[...]) == 1
    with pytest.raises(ValueError, match="use_running_average"):
        row.nnx(use_running_average=None)(x, *row.after)
    with pytest.raises(ValueError, match="use_running_average"):
        row.linen().init(jax.random.key(0), x, *row.after)


@pytest.mark.full
@pytest.mark.parametrize("idiom", IDIOMS)
@pytest.mark.parametrize("row", ROWS, ids=str)
def test_half_precision_follows_flax(row, idiom, rng):
    """bfloat16 in with float32 parameters comes out float32, with dtype=bfloat16 as bfloat16; statistics stay wide."""
    narrow = row.name in ("LocalResponseNorm", "LpNormalize", "AdaptiveInstanceNorm")  # nothing that could widen y
    expected = jnp.bfloat16 if narrow else jnp.float32
    x = data(rng, masked=False)[0].astype(jnp.bfloat16)
    after = tuple(a.astype(jnp.bfloat16) if a is STYLE else a for a in row.after)
    mode = {"use_running_average": False} if row.initial is not None else {}
    with jax.numpy_dtype_promotion("standard"):
        if idiom == "linen":
            module = row.linen(**mode)
            variables = module.init(jax.random.key(0), x, *after)
            half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), variables.get("batch_stats", {}))
            y, new = module.apply({**variables, "batch_stats": half}, x, *after, mutable="batch_stats")
            kept = jax.tree.leaves(new)  # of a checkpoint in half precision, too
        else:
            module = row.nnx(**mode)
            y = module(x, *after)
            kept = jax.tree.leaves(nnx.state(module, nnx.BatchStat))
    assert jax.tree.leaves(y)[0].dtype == expected
    assert all(leaf.dtype == jnp.float32 for leaf in kept)


def test_renorm_limits_may_be_traced(rng):
    """A schedule drives them from outside; without limits of its own a call has the module's."""
    x, _ = data(rng, masked=False)
    module = jnl.BatchRenorm(use_running_average=False)
    stats = {"mean": STATS.mean, "var": STATS.var}
    variables = module.init(jax.random.key(0), x) | {"batch_stats": stats}
    run = jax.jit(lambda r, d: module.apply(variables, x, r_max=r, d_max=d, mutable="batch_stats")[0])
    plain = jn.batch_norm(x, None, training=True, epsilon=1e-3)[0]
    assert_allclose(run(1.0, 0.0), plain, atol=1e-5)
    assert np.abs(run(3.0, 5.0) - plain).max() > 0.1
    norm = jnnx.BatchRenorm(N, rngs=nnx.Rngs(0))
    norm.mean[...], norm.var[...] = STATS.mean, STATS.var
    assert_allclose(norm(x), run(3.0, 5.0), atol=1e-6)


def test_a_dit_block_starts_as_the_identity(rng):
    """Zero-initialized modulation: the gate closes the branch, whatever the condition."""
    x, _ = data(rng, masked=False)
    (y, gate), _ = jnl.AdaptiveLayerNorm(use_gate=True).init_with_output(jax.random.key(0), x, CONDITION)
    assert_allclose(y, jn.layer_norm(x), atol=1e-6)
    assert_array_equal(x + gate * (y @ jnp.ones((N, N))), x)
    per_token = jnp.broadcast_to(CONDITION[:, None], (4, 5, 3))
    norm = jnnx.AdaptiveLayerNorm(N, 3, rngs=nnx.Rngs(0), kernel_init=nnx.initializers.normal(1.0))
    assert_allclose(norm(x, per_token), norm(x, CONDITION), atol=1e-5)
    for call in (
        lambda: norm(x[0, 0], CONDITION),
        lambda: jnl.AdaptiveLayerNorm().init(jax.random.key(0), x[0, 0], CONDITION),
    ):
        with pytest.raises(ValueError, match="AdaptiveLayerNorm: the condition must not have more axes than x; got"):
            call()


def test_conditional_batch_norm_wants_one_kind_of_condition():
    for given in ({}, {"num_classes": 3, "condition_features": 3}):
        with pytest.raises(ValueError, match="exactly one of `num_classes` and `condition_features`"):
            jnnx.ConditionalBatchNorm(N, rngs=nnx.Rngs(0), **given)
    with pytest.raises(ValueError, match="LpNormalize: a scale needs `num_features` and `rngs`"):
        jnnx.LpNormalize(N, use_scale=True)


@pytest.mark.parametrize("library", [jnl, jnnx], ids=["linen", "nnx"])
def test_every_function_has_a_module_that_is_tested(library):
    modules = {name for name in library.__all__ if name[0].isupper()}
    assert modules == {row.name for row in ROWS} | WRAPPERS
