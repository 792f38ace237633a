"""One step of a running average: what the past weighs, the formula, and the formula as one call of a kernel.

XLA hands a program of more than a thousand operations to another thread, which costs more than a small norm. The
operations of a kernel it does not count: with the step in one, a call of batch norm alone is done where it was made.
The kernel knows fixed weights and float32; debiased, cumulative and wider averages are left to XLA.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Primitive
from jax.interpreters import batching, mlir
from jax.typing import ArrayLike

from jaxnorm.arguments import real
from jaxnorm.kernels import cpu
from jaxnorm.rules import lowering
from jaxnorm.rules.primitive import mapped, program
from jaxnorm.rules.statistics import Statistics


class Rates(NamedTuple):
    past: ArrayLike
    new: ArrayLike
    log_past: ArrayLike


def averaging_rates(momentum: ArrayLike | None) -> Rates | None:
    """Weights of an update; those of a Python number in double precision, for 1 - 0.9 in float32 is not 0.1."""
    if momentum is None:
        return None
    if isinstance(momentum, (int, float)):
        with np.errstate(divide="ignore"):
            return Rates(momentum, 1 - momentum, float(np.log(momentum)))
    momentum = jnp.asarray(momentum, jnp.float32)
    return Rates(momentum, 1 - momentum, jnp.log(momentum))


def averaging(
    count: jax.Array, enough: jax.Array, rates: Rates | None, debias: bool
) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """(old, batch) -> new: the update after `count` updates, which leaves every bit where there was not enough."""
    t = count + 1
    if rates is None:
        past, new = count / t, 1 / t
    elif debias:
        new = jnp.expm1(jnp.float32(rates.log_past)) / jnp.expm1(rates.log_past * t)
        past = 1 - new
    else:
        past, new = rates.past, rates.new

    def average(old: jax.Array, batch: jax.Array) -> jax.Array:
        past_weight, new_weight = (jnp.asarray(w, real(old.dtype)).astype(old.dtype) for w in (past, new))
        return jnp.where(enough, past_weight * old + new_weight * batch.astype(old.dtype), old)

    return average


def unbiased(var: jax.Array, count: jax.Array, ddof: int) -> jax.Array:
    """var n / (n - ddof)."""
    if not ddof:
        return var
    n = count.astype(var.dtype)
    return var * (n / jnp.where(n > ddof, n - ddof, 1))


def step(
    mean: jax.Array,
    var: jax.Array,
    count: jax.Array,
    batch: Statistics,
    rates: Rates | None,
    *,
    ddof: int,
    debias: bool,
    implementation: str | None = None,
) -> list[jax.Array]:
    """mean, var and count after one more batch. Arrays have the features' shape, the batch's count may be one number
    for all. No gradient flows."""
    arrays, ddof = (mean, var, count, *batch), int(ddof)
    if rates is not None and not debias and implementation != "xla":
        flat = *arrays, *(jnp.asarray(w, jnp.float32) for w in rates[:2])
        if _served(*map(jax.typeof, flat)):
            return step_p.bind(*jax.lax.stop_gradient(flat), ddof=ddof)
    return jax.lax.stop_gradient(_formula(arrays, rates, ddof=ddof, debias=debias))


def _served(*types) -> bool:
    """Float32 of one shape, in the same places of a mesh, the same on all devices; n may be a number, weights are."""
    *arrays, n, past, new = types
    shape = arrays[0].shape
    numbers = past.shape == new.shape == () and n.shape in ((), (1,) * len(shape), shape)
    alike = len({(t.shape, t.sharding) for t in arrays}) == 1
    return alike and numbers and all(t.dtype == np.float32 and not t.mat.varying for t in types)


def _formula(arrays: Sequence[jax.Array], rates: Rates | None, *, ddof: int, debias: bool = False) -> list[jax.Array]:
    mean, var, count, batch_mean, residual, batch_var, n = arrays
    enough = n > ddof
    average = averaging(count, enough, rates, debias)
    new_mean, new_var = average(mean, batch_mean + residual), average(var, unbiased(batch_var, n, ddof))
    return [new_mean, new_var, jnp.where(enough, count + 1, count)]


def _flat_formula(*flat: jax.Array, ddof: int) -> list[jax.Array]:
    return _formula(flat[:-2], Rates(*flat[-2:], log_past=0), ddof=ddof)


step_p = Primitive("average")
step_p.multiple_results = True


@step_p.def_impl
def _(*flat, ddof: int):
    with jax.disable_jit(False):
        return program(step_p, ddof=ddof)(*flat)


@step_p.def_abstract_eval
def _(*flat, ddof: int):
    return [a.update(weak_type=False) for a in flat[:3]]


def _on_cpu(ctx, *flat, ddof: int):
    """By the kernel where one device has it all: of several, XLA knows what each has."""
    axes = ctx.module_context.axis_context
    alone = isinstance(axes, mlir.ShardingContext) and axes.num_devices == 1
    here = cpu.average if alone and lowering.missing(ctx) is None else _flat_formula
    return mlir.lower_fun(here, multiple_results=True)(ctx, *flat, ddof=ddof)


mlir.register_lowering(step_p, mlir.lower_fun(_flat_formula, multiple_results=True))
mlir.register_lowering(step_p, _on_cpu, platform="cpu")
batching.primitive_batchers[step_p] = partial(mapped, _flat_formula)
