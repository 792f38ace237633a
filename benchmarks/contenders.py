"""Each library's norm as one function `f(x, parameters, state) -> (y, state)`, in the layout that the library works in.

Everybody gets the same numbers, float32 scale and bias if it takes them beside a half-precision x, and, where it keeps
running statistics, updates them. `state` is whatever the library carries.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import jaxnorm as jn
from benchmarks.shapes import Case

EPSILON = 1e-5


class Contender(NamedTuple):
    """`x`, `parameters` and `state` are what the function is called with, `dy` is a cotangent of y."""

    function: Callable[..., tuple[Any, Any]]
    x: Any
    dy: Any
    parameters: Any
    state: Any


def numbers(case: Case, dtype: str) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
    """The same for everybody: x with a mean, a random cotangent, parameters that are not 1 and 0."""
    rng = np.random.default_rng(0)
    x, dy = (jnp.asarray(rng.normal(mean, std, case.shape), dtype) for mean, std in ((0.5, 2), (0, 1)))
    scale, bias = (jnp.asarray(rng.normal(mean, 0.1, case.features), jnp.float32) for mean in (1, 0))
    return x, dy, {"scale": scale} | ({} if case.norm == "rms_norm" else {"bias": bias})


def jaxnorm(case: Case, dtype: str, implementation: str | None = None) -> Contender:
    x, dy, parameters = numbers(case, dtype)
    options = {"epsilon": EPSILON, "implementation": implementation}
    if case.norm == "batch_norm":
        state = jn.RunningStats.init(case.features)
        return Contender(lambda x, p, s: jn.batch_norm(x, s, **p, training=True, **options), x, dy, parameters, state)
    if case.norm == "group_norm":
        options["num_groups"] = case.groups
    function = getattr(jn, case.norm)
    return Contender(lambda x, p, s: (function(x, **p, **options), s), x, dy, parameters, None)


def jnp_formula(case: Case, dtype: str) -> Contender:
    """What one would write by hand: mean, var, in float32, and the rounding at the end."""
    x, dy, parameters = numbers(case, dtype)
    groups = {"group_norm": case.groups, "instance_norm": case.features}.get(case.norm, 1)
    space = tuple(range(1, len(case.shape) - 1))

    def function(x, p, s):
        wide = x.astype(jnp.float32)
        if case.norm == "rms_norm":
            y = wide / jnp.sqrt((wide * wide).mean(-1, keepdims=True) + EPSILON)
        elif groups > 1:
            grouped = wide.reshape(*x.shape[:-1], groups, -1)
            axes = (*space, len(case.shape))
            mean, var = grouped.mean(axes, keepdims=True), grouped.var(axes, keepdims=True)
            y = ((grouped - mean) / jnp.sqrt(var + EPSILON)).reshape(x.shape)
        else:
            axes = tuple(range(x.ndim - 1)) if case.norm == "batch_norm" else -1
            mean, var = wide.mean(axes, keepdims=True), wide.var(axes, keepdims=True)
            y = (wide - mean) / jnp.sqrt(var + EPSILON)
            if case.norm == "batch_norm":
                s = jax.tree.map(lambda old, new: 0.9 * old + 0.1 * new.reshape(-1), s, (mean, var))
        return (y * p["scale"] + p.get("bias", 0)).astype(x.dtype), s

    state = (jnp.zeros(case.features), jnp.ones(case.features)) if case.norm == "batch_norm" else None
    return Contender(function, x, dy, parameters, state)


def jax_nn(case: Case, dtype: str) -> Contender | None:
    """`jax.nn.standardize`, which has neither parameters nor groups."""
    if case.norm != "layer_norm":
        return None
    x, dy, parameters = numbers(case, dtype)

    def function(x, p, s):
        y = jax.nn.standardize(x, axis=-1, epsilon=EPSILON)
        return (y * p["scale"] + p["bias"]).astype(x.dtype), s

    return Contender(function, x, dy, parameters, None)


def flax_linen(case: Case, dtype: str) -> Contender:
    x, dy, parameters = numbers(case, dtype)
    make = {
        "layer_norm": nn.LayerNorm,
        "rms_norm": nn.RMSNorm,
        "batch_norm": functools.partial(nn.BatchNorm, use_running_average=False, momentum=0.9),
        "group_norm": functools.partial(nn.GroupNorm, num_groups=case.groups),
        "instance_norm": nn.InstanceNorm,
    }[case.norm]
    module = make(epsilon=EPSILON, dtype=x.dtype)
    state = {k: v for k, v in module.init(jax.random.key(0), x).items() if k != "params"}
    return Contender(lambda x, p, s: module.apply({"params": p, **s}, x, mutable=list(s)), x, dy, parameters, state)


def flax_nnx(case: Case, dtype: str) -> Contender:
    x, dy, parameters = numbers(case, dtype)
    options = {"epsilon": EPSILON, "dtype": x.dtype, "rngs": nnx.Rngs(0)}
    make = {
        "layer_norm": nnx.LayerNorm,
        "rms_norm": nnx.RMSNorm,
        "batch_norm": functools.partial(nnx.BatchNorm, use_running_average=False, momentum=0.9),
        "group_norm": functools.partial(nnx.GroupNorm, num_groups=case.groups),
        "instance_norm": nnx.InstanceNorm,
    }[case.norm]
    definition, _, state = nnx.split(make(case.features, **options), nnx.Param, ...)

    def function(x, p, s):
        own = nnx.State({name: nnx.Param(value) for name, value in p.items()})
        module = nnx.merge(definition, own, jax.tree.map(lambda a: a, s))
        y = module(x)
        return y, nnx.state(module, nnx.Not(nnx.Param))

    return Contender(function, x, dy, parameters, state)


def haiku(case: Case, dtype: str) -> Contender:
    x, dy, parameters = numbers(case, dtype)

    def run(x):
        if case.norm == "layer_norm":
            return hk.LayerNorm(-1, True, True, eps=EPSILON)(x)
        if case.norm == "rms_norm":
            return hk.RMSNorm(-1, eps=EPSILON)(x)
        if case.norm == "batch_norm":
            return hk.BatchNorm(True, True, decay_rate=0.9, eps=EPSILON)(x, is_training=True)
        if case.norm == "group_norm":
            return hk.GroupNorm(case.groups, eps=EPSILON)(x)
        return hk.InstanceNorm(True, True, eps=EPSILON)(x)

    transformed = hk.transform_with_state(run)
    own, state = jax.jit(transformed.init)(jax.random.key(0), x)  # its shapes and dtypes of parameters
    names = {"scale": "scale", "offset": "bias"}

    def function(x, p, s):
        fill = lambda path, leaf: p[names[path[-1].key]].reshape(leaf.shape).astype(leaf.dtype)
        p = jax.tree_util.tree_map_with_path(fill, own)
        return transformed.apply(p, s, None, x)

    return Contender(function, x, dy, parameters, state)


def equinox(case: Case, dtype: str) -> Contender | None:
    """Features first, and one sample at a time under `vmap`."""
    x, dy, parameters = numbers(case, dtype)
    renamed = lambda m: (m.weight,) if case.norm == "rms_norm" else (m.weight, m.bias)
    if case.norm in ("layer_norm", "rms_norm"):
        module = (eqx.nn.LayerNorm if case.norm == "layer_norm" else eqx.nn.RMSNorm)(case.features, eps=EPSILON)
        state = None
    elif case.norm == "batch_norm":
        module = eqx.nn.BatchNorm(case.features, "batch", eps=EPSILON, momentum=0.9, mode="batch")
        state = eqx.nn.State(module)
    else:
        module = eqx.nn.GroupNorm(case.groups or case.features, case.features, eps=EPSILON)
        state = None
    if case.norm not in ("layer_norm", "rms_norm"):
        x, dy = (jnp.moveaxis(a, -1, 1) for a in (x, dy))

    def function(x, p, s):
        filled = eqx.tree_at(renamed, module, tuple(p[name] for name in ("scale", "bias") if name in p))
        if case.norm != "batch_norm":
            return jax.vmap(filled)(x).astype(x.dtype), s
        y, s = jax.vmap(filled, axis_name="batch", in_axes=(0, None), out_axes=(0, None))(x, s)
        return y.astype(x.dtype), s

    return Contender(function, x, dy, parameters, state)


JAX: dict[str, Callable[[Case, str], Contender | None]] = {
    "jaxnorm": jaxnorm,
    "jaxnorm on XLA": functools.partial(jaxnorm, implementation="xla"),
    "Flax Linen": flax_linen,
    "Flax NNX": flax_nnx,
    "Haiku": haiku,
    "Equinox": equinox,
    "jax.nn.standardize": jax_nn,
    "jnp formula": jnp_formula,
}


def copied(case: Case, dtype: str) -> jax.Array:
    """For the limit: as many bytes as x has, as float32, whose copy is not a conversion."""
    size = math.prod(case.shape) * jnp.dtype(dtype).itemsize // 4
    return jnp.arange(size, dtype=jnp.float32)
