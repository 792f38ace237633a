"""Fused where it can be, composed elsewhere: the one place where a norm's way is chosen."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from jaxnorm.arguments import Axes, is_complex
from jaxnorm.rules import composed, fused, statistics
from jaxnorm.rules.formulas import Inputs, Norm, spread
from jaxnorm.rules.statistics import Area, Statistics, visible


def _hindrance(where, area: Area, arrays) -> str | None:
    """Fused norms are for real numbers that all count, on one device or sharded under jit."""
    if where is not None:
        return "a mask"
    if area.axis_name is not None:
        return f"axis_name={area.axis_name!r}"
    return "complex numbers" if any(a is not None and is_complex(a.dtype) for a in arrays) else None


def _fused(implementation: str | None, where, area: Area, *arrays) -> bool:
    hindrance = _hindrance(where, area, arrays)
    if hindrance and implementation == "cpu":
        rule = "implementation='cpu': the kernels take real numbers that all count, on one device or sharded under jit"
        raise ValueError(f"{rule}; got {hindrance}. Pass implementation=None to choose.")
    return hindrance is None


def measure(x: jax.Array, where: jax.Array | None, area: Area, implementation: str | None = None) -> Statistics:
    """The statistics of each set of numbers."""
    if not _fused(implementation, where, area, x):
        return statistics.measure(x, where, area)
    return _counted(x, area.axes, fused.measure(x, area.axes, area.center, implementation))


def standardize(
    x, where, scale, bias, epsilon, offset, area: Area, dtype: np.dtype, features: Axes, implementation: str | None
) -> tuple[jax.Array, Statistics]:
    """y = (offset + scale) xhat + bias in `dtype`, and the statistics.

    Parameters have as many dimensions as x, or those of the axes `features` alone.
    """
    if _fused(implementation, where, area, x, scale, bias):
        norm = Norm(area.axes, features, area.center, dtype, True, False, implementation)
        y, *measured = fused.standardize(norm, Inputs(x, None, scale, bias, epsilon, offset))
        return y, _counted(x, area.axes, measured)
    scale, bias = (spread(p, x.ndim, features) for p in (scale, bias))
    return composed.standardize(x, where, scale, bias, epsilon, offset, area, dtype)


def standardize_rows(
    x, stream, where, scale, bias, epsilon, offset, area: Area, dtype: np.dtype, implementation: str | None
) -> list[jax.Array]:
    """As `standardize`, with parameters of the axes that are reduced: y, and x + stream if there is one.

    The statistics do not come out: they are not kept for the backward pass either.
    """
    if _fused(implementation, where, area, x, scale, bias):
        norm = Norm(area.axes, area.axes, area.center, dtype, False, stream is not None, implementation)
        return fused.standardize(norm, Inputs(x, stream, scale, bias, epsilon, offset))
    return _composed_rows(x, stream, where, scale, bias, epsilon, offset, area, dtype)


@partial(jax.jit, static_argnames=("area", "dtype"))
def _composed_rows(x, stream, where, scale, bias, epsilon, offset, area: Area, dtype: np.dtype) -> list[jax.Array]:
    h = x if stream is None else visible(where, x) + visible(where, stream)
    scale, bias = (spread(p, x.ndim, area.axes) for p in (scale, bias))
    y, _ = composed.standardize(h, where, scale, bias, epsilon, offset, area, dtype)
    return [y] if stream is None else [y, h]


def _counted(x: jax.Array, axes: Axes, measured: list[jax.Array]) -> Statistics:
    """With the number of values, which is that of every set."""
    mean, residual, var = measured
    return Statistics(mean, residual, var, jnp.full((1,) * x.ndim, math.prod(x.shape[a] for a in axes), var.dtype))
