"""Statistics, standardization, and their derivatives: the only file that defines a derivative.

Notation, for one set of numbers x that shares statistics (n of them count):

    mu = mean(x)        var = mean((x - mu)^2)        sigma = sqrt(var + epsilon)        xhat = (x - mu) / sigma

A tangent dx moves them by

    dmu = mean(dx)      dvar = 2 mean((x - mu) dx)
    dxhat = (dx - dmu) / sigma - xhat dvar / (2 sigma^2)  =  (dx - mean(dx) - xhat mean(xhat dx)) / sigma

The last form is a symmetric linear map of dx: its transpose is itself, so reverse mode needs no rule of its own.
Everything in it follows from x and the per-set statistics. The tangent is therefore a linear function under
`jax.checkpoint`: what reverse mode keeps is x, scale, the mask and one mean, residual and variance per set; xhat is
computed again. Forward mode, any order, vmap, remat and collectives come from JAX itself, since the tangent is
ordinary JAX code. The casts from and to the storage dtype are inside, so a half-precision gradient is rounded once.

Precision. A mean of numbers near 1e6 is rounded to 0.06 in float32, which is ruinous when sigma is 1. So a centred
set carries its mean in two parts: m, the rounded mean, and the residual mean(x - m); (x - m) - residual is then exact
to rounding of sigma, not of the mean, and the variance is mean((x - m)^2) - residual^2. See
`_exact_mean` for why a constant set gives exactly zero.

RMS statistics are the uncentred case: mu = 0, var = mean(x^2), dmu = 0.

Arguments are canonical here: x floating; `where` boolean or None; statistics and parameters with as many dimensions
as x. Statistics come out with the reduced axes kept as size 1.

Reference: Ioffe & Szegedy 2015, arXiv:1502.03167, section 3; Chan, Golub & LeVeque 1983 for the corrected two-pass.
"""

import math
from collections.abc import Callable
from functools import partial, reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_derivatives import SymbolicZero

from jaxnorm.arguments import Axes, AxisName, IndexGroups, real, wide
from jaxnorm.collectives import total


class Area(NamedTuple):
    """Which numbers share statistics: `axes` of x, and further devices; and whether the statistics are centred."""

    axes: Axes
    axis_name: AxisName = None
    groups: IndexGroups | None = None
    center: bool = True


class Statistics(NamedTuple):
    """Per-set statistics, reduced axes kept. The mean is `mean + residual`; `count` is the number of values."""

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


def _product(a: jax.Array, b: jax.Array) -> jax.Array:
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


def _measure(x: jax.Array, where: jax.Array | None, area: Area) -> Statistics:
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


def _deviation(x: jax.Array, where: jax.Array | None, mean: jax.Array, residual: jax.Array) -> jax.Array:
    return (visible(where, x).astype(mean.dtype) - mean) - residual


def width_of(*arrays: jax.Array | None) -> np.dtype:
    return reduce(np.promote_types, (wide(a.dtype) for a in arrays if a is not None))


def _factor(scale: jax.Array, offset: jax.Array, where: jax.Array | None, width: np.dtype) -> jax.Array:
    return visible_parameter(where, scale).astype(width) + offset.astype(width)


def affine(y, scale, bias, offset, where=None) -> jax.Array:
    width = width_of(y, scale, bias)
    y = y.astype(width)
    if scale is not None:
        y = y * _factor(scale, offset, where, width)
    if bias is not None:
        y = y + bias.astype(width)
    return y


def _apply(x, where, mean, residual, var, scale, bias, epsilon, offset, dtype: np.dtype) -> jax.Array:
    xhat = _deviation(x, where, mean, residual) * lax.rsqrt(var + epsilon.astype(var.dtype)).astype(mean.dtype)
    return visible(where, affine(xhat, scale, bias, offset, where)).astype(dtype)


def _statistics_tangent(dx, deviation, stats: Statistics, area: Area) -> tuple[jax.Array, jax.Array]:
    divisor = jnp.maximum(stats.count, 1)
    dmean = _sum(dx, area) / divisor.astype(dx.dtype) if area.center else jnp.zeros_like(stats.mean)
    return dmean, 2 * _sum(_product(deviation, dx), area) / divisor


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def measure(x: jax.Array, where: jax.Array | None, area: Area) -> Statistics:
    """The statistics of each set of numbers."""
    return _measure(x, where, area)


@measure.defjvp
def _measure_jvp(area: Area, primals, tangents):
    x, where = primals
    stats = measure(x, where, area)

    @jax.checkpoint
    def tangent(x, where, stats, dx):
        dx = visible(where, dx).astype(stats.mean.dtype)
        deviation = visible(where, _deviation(x, where, stats.mean, stats.residual))
        return _statistics_tangent(dx, deviation, stats, area)

    dmean, dvar = tangent(x, where, stats, tangents[0])
    return stats, Statistics(dmean, jnp.zeros_like(stats.residual), dvar, jnp.zeros_like(stats.count))


@partial(jax.custom_jvp, nondiff_argnums=(6, 7))
def standardize(x, where, scale, bias, epsilon, offset, area: Area, dtype: np.dtype) -> tuple[jax.Array, Statistics]:
    """Measure and apply at once: y = (offset + scale) xhat + bias in `dtype`, and the statistics."""
    stats = _measure(x, where, area)
    return _apply(x, where, stats.mean, stats.residual, stats.var, scale, bias, epsilon, offset, dtype), stats


@partial(standardize.defjvp, symbolic_zeros=True)
def _standardize_jvp(area: Area, dtype: np.dtype, primals, tangents):
    x, where, scale, bias, epsilon, offset = primals
    out = _, stats = standardize(*primals, area, dtype)
    width = width_of(stats.mean, scale, bias)

    @jax.checkpoint
    def tangent(x, where, scale, stats, epsilon, offset, tangents):
        dx, dscale, dbias, depsilon, doffset = tangents
        deviation = visible(where, _deviation(x, where, stats.mean, stats.residual))
        inverse = lax.rsqrt(stats.var + epsilon.astype(stats.var.dtype))
        dmean, dvar = jnp.zeros_like(stats.mean), jnp.zeros_like(stats.var)
        dxhat = jnp.zeros_like(deviation)
        if dx is not None:
            dx = visible(where, dx).astype(deviation.dtype)
            dmean, dvar = _statistics_tangent(dx, deviation, stats, area)
            dxhat = dx - dmean
        if dx is not None or depsilon is not None:
            dvariance = dvar if depsilon is None else dvar + depsilon.astype(dvar.dtype)
            slope = (dvariance * inverse * inverse / 2).astype(deviation.dtype)
            dxhat = (dxhat - deviation * slope) * inverse.astype(deviation.dtype)
        dy = dxhat.astype(width)
        if scale is not None:
            dy = dy * _factor(scale, offset, where, width)
        for dfactor in (dscale, doffset) if scale is not None else ():
            if dfactor is not None:
                dy = dy + (deviation * inverse.astype(deviation.dtype)).astype(width) * dfactor.astype(width)
        if dbias is not None:
            dy = dy + dbias.astype(width)
        return visible(where, dy).astype(dtype), dmean, dvar

    dx, _, *rest = (None if isinstance(t, SymbolicZero) else t for t in tangents)
    dy, dmean, dvar = tangent(x, where, scale, stats, epsilon, offset, (dx, *rest))
    return out, (dy, Statistics(dmean, jnp.zeros_like(stats.residual), dvar, jnp.zeros_like(stats.count)))


def apply(x, where, mean, var, scale, bias, epsilon, offset, dtype: np.dtype) -> jax.Array:
    """y = (offset + scale) (x - mean) / sqrt(var + epsilon) + bias with anyone's statistics, differentiable in all."""

    @jax.checkpoint
    def applied(x, where, mean, var, scale, bias, epsilon, offset):
        return _apply(x, where, mean, jnp.zeros_like(mean), var, scale, bias, epsilon, offset, dtype)

    return applied(x, where, mean, var, scale, bias, epsilon, offset)


def modulate(y: jax.Array, scale: jax.Array | None, bias: jax.Array | None, offset: jax.Array) -> jax.Array:
    """(offset + scale) y + bias in y's dtype, computed wide; reverse mode keeps y and scale as they are stored."""
    return jax.checkpoint(lambda *args: affine(*args).astype(y.dtype))(y, scale, bias, offset)


def recomputed(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, whose reverse mode keeps its arguments and computes everything else again."""
    return jax.checkpoint(function)


@jax.custom_jvp
def matrix_sqrt(a: jax.Array) -> jax.Array:
    """The symmetric root of a symmetric positive definite matrix, or of many (for whitening).

    R = A^(1/2) moves by the solution dR of R dR + dR R = dA, a Lyapunov equation. Nothing in it divides by the
    difference of two eigenvalues, as the derivative of an eigendecomposition does: equal ones are no exception.
    """
    values, vectors = jnp.linalg.eigh(a)
    return (vectors * jnp.sqrt(jnp.maximum(values, 0))[..., None, :]) @ vectors.mT


@matrix_sqrt.defjvp
def _matrix_sqrt_jvp(primals, tangents):
    root = matrix_sqrt(*primals)

    def solve(_, right):  # its own derivatives follow from the equation, not from this solution
        values, vectors = jnp.linalg.eigh(root)
        return vectors @ ((vectors.mT @ right @ vectors) / (values[..., :, None] + values[..., None, :])) @ vectors.mT

    return root, lax.custom_linear_solve(lambda dr: root @ dr + dr @ root, tangents[0], solve, symmetric=True)
