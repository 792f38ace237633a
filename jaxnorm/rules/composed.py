"""Standardization composed of jnp code: any axes, masks, devices, complex numbers; the reference of the fused path."""

from collections.abc import Callable
from functools import partial, reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_derivatives import SymbolicZero

from jaxnorm.arguments import wide
from jaxnorm.rules.statistics import (
    Area,
    Statistics,
    deviation_of,
    measured,
    statistics_tangent,
    visible,
    visible_parameter,
)


def width_of(*arrays: jax.Array | None) -> np.dtype:
    return reduce(np.promote_types, (wide(a.dtype) for a in arrays if a is not None))


def factor_of(scale: jax.Array, offset: jax.Array | None, where: jax.Array | None, width: np.dtype) -> jax.Array:
    factor = visible_parameter(where, scale).astype(width)
    return factor if offset is None else factor + offset.astype(width)


def affine(y, scale, bias, offset, where=None) -> jax.Array:
    width = width_of(y, scale, bias)
    y = y.astype(width)
    if scale is not None:
        y = y * factor_of(scale, offset, where, width)
    if bias is not None:
        y = y + bias.astype(width)
    return y


def applied_to(x, where, mean, residual, var, scale, bias, epsilon, offset, dtype: np.dtype) -> jax.Array:
    xhat = deviation_of(x, where, mean, residual) * lax.rsqrt(var + epsilon.astype(var.dtype)).astype(mean.dtype)
    return visible(where, affine(xhat, scale, bias, offset, where)).astype(dtype)


@partial(jax.custom_jvp, nondiff_argnums=(6, 7))
def standardize(x, where, scale, bias, epsilon, offset, area: Area, dtype: np.dtype) -> tuple[jax.Array, Statistics]:
    """Measure and apply at once: y = (offset + scale) xhat + bias in `dtype`, and the statistics."""
    stats = measured(x, where, area)
    return applied_to(x, where, stats.mean, stats.residual, stats.var, scale, bias, epsilon, offset, dtype), stats


@partial(standardize.defjvp, symbolic_zeros=True)
def _standardize_jvp(area: Area, dtype: np.dtype, primals, tangents):
    x, where, scale, _, epsilon, offset = primals
    out = _, stats = standardize(*primals, area, dtype)
    dx, _, *rest = (None if isinstance(t, SymbolicZero) else t for t in tangents)
    move = jax.checkpoint(partial(tangent, area=area, dtype=dtype))
    dy, dmean, dvar = move(x, where, scale, stats, epsilon, offset, (dx, *rest))
    return out, (dy, Statistics(dmean, jnp.zeros_like(stats.residual), dvar, jnp.zeros_like(stats.count)))


def tangent(x, where, scale, stats: Statistics, epsilon, offset, tangents, area: Area, dtype: np.dtype):
    """How y, the mean and the variance move with (x, scale, bias, epsilon, offset); None does not move."""
    dx, dscale, dbias, depsilon, doffset = tangents
    width = width_of(stats.mean, scale, dbias)
    deviation = visible(where, deviation_of(x, where, stats.mean, stats.residual))
    inverse = lax.rsqrt(stats.var + epsilon.astype(stats.var.dtype))
    dmean, dvar = jnp.zeros_like(stats.mean), jnp.zeros_like(stats.var)
    dxhat = jnp.zeros_like(deviation)
    if dx is not None:
        dx = visible(where, dx).astype(deviation.dtype)
        dmean, dvar = statistics_tangent(dx, deviation, stats, area)
        dxhat = dx - dmean
    if dx is not None or depsilon is not None:
        dvariance = dvar if depsilon is None else dvar + depsilon.astype(dvar.dtype)
        slope = (dvariance * inverse * inverse / 2).astype(deviation.dtype)
        dxhat = (dxhat - deviation * slope) * inverse.astype(deviation.dtype)
    dy = dxhat.astype(width)
    if scale is not None:
        dy = dy * factor_of(scale, offset, where, width)
    for dfactor in (dscale, doffset) if scale is not None else ():
        if dfactor is not None:
            dy = dy + (deviation * inverse.astype(deviation.dtype)).astype(width) * dfactor.astype(width)
    if dbias is not None:
        dy = dy + dbias.astype(width)
    return visible(where, dy).astype(dtype), dmean, dvar


def apply(x, where, mean, var, scale, bias, epsilon, offset, dtype: np.dtype) -> jax.Array:
    """y = (offset + scale) (x - mean) / sqrt(var + epsilon) + bias with anyone's statistics, differentiable in all."""

    @jax.checkpoint
    def applied(x, where, mean, var, scale, bias, epsilon, offset):
        return applied_to(x, where, mean, jnp.zeros_like(mean), var, scale, bias, epsilon, offset, dtype)

    return applied(x, where, mean, var, scale, bias, epsilon, offset)


def modulate(y: jax.Array, scale: jax.Array | None, bias: jax.Array | None, offset) -> jax.Array:
    """(offset + scale) y + bias in y's dtype, computed wide; reverse mode keeps y and scale as they are stored."""
    return jax.checkpoint(lambda *args: affine(*args).astype(y.dtype))(y, scale, bias, offset)


def recomputed(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, whose reverse mode keeps its arguments and computes everything else again."""
    return jax.checkpoint(function)
