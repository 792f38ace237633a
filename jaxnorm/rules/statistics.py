"""Which numbers share statistics, what they are, and how they move with the numbers."""

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxnorm.arguments import Axes, AxisName, IndexGroups, real, wide
from jaxnorm.collectives import total


class Area(NamedTuple):
    """Which numbers share statistics: `axes` of x, and further devices; and whether the statistics are centred."""

    axes: Axes
    axis_name: AxisName = None
    groups: IndexGroups | None = None
    center: bool = True


class Statistics(NamedTuple):
    """Per-set statistics, reduced axes kept. The mean is `mean + residual`; `count`, of values, may be one for all."""

    mean: jax.Array
    residual: jax.Array
    var: jax.Array
    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]


def visible(where: jax.Array | None, x: jax.Array) -> jax.Array:
    """x with 0 where the mask is False: before any arithmetic, so that NaN and Inf there touch nothing."""
    return x if where is None else jnp.where(where, x, jnp.zeros((), x.dtype))


def square(x: jax.Array) -> jax.Array:
    """|x|^2, real, with a derivative at zero."""
    return x * x if jnp.isrealobj(x) else x.real * x.real + x.imag * x.imag


def product(a: jax.Array, b: jax.Array) -> jax.Array:
    """The real inner product: a b, or Re(conj(a) b)."""
    return a * b if jnp.isrealobj(a) else a.real * b.real + a.imag * b.imag


def visible_parameter(where: jax.Array | None, p: jax.Array) -> jax.Array:
    """A parameter that has entries of its own for masked places is not read there: 0 times NaN would be a gradient."""
    overlap = where is not None and any(m > 1 and n > 1 for m, n in zip(where.shape, p.shape, strict=True))
    return visible(where, p) if overlap else p


def _sum(x: jax.Array, area: Area) -> jax.Array:
    return total(jnp.sum(x, area.axes, keepdims=True), area.axis_name, area.groups)


def _count(x: jax.Array, where: jax.Array | None, area: Area) -> jax.Array:
    dtype = real(wide(x.dtype))
    if where is None:
        return jnp.full((1,) * x.ndim, math.prod(x.shape[a] for a in area.axes), dtype)
    repeats = math.prod(x.shape[a] for a in area.axes if where.shape[a] == 1)
    return jnp.sum(where, area.axes, dtype=jnp.int32, keepdims=True).astype(dtype) * repeats


def _exact_mean(sum: jax.Array, count: jax.Array) -> jax.Array:
    """sum / count, correctly rounded.

    XLA turns division by a constant, or by one number for many, into multiplication by its rounded reciprocal. Then the
    deviations of a constant set, all equal to a few ulps of it and summed exactly, would not have that very number as
    their mean (41 equal numbers, for one). A divisor that depends on the sum leaves XLA no reciprocal to share.
    """
    return sum / jnp.where(jnp.isnan(sum), 1, jnp.maximum(count, 1)).astype(sum.dtype)


def measured(x: jax.Array, where: jax.Array | None, area: Area) -> Statistics:
    x = visible(where, x).astype(wide(x.dtype))
    # On the data's own devices: where they vary, so does the count, even if the mask does not.
    like = jnp.zeros_like(jnp.sum(x.real, area.axes, keepdims=True))
    count = total(_count(x, where, area) + like, area.axis_name, area.groups)
    if area.center:
        mean = _exact_mean(_sum(x, area), count)
        x = visible(where, x - mean)
        residual = _exact_mean(_sum(x, area), count)
        var = jnp.maximum(_exact_mean(_sum(square(x), area), count) - square(residual), 0)
    else:
        var = _exact_mean(_sum(square(x), area), count)
        mean = residual = jnp.zeros_like(var, x.dtype)
    # An empty set gets the variance of an untouched state: its square root is safe whatever epsilon is.
    var = jnp.where(count > 0, var, jnp.ones((), var.dtype))
    return Statistics(mean, residual, var, count)


def deviation_of(x: jax.Array, where: jax.Array | None, mean: jax.Array, residual: jax.Array) -> jax.Array:
    return (visible(where, x).astype(mean.dtype) - mean) - residual


def statistics_tangent(dx, deviation, stats: Statistics, area: Area) -> tuple[jax.Array, jax.Array]:
    divisor = jnp.maximum(stats.count, 1)
    dmean = _sum(dx, area) / divisor.astype(dx.dtype) if area.center else jnp.zeros_like(stats.mean)
    return dmean, 2 * _sum(product(deviation, dx), area) / divisor


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def measure(x: jax.Array, where: jax.Array | None, area: Area) -> Statistics:
    """The statistics of each set of numbers, of any kind, with masks and over devices."""
    return measured(x, where, area)


@measure.defjvp
def _measure_jvp(area: Area, primals, tangents):
    x, where = primals
    stats = measure(x, where, area)

    @jax.checkpoint
    def tangent(x, where, stats, dx):
        dx = visible(where, dx).astype(stats.mean.dtype)
        deviation = visible(where, deviation_of(x, where, stats.mean, stats.residual))
        return statistics_tangent(dx, deviation, stats, area)

    dmean, dvar = tangent(x, where, stats, tangents[0])
    return stats, Statistics(dmean, jnp.zeros_like(stats.residual), dvar, jnp.zeros_like(stats.count))
