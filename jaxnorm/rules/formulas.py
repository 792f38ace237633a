"""The three maps of a fused norm in jnp: forward, its linear tangent, and the transpose of that, which is backward.

Here every number counts, on one device, and is real. Arrays have x's dimensions; parameters too, or they have the
dimensions of the features alone; epsilon and offset are scalars. None is absent: zero as a tangent or a cotangent, one
as a scale.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxnorm.arguments import Axes
from jaxnorm.collectives import total
from jaxnorm.rules.composed import applied_to, factor_of, tangent, width_of
from jaxnorm.rules.statistics import Area, Statistics, deviation_of, measured, statistics_tangent

Maybe = Any  # an array, or None
Places = tuple[tuple[str, ...], ...]  # for each axis of x, the axes of the mesh over which it is sharded


class Norm(NamedTuple):
    """What is known of a norm before it runs.

    axes: what shares statistics. features: the axes of parameters that have fewer dimensions than x. dtype: of y.
    statistics: whether they come out, and are kept for the derivatives; if not, x alone is kept and measured again.
    stream: whether a residual stream is added first, and the sum comes out.
    """

    axes: Axes
    features: Axes
    center: bool
    dtype: np.dtype
    statistics: bool
    stream: bool
    implementation: str | None = None

    @property
    def area(self) -> Area:
        return Area(self.axes, center=self.center)

    def batched(self) -> "Norm":
        """With one more axis in front."""
        return self._replace(axes=tuple(a + 1 for a in self.axes), features=tuple(a + 1 for a in self.features))


class Measured(NamedTuple):
    x: jax.Array


class Inputs(NamedTuple):
    x: jax.Array
    stream: Maybe
    scale: Maybe
    bias: Maybe
    epsilon: jax.Array
    offset: Maybe


class Kept(NamedTuple):
    """What derivatives need. With a stream, x is the sum."""

    x: jax.Array
    scale: Maybe
    epsilon: jax.Array
    offset: Maybe
    mean: Maybe
    residual: Maybe
    var: Maybe


class Tangents(NamedTuple):
    x: Maybe
    scale: Maybe
    bias: Maybe
    epsilon: Maybe
    offset: Maybe


class Want(NamedTuple):
    """The types of the cotangents to compute; None of those that nobody wants."""

    x: Any
    scale: Any
    bias: Any
    epsilon: Any
    offset: Any


class Cotangents(NamedTuple):
    y: Maybe
    h: Maybe
    mean: Maybe
    var: Maybe


def spread(p: jax.Array | None, ndim: int, features: Axes) -> jax.Array | None:
    """A parameter with as many dimensions as x."""
    if p is None or p.ndim == ndim:
        return p
    return jnp.expand_dims(p, tuple(a for a in range(ndim) if a not in features))


def names_of(places: Places | None, axes) -> tuple[str, ...]:
    return () if places is None else tuple(name for a in axes for name in places[a])


def _statistics(norm: Norm, kept: Kept, places: Places | None = None) -> Statistics:
    if kept.mean is None:
        return measured(kept.x, None, norm.area._replace(axis_name=names_of(places, norm.axes) or None))
    return _counted(norm, kept.x, (kept.mean, kept.residual, kept.var), places)


def _counted(norm: Norm, x: jax.Array, measured, places: Places | None = None) -> Statistics:
    mean, residual, var = measured
    count = jnp.full((1,) * x.ndim, math.prod(x.shape[a] for a in norm.axes), var.dtype)
    return Statistics(mean, residual, var, total(count, names_of(places, norm.axes) or None))


def forward(norm: Norm, inputs: Inputs, places: Places | None = None) -> list[jax.Array]:
    """y; x + stream if there is one; mean, residual and var if they are to come out."""
    x, stream, scale, bias, epsilon, offset = inputs
    h = x if stream is None else x + stream
    mean, residual, var, _ = measured(h, None, norm.area._replace(axis_name=names_of(places, norm.axes) or None))
    scale, bias = (spread(p, x.ndim, norm.features) for p in (scale, bias))
    y = applied_to(h, None, mean, residual, var, scale, bias, epsilon, offset, norm.dtype)
    return [y, *([] if stream is None else [h]), *((mean, residual, var) if norm.statistics else ())]


def measure(norm: Norm, inputs: Measured, places: Places | None = None) -> list[jax.Array]:
    """mean, residual and var of each set."""
    return list(measured(inputs.x, None, norm.area._replace(axis_name=names_of(places, norm.axes) or None))[:3])


def statistics_move(norm: Norm, x, mean, residual, var, dx) -> tuple[jax.Array, jax.Array]:
    """How the mean and the variance move with x."""
    stats = _counted(norm, x, (mean, residual, var))
    return statistics_tangent(dx.astype(mean.dtype), deviation_of(x, None, mean, residual), stats, norm.area)


def move(norm: Norm, kept: Kept, tangents: Tangents) -> list[jax.Array]:
    """How y moves; and, if x moves, what else comes out: the sum, the mean and the variance."""
    x, scale, epsilon, offset, *_ = kept
    stats = _statistics(norm, kept)
    dx, dscale, dbias, *numbers = tangents
    scale, dscale, dbias = (spread(p, x.ndim, norm.features) for p in (scale, dscale, dbias))
    args = x, None, scale, stats, epsilon, offset, (dx, dscale, dbias, *numbers)
    dy, dmean, dvar = tangent(*args, norm.area, norm.dtype)
    if dx is None:
        return [dy]
    return [dy, *([dx] if norm.stream else []), *((dmean, dvar) if norm.statistics else ())]


def pull(norm: Norm, kept: Kept, cotangents: Cotangents, want: Want, places: Places | None = None) -> list[jax.Array]:
    """The cotangents that are wanted.

    With g = factor dy:   dx = (g - mean(g) - xhat mean(xhat g)) / sigma   dscale = sum(xhat dy)   dbias = sum(dy).
    Where factor is the same for a whole set, the sums over sets that dx needs are also those of dscale and dbias.
    """
    x, scale, epsilon, offset, *_ = kept
    dy, dh, dmean, dvar = cotangents
    axes, stats = norm.axes, _statistics(norm, kept, places)
    width = width_of(stats.mean, scale)
    deviation = deviation_of(x, None, stats.mean, stats.residual)
    inverse = lax.rsqrt(stats.var + epsilon.astype(stats.var.dtype))
    n = jnp.maximum(stats.count, 1)
    dy = jnp.zeros(x.shape, width) if dy is None else dy.astype(width)
    xhat = (deviation * inverse).astype(width)
    scale = spread(scale, x.ndim, norm.features)
    factor = jnp.ones((1,) * x.ndim, width) if scale is None else factor_of(scale, offset, None, width)
    product = dy * xhat

    def over(v, axes, keepdims=True):
        return total(jnp.sum(v, axes, keepdims=keepdims), names_of(places, axes) or None)

    def over_sets(v):
        return over(v, axes)

    def over_all(sums):
        return over(sums, tuple(a for a in range(x.ndim) if a not in axes), keepdims=False)

    sum_dy, sum_product = over_sets(dy), over_sets(product)
    if all(factor.shape[a] == 1 for a in axes):
        sum_g, sum_gx = factor * sum_dy, factor * sum_product
    else:
        sum_g, sum_gx = over_sets(factor * dy), over_sets(factor * product)

    def to_parameter(v, sums, like):
        """v summed over all that an entry of the parameter served."""
        short = len(like.shape) < x.ndim
        ones = [a for a in range(x.ndim) if (a not in norm.features if short else like.shape[a] == 1)]
        if set(axes) <= set(ones):
            v = over(sums, [a for a in ones if a not in axes])
            v = jnp.squeeze(v, tuple(ones)) if short else v
        else:
            v = over(v, ones, keepdims=not short)
        return v.astype(like.dtype)

    def to_x(like):
        g = factor * dy - xhat * (sum_gx / n.astype(width))
        if norm.center:
            g = g - sum_g / n.astype(width)
        dx = (g * inverse.astype(width)).astype(deviation.dtype)
        if dmean is not None and norm.center:
            dx = dx + dmean / n
        if dvar is not None:
            dx = dx + deviation * (2 * dvar / n)
        if dh is not None:
            dx = dx + dh.astype(deviation.dtype)
        return dx.astype(like.dtype)

    ways = (
        to_x,
        lambda like: to_parameter(product, sum_product, like),
        lambda like: to_parameter(dy, sum_dy, like),
        lambda like: -over_all(sum_gx * (inverse * inverse / 2).astype(width)).reshape(()).astype(like.dtype),
        lambda like: over_all(sum_product).reshape(()).astype(like.dtype),
    )
    return [way(like) for way, like in zip(ways, want, strict=True) if like is not None]
