"""Moments: what a set of numbers is reduced to, and how two sets become one.

`Moments` of disjoint parts merge without approximation, in any order and grouping. A mask only changes `count`, a ghost
batch is a moment not yet merged, gradient accumulation is a fold, synchronization is a merge over an axis name.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple, NoReturn

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike

from jaxnorm import rules
from jaxnorm.arguments import Axes, AxisLike, AxisName, Call, IndexGroups, real, wide
from jaxnorm.collectives import total
from jaxnorm.rules import square


class Moments(NamedTuple):
    """Mean, variance and number of the values in each set, as arrays of one shape.

    Args:
      mean: at least float32; complex for complex values.
      var: the mean squared distance from the mean (`ddof=0`), real. With `center=False`: the mean square.
      count: the number of values, float32. Where it is 0, mean is 0 and var 1, and `merge` ignores both.

    Merge two with `merge(a, b)`, many with `functools.reduce(merge, parts)`. Arithmetic on the tuple raises: `a + b`
    would concatenate.
    """

    mean: jax.Array
    var: jax.Array
    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]

    @classmethod
    def empty(cls, shape: int | tuple[int, ...], dtype: DTypeLike = jnp.float32) -> "Moments":
        """The moments of nothing: the identity of `merge`, where a fold or a scan begins.

        >>> Moments.empty(2).count
        Array([0., 0.], dtype=float32)
        """
        dtype = wide(dtype)
        return cls(jnp.zeros(shape, dtype), jnp.ones(shape, real(dtype)), jnp.zeros(shape, jnp.float32))

    def _no_arithmetic(self, other: object) -> NoReturn:
        raise TypeError("Moments: arithmetic on the tuple would concatenate or repeat it; use merge(a, b).")

    __add__ = __radd__ = __mul__ = __rmul__ = _no_arithmetic


def moments(
    x: ArrayLike,
    axis: AxisLike | None,
    *,
    where: ArrayLike | None = None,
    axis_name: AxisName = None,
    axis_index_groups: IndexGroups | None = None,
    center: bool = True,
) -> Moments:
    """Mean, variance and count of x over some axes, in at least float32.

        n = count of valid x        mean = sum(x) / n        var = sum((x - mean)^2) / n

    computed in two passes with the rounding of the mean corrected, so a large mean does not spoil the variance.

    Args:
      x: any shape, floating or complex (the variance is then that of |x - mean|, and real); integers become float32.
      axis: what is reduced, as in jnp; None is all.
      where: boolean, broadcasts to x; only True entries count. What stands behind a False, NaN included, is not read.
      axis_name: further reduce over this named axis (or axes) of `jax.vmap` or `jax.shard_map`, by true counts.
      axis_index_groups: reduce only within these groups of devices; each device in exactly one.
      center: False measures around zero: mean 0 and var = sum(x^2) / n (RMS statistics).

    Returns:
      Moments of the kept axes' shape. Sets without a valid value have count 0, mean 0, var 1.

    Raises:
      ValueError: axis outside x, a mask that does not broadcast to x, groups that miss a device.
      TypeError: a mask that is not boolean, x that is not numeric.

    Example:
      >>> import jax.numpy as jnp, jaxnorm as jn
      >>> jn.moments(jnp.array([1.0, 4.0, 7.0, 10.0, 3.0]), 0)
      Moments(mean=Array(5., dtype=float32), var=Array(10., dtype=float32), count=Array(5., dtype=float32))

    Reference: Chan, Golub & LeVeque 1983, "Algorithms for computing the sample variance", eq. 1.7.
    """
    call = Call("moments", x)
    axes = call.axes(axis)
    area = rules.Area(axes, *call.devices(axis_name, axis_index_groups), center)
    return measure_area(call.x, call.mask(where), area=area)


def measure_area(
    x: jax.Array, where: jax.Array | None, *, area: rules.Area, implementation: str | None = None
) -> Moments:
    """`moments` for checked arguments."""
    return _measure_area(x, where, area, implementation)


@partial(jax.jit, static_argnames=("area", "implementation"))
def _measure_area(x, where, area: rules.Area, implementation: str | None) -> Moments:
    return from_statistics(rules.measure(x, where, area, implementation), area.axes)


def from_statistics(stats: rules.Statistics, axes: Axes) -> Moments:
    """The moments that per-set statistics with kept axes stand for."""
    count = stats.count + jnp.zeros_like(stats.var)  # where the variance is, on devices too
    mean, var, count = (jnp.squeeze(a, axes) for a in (stats.mean + stats.residual, stats.var, count))
    return Moments(mean, var, count.astype(jnp.float32))


def merge(a: Moments, b: Moments) -> Moments:
    """The moments of two disjoint parts together, from those of each.

        n = n_a + n_b       d = mean_b - mean_a
        mean = mean_a + d n_b / n
        var = var_a n_a / n + var_b n_b / n + |d|^2 n_a n_b / n^2

    Commutative and associative up to rounding; a part with count 0 changes no bit of the other. Means are stored
    rounded: where they are r standard deviations from 0, each merge in float32 may err by about r 1e-7 of the variance.

    Args:
      a, b: Moments of equal shape, centred (`center=True`).

    Returns:
      Moments of that shape.

    Raises:
      ValueError: shapes differ.

    Example:
      >>> import functools, jax.numpy as jnp, jaxnorm as jn
      >>> parts = [jn.moments(jnp.array(p), 0) for p in ([1.0, 4.0], [7.0, 10.0, 3.0])]
      >>> functools.reduce(jn.merge, parts).var
      Array(10., dtype=float32)

    Reference: Chan, Golub & LeVeque 1979, "Updating formulae and a pairwise algorithm for computing sample variances",
    eq. 2.1.
    """
    if a.mean.shape != b.mean.shape:
        raise ValueError(
            f"merge: both parts must describe the same sets; got mean.shape={a.mean.shape} and {b.mean.shape}. "
            "Take moments over axes that keep the same shape."
        )
    return _merge(a, b)


@jax.jit
def _merge(a: Moments, b: Moments) -> Moments:
    a, b = _without_garbage(a), _without_garbage(b)
    count = a.count + b.count
    share_a, share_b = (_share(part.count, count, a.var.dtype) for part in (a, b))
    distance = jnp.where((a.count > 0) & (b.count > 0), b.mean - a.mean, 0)
    mean = jnp.where(a.count > 0, a.mean, b.mean) + distance * share_b.astype(a.mean.dtype)
    var = a.var * share_a + b.var * share_b + square(distance) * share_a * share_b
    return Moments(mean, jnp.where(count > 0, var, 1), count)


def _without_garbage(m: Moments) -> Moments:
    """Zeros where nothing was counted: an empty part may hold anything, and 0 times NaN is NaN."""
    return Moments(*(jnp.where(m.count > 0, a, jnp.zeros((), a.dtype)) for a in m))


def _share(part: jax.Array, whole: jax.Array, dtype: DTypeLike) -> jax.Array:
    return part.astype(dtype) / jnp.maximum(whole, 1).astype(dtype)


def merge_over(m: Moments, axis_name: AxisName, axis_index_groups: IndexGroups | None = None) -> Moments:
    """The moments of all devices' values together, from each device's: `merge` over a named axis.

    Weighted by true counts: ragged shards and empty ones give what one device would.

    Args:
      m: this device's Moments, centred.
      axis_name: named axis, or axes, of `jax.vmap` or `jax.shard_map`.
      axis_index_groups: merge only within these groups; each device in exactly one.

    Returns:
      Moments of the same shape, equal on all devices (of a group).

    Raises:
      ValueError: groups that miss a device or name one twice.

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm as jn
      >>> x = jnp.array([[1.0, 4.0], [7.0, 10.0]])
      >>> jax.vmap(lambda row: jn.merge_over(jn.moments(row, 0), "rows"), axis_name="rows")(x).mean
      Array([5.5, 5.5], dtype=float32)

    Reference: as `merge`.
    """
    axis_name, groups = Call("merge_over", m.mean).devices(axis_name, axis_index_groups)
    return _pool(m, lambda value: total(value, axis_name, groups))


def merge_axis(m: Moments, axis: int) -> Moments:
    """`merge` along an axis of the moments' own arrays, as for the ghosts of a batch."""
    pooled = _pool(m, lambda value: jnp.sum(value, axis, keepdims=True))
    return Moments(*(jnp.squeeze(a, axis) for a in pooled))


def _pool(m: Moments, total: Callable[[jax.Array], jax.Array]) -> Moments:
    """All parts at once, in the two rounds that measuring takes: the mean, then squares around it, corrected."""
    m = _without_garbage(m)
    count = total(m.count)
    share = _share(m.count, count, m.var.dtype)
    weight = share.astype(m.mean.dtype)
    mean = total(m.mean * weight)
    distance = jnp.where(m.count > 0, m.mean - mean, 0)
    residual = total(distance * weight)
    var = jnp.maximum(total((m.var + square(distance)) * share) - square(residual), 0)
    return Moments(mean + residual, jnp.where(count > 0, var, 1), count)
