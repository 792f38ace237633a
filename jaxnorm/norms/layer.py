"""Layer norm and RMS norm: each position normalized over its own features. No state, same in training and inference."""

from typing import Any

import jax
from jax.typing import ArrayLike, DTypeLike

from jaxnorm.arguments import AxisLike, AxisName, Call, check_numbers
from jaxnorm.eager import number, one_program, unless_zero
from jaxnorm.rules import Area
from jaxnorm.standardize import standardize_rows


def layer_norm(
    x: ArrayLike,
    scale: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    *,
    axis: AxisLike | None = -1,
    epsilon: ArrayLike = 1e-6,
    where: ArrayLike | None = None,
    axis_name: AxisName = None,
    scale_offset: ArrayLike = 0.0,
    dtype: DTypeLike | None = None,
    implementation: str | None = None,
) -> jax.Array:
    """Normalize each position over its features to mean 0 and variance 1, then scale and shift.

        y = (scale_offset + scale) (x - mean) / sqrt(var + epsilon) + bias        mean, var over `axis`

    Args:
      x: any shape, floating or complex; integers become float32.
      scale, bias: of the reduced axes' shape (in the order of x), or with as many dimensions as x and broadcasting to
        it, as computed by an adaptive layer norm.
      axis: the features, one axis or several; None is the whole array.
      epsilon: added to the variance inside the root.
      where: boolean, broadcasts to x; False entries do not count, are not read, and give 0.
      axis_name: named axis over whose devices the features are sharded, if they are.
      scale_offset: 1.0 for parameters stored around zero; added in float32.
      dtype: of y; default x's. Computation is in at least float32 with one rounding at the end.
      implementation: which path computes it ("xla", "cpu"); None chooses.

    Returns:
      y, shaped like x.

    Raises:
      ValueError: an axis outside x; a mask or a parameter of another shape; negative epsilon.
      TypeError: a mask that is not boolean; complex parameters for real x; an integer `dtype`.

    Differs from torch (epsilon 1e-5) and Flax (fast variance, which fails on large means; parameters broadcast over
    all reduced axes).

    Example:
      >>> import jax.numpy as jnp, jaxnorm as jn
      >>> jn.layer_norm(jnp.array([[1.0, 5.0, 9.0]])).round(4)
      Array([[-1.2247,  0.    ,  1.2247]], dtype=float32)

    Reference: Ba, Kiros & Hinton 2016, arXiv:1607.06450, eq. 3.
    """
    options = {"axis": axis, "axis_name": axis_name, "dtype": dtype, "implementation": implementation}
    numbers = {"epsilon": epsilon, "where": where, "scale_offset": scale_offset}
    return normalize_features("layer_norm", x, scale, bias, center=True, **numbers, **options)


def rms_norm(
    x: ArrayLike,
    scale: ArrayLike | None = None,
    *,
    axis: AxisLike | None = -1,
    epsilon: ArrayLike = 1e-6,
    where: ArrayLike | None = None,
    axis_name: AxisName = None,
    scale_offset: ArrayLike = 0.0,
    dtype: DTypeLike | None = None,
    implementation: str | None = None,
) -> jax.Array:
    """Divide each position by the root mean square of its features, then scale.

        y = (scale_offset + scale) x / sqrt(mean(x^2) + epsilon)        mean over `axis`

    Args:
      x: any shape, floating or complex; integers become float32.
      scale: of the reduced axes' shape, or with as many dimensions as x and broadcasting to it.
      axis: the features, one axis or several; None is the whole array.
      epsilon: added to the mean square inside the root. Never derived from a dtype (torch's default is).
      where: boolean, broadcasts to x; False entries do not count, are not read, and give 0.
      axis_name: named axis over whose devices the features are sharded, if they are.
      scale_offset: 1.0 for Gemma-style parameters stored around zero; added in float32, where 1 + 1/256 is not 1.
      dtype: of y; default x's. Computation is in at least float32 with one rounding at the end.
      implementation: which path computes it ("xla", "cpu"); None chooses.

    Returns:
      y, shaped like x.

    Raises:
      As `layer_norm`.

    Example:
      >>> import jax.numpy as jnp, jaxnorm as jn
      >>> jn.rms_norm(jnp.array([3.0, 4.0, 0.0, 0.0]), epsilon=0.0)
      Array([1.2, 1.6, 0. , 0. ], dtype=float32)

    Reference: Zhang & Sennrich 2019, arXiv:1910.07467, eq. 4.
    """
    options = {"axis": axis, "axis_name": axis_name, "dtype": dtype, "implementation": implementation}
    numbers = {"epsilon": epsilon, "where": where, "scale_offset": scale_offset}
    return normalize_features("rms_norm", x, scale, None, center=False, **numbers, **options)


def normalize_features(
    function: str,
    x: ArrayLike,
    scale: ArrayLike | None,
    bias: ArrayLike | None,
    *,
    center: bool,
    adds: bool = False,
    residual: ArrayLike | None = None,
    axis: AxisLike | None = -1,
    epsilon: ArrayLike = 1e-6,
    where: ArrayLike | None = None,
    axis_name: AxisName = None,
    scale_offset: ArrayLike = 0.0,
    dtype: DTypeLike | None = None,
    implementation: str | None = None,
) -> Any:
    """Layer norm or, uncentred, RMS norm, of x or (`adds`) of x + residual; called `function` in messages."""
    check_numbers(function, epsilon, scale_offset)
    arrays = x, residual, where, scale, bias, number(epsilon), unless_zero(scale_offset)
    static = {"axis": axis, "axis_name": axis_name, "dtype": dtype, "implementation": implementation}
    return _normalize_features(*arrays, function=function, center=center, adds=adds, **static)


@one_program()
def _normalize_features(
    x, residual, where, scale, bias, epsilon, offset, *, function, center, adds, axis, axis_name, dtype, implementation
) -> Any:
    call = Call(function, x)
    stream = call.alike("residual", residual) if adds else None
    axes = call.axes(axis)
    call.implementation(implementation)
    return standardize_rows(
        call.x,
        call.short_parameter("scale", scale, axes, "reduced axes"),
        call.short_parameter("bias", bias, axes, "reduced axes"),
        stream=stream,
        area=Area(axes, *call.devices(axis_name), center=center),
        epsilon=epsilon,
        where=call.mask(where),
        scale_offset=offset,
        dtype=call.output_dtype(dtype),
        implementation=implementation,
    )
