"""Standardize, normalize, modulate: from numbers and statistics to the output.

A norm whose statistics come from its own input goes through `standardize`, the one door that a fused kernel can stand
behind. A norm that uses somebody else's statistics (inference, another batch, another domain) uses `normalize`.

Dtype policy: everything is computed in at least float32 (in the widest of input, statistics and parameters) and
rounded to the output dtype once, at the end.
"""

import functools
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike, DTypeLike

from jaxnorm import rules
from jaxnorm.arguments import AxisLike, AxisName, Call, IndexGroups, real, wide
from jaxnorm.eager import unless_zero
from jaxnorm.moments import Moments, from_statistics
from jaxnorm.rules import spread


def standardize(
    x: ArrayLike,
    scale: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    *,
    axis: AxisLike | None,
    epsilon: ArrayLike,
    where: ArrayLike | None = None,
    axis_name: AxisName = None,
    axis_index_groups: IndexGroups | None = None,
    center: bool = True,
    scale_offset: ArrayLike = 0.0,
    dtype: DTypeLike | None = None,
    implementation: str | None = None,
) -> tuple[jax.Array, Moments]:
    """Measure x over some axes and normalize it by what was measured, at once.

        m = moments(x, axis)        y = (scale_offset + scale) (x - m.mean) / sqrt(m.var + epsilon) + bias

    Better than `moments` then `normalize`: the mean is used before it is rounded, one derivative rule spans both (it
    keeps x, scale and per-set statistics, nothing of x's size besides), and a kernel can do it in one pass.

    Args:
      x: any shape, floating or complex; integers become float32.
      scale, bias: of the kept axes' shape, or with as many dimensions as x and broadcasting to it.
      axis: what is reduced, as in jnp; None is all.
      epsilon: added to the variance inside the root.
      where: boolean, broadcasts to x; False entries do not count and give 0.
      axis_name, axis_index_groups: share statistics over devices too, as in `moments`.
      center: False leaves the mean in: y = scale x / sqrt(mean(x^2) + epsilon) + bias (RMS).
      scale_offset: added to scale in float32; without a scale there is nothing to add it to.
      dtype: of y; default x's.
      implementation: which path computes it ("xla", "cpu"); None chooses.

    Returns:
      (y, m): y shaped like x; Moments of the kept axes' shape. Derivatives flow through both.

    Raises:
      ValueError: axis, mask, parameter shapes that do not fit x; negative epsilon; unknown implementation.
      TypeError: dtypes that do not fit.

    Example:
      >>> import jax.numpy as jnp, jaxnorm as jn
      >>> y, m = jn.standardize(jnp.array([[1.0, 5.0], [3.0, 5.0]]), axis=0, epsilon=0.25)
      >>> y[:, 1], m.mean
      (Array([0., 0.], dtype=float32), Array([2., 5.], dtype=float32))

    Reference: Ioffe & Szegedy 2015, arXiv:1502.03167, algorithm 1.
    """
    call = Call("standardize", x)
    axes = call.axes(axis)
    kept = call.others(axes)
    call.numbers(epsilon, scale_offset)
    call.implementation(implementation)
    return standardize_area(
        call.x,
        call.short_parameter("scale", scale, kept, "kept axes"),
        call.short_parameter("bias", bias, kept, "kept axes"),
        features=kept,
        area=rules.Area(axes, *call.devices(axis_name, axis_index_groups), center),
        epsilon=epsilon,
        where=call.mask(where),
        scale_offset=scale_offset,
        dtype=call.output_dtype(dtype),
        implementation=implementation,
        moments=True,
    )


def standardize_area(
    x, scale, bias, *, features=(), area, epsilon, where, scale_offset, dtype, implementation=None, moments=False
) -> tuple[jax.Array, Any]:
    """`standardize` for checked arguments: what every norm that measures its own input calls.

    Returns y and the statistics, with the reduced axes kept, or moments. Parameters have as many dimensions as x, or
    those of the axes `features` alone. Compiled as a whole, so that a call outside jit costs one dispatch, and layers
    of one shape are traced once.
    """
    numbers = _numbers(epsilon, scale_offset, x, scale, bias)
    static = {"features": features, "area": area, "dtype": dtype, "implementation": implementation, "moments": moments}
    return _standardize_area(x, scale, bias, where, *numbers, **static)


@partial(jax.jit, static_argnames=("features", "area", "dtype", "implementation", "moments"))
def _standardize_area(x, scale, bias, where, epsilon, offset, *, features, area, dtype, implementation, moments):
    y, stats = rules.standardize(x, where, scale, bias, epsilon, offset, area, dtype, features, implementation)
    return y, from_statistics(stats, area.axes) if moments else stats


def standardize_rows(x, scale, bias, *, stream=None, area, epsilon, where, scale_offset, dtype, implementation=None):
    """Layer and RMS norm for checked arguments: y; with a stream, which is added first, (y, x + stream)."""
    numbers = _numbers(epsilon, scale_offset, x, scale, bias)
    y, *h = rules.standardize_rows(x, stream, where, scale, bias, *numbers, area, dtype, implementation)
    return (y, *h) if h else y


def normalize(
    x: ArrayLike,
    mean: ArrayLike,
    var: ArrayLike,
    scale: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    *,
    axis: AxisLike | None,
    epsilon: ArrayLike,
    scale_offset: ArrayLike = 0.0,
    dtype: DTypeLike | None = None,
) -> jax.Array:
    """Normalize x by anyone's statistics: running ones, another batch's, another domain's.

        y = (scale_offset + scale) (x - mean) / sqrt(var + epsilon) + bias

    Args:
      x: any shape, floating or complex; integers become float32.
      mean, var, scale, bias: of the kept axes' shape, or with as many dimensions as x and broadcasting to it.
      axis: the axes over which the statistics are shared, as in `moments`; None is all.
      epsilon: added to the variance inside the root.
      scale_offset: added to scale in float32.
      dtype: of y; default x's.

    Returns:
      y shaped like x, differentiable in every array; reverse mode keeps x and the small arrays only.

    Raises:
      ValueError: shapes that do not fit x, an axis outside it, negative epsilon.
      TypeError: complex statistics for real x.

    Example:
      >>> import jax.numpy as jnp, jaxnorm as jn
      >>> x = jnp.array([[1.0], [4.0], [7.0], [10.0], [3.0]])
      >>> m = jn.moments(x, 0)
      >>> float(jn.normalize(x, m.mean, m.var, axis=0, epsilon=0.0)[3, 0] ** 2)  # (10 - 5)^2 / 10
      2.5

    Reference: Ioffe & Szegedy 2015, arXiv:1502.03167, algorithm 2.
    """
    call = Call("normalize", x)
    kept = call.others(call.axes(axis))
    call.numbers(epsilon, scale_offset)
    return normalize_area(
        call.x,
        call.parameter("mean", mean, kept, "kept axes"),
        call.parameter("var", var, kept, "kept axes"),
        call.parameter("scale", scale, kept, "kept axes"),
        call.parameter("bias", bias, kept, "kept axes"),
        epsilon=epsilon,
        where=None,
        scale_offset=scale_offset,
        dtype=call.output_dtype(dtype),
    )


@partial(jax.jit, static_argnames=("features", "dtype"))
def normalize_area(x, mean, var, scale, bias, *, features=(), epsilon, where, scale_offset, dtype) -> jax.Array:
    """`normalize` for checked arguments, with a mask: masked entries are not read and give 0."""
    mean, var, scale, bias = (spread(p, x.ndim, features) for p in (mean, var, scale, bias))
    assert mean is not None
    assert var is not None
    width = functools.reduce(np.promote_types, (wide(x.dtype), wide(mean.dtype), wide(var.dtype)))
    mean, var = mean.astype(width), var.astype(real(width))
    numbers = _numbers(epsilon, scale_offset, x, mean, var, scale, bias)
    return rules.apply(x, where, mean, var, scale, bias, *numbers, dtype)


def modulate(
    y: ArrayLike, scale: ArrayLike | None, bias: ArrayLike | None, *, scale_offset: ArrayLike = 0.0
) -> jax.Array:
    """Scale and shift what was normalized, with parameters that may be computed from a condition.

        modulate(y) = (scale_offset + scale) y + bias

    FiLM, conditional batch norm, SPADE; with `scale_offset=1` adaptive layer norm (DiT). To round once instead of
    twice, pass the same arrays as `scale` and `bias` of the norm itself.

    Args:
      y: any shape, floating or complex; integers become float32.
      scale, bias: with as many dimensions as y and broadcasting to it; or of the last axis' shape; or a number; or
        None.
      scale_offset: added to scale in float32.

    Returns:
      An array like y, computed in at least float32.

    Raises:
      ValueError: a shape that does not fit. Two dimensions for four, say, would be ambiguous: write
        scale[:, None, None, :].

    Example:
      >>> import jax.numpy as jnp, jaxnorm as jn
      >>> jn.modulate(jnp.array([[-1.0, 0.0, 1.0]]), jnp.array([0.5, 0.5, 0.5]), None, scale_offset=1.0)
      Array([[-1.5,  0. ,  1.5]], dtype=float32)

    Reference: Perez et al. 2018, arXiv:1709.07871, eq. 2; Peebles & Xie 2023, arXiv:2212.09748, section 3.2.
    """
    call = Call("modulate", y)
    call.numbers(0.0, scale_offset)
    last = tuple(range(call.x.ndim))[-1:]

    scale, bias = (call.number_or_parameter(n, v, last, "last axis") for n, v in (("scale", scale), ("bias", bias)))
    _, offset = _numbers(0.0, scale_offset, call.x, scale, bias)
    return rules.modulate(call.x, scale, bias, offset)


def _numbers(epsilon: ArrayLike, offset: ArrayLike | None, *arrays: jax.Array | None) -> tuple[Any, Any]:
    """Both in the width of the computation; None for an offset of nothing."""
    width = _width(*(a.dtype for a in arrays if a is not None))
    offset = unless_zero(offset)
    return _number(epsilon, width), None if offset is None else _number(offset, width)


@functools.cache
def _width(*dtypes: np.dtype) -> np.dtype:
    return functools.reduce(np.promote_types, (real(wide(d)) for d in dtypes))


def _number(value: ArrayLike, width: np.dtype):
    return _constant(value, width) if isinstance(value, (int, float)) else jnp.asarray(value, width)


@functools.lru_cache(maxsize=256)
def _constant(value: float, width: np.dtype):
    return np.asarray(value, width)[()]
