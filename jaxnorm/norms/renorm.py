"""Batch renorm: batch norm whose training output follows the running statistics, within limits."""

from functools import partial, reduce

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike, DTypeLike

from jaxnorm.arguments import AxisLike, AxisName, Call, IndexGroups, check_averaging, check_number, real, wide
from jaxnorm.moments import measure_area
from jaxnorm.norms.batch import check_state
from jaxnorm.rules import Area
from jaxnorm.rules.averaging import averaging_rates
from jaxnorm.running import RunningStats, updated
from jaxnorm.standardize import normalize_area, standardize_area


def batch_renorm(
    x: ArrayLike,
    stats: RunningStats,
    scale: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    *,
    training: bool,
    r_max: ArrayLike = 3.0,
    d_max: ArrayLike = 5.0,
    momentum: ArrayLike | None = 0.99,
    epsilon: ArrayLike = 1e-3,
    feature_axis: AxisLike = -1,
    where: ArrayLike | None = None,
    axis_name: AxisName = None,
    axis_index_groups: IndexGroups | None = None,
    ddof: int = 0,
    debias: bool = False,
    scale_offset: ArrayLike = 0.0,
    dtype: DTypeLike | None = None,
    implementation: str | None = None,
) -> tuple[jax.Array, RunningStats]:
    """Batch norm, corrected in training towards what inference will compute.

        training     y = (scale_offset + scale) (r (x - mean) / sqrt(var + epsilon) + d) + bias
                     r = clip(sqrt(var + epsilon) / s, 1 / r_max, r_max)        s = sqrt(stats.var + epsilon)
                     d = clip((mean - stats.mean) / s, -d_max, d_max)           no gradient through r and d
        inference    as `batch_norm`

    with mean and var of the batch, and `stats` as they were before this batch. Where the clips do not bind, training
    and inference compute the same. r_max = 1 and d_max = 0 is batch norm; a schedule starts there.

    Args:
      x: any shape, floating or complex; integers become float32.
      stats: RunningStats of the feature axes' shape; always needed.
      scale, bias: per feature, of the feature axes' shape; or with as many dimensions as x and broadcasting to it.
      training: a Python bool; under jit a static argument.
      r_max: at least 1; may be traced, so that a schedule of the step can drive it.
      d_max: not negative; may be traced.
      momentum, epsilon, feature_axis, where, axis_name, axis_index_groups, ddof, debias, scale_offset, dtype,
        implementation: as in `batch_norm`. The paper's momentum is 0.99, its epsilon 1e-3.

    Returns:
      (y, stats), always both, as `batch_norm`.

    Raises:
      ValueError: r_max below 1, a negative d_max; and as `batch_norm`.
      TypeError: as `batch_norm`; stats that are not a RunningStats.

    Differs from Keras, whose lower clip of r is a setting of its own.

    Example:
      >>> import jax.numpy as jnp, jaxnorm as jn
      >>> x = jnp.array([[1.0], [5.0], [9.0]])
      >>> stats = jn.RunningStats(jnp.array([4.0]), jnp.array([16.0]), jnp.array([100.0]))
      >>> y, _ = jn.batch_renorm(x, stats, training=True, epsilon=0.0)
      >>> y[:, 0]  # (x - 4) / 4: what inference computes
      Array([-0.75,  0.25,  1.25], dtype=float32)

    Reference: Ioffe 2017, arXiv:1702.03275, algorithm 1.
    """
    call = Call("batch_renorm", x)
    call.training(training)
    features = call.axes(feature_axis, "feature_axis")
    axes = call.others(features)
    scale = call.parameter("scale", scale, features, "feature axes")
    bias = call.parameter("bias", bias, features, "feature axes")
    where = call.mask(where)
    call.numbers(epsilon, scale_offset)
    call.implementation(implementation)
    check_number("batch_renorm", "r_max", r_max, "must be at least 1", "r lies from 1 / r_max to r_max.", low=1.0)
    check_number("batch_renorm", "d_max", d_max, "must not be negative", "d lies from -d_max to d_max.")
    check_averaging("batch_renorm", momentum, ddof, debias)
    if stats is None:
        todo = "Start from RunningStats.init(features)."
        call.fail("`stats` must be given, in training too", "stats=None", todo)
    check_state(call, stats, call.shape(features), training)
    old_mean, old_var = (lax.stop_gradient(jnp.expand_dims(a, axes)) for a in (stats.mean, stats.var))
    options = {"epsilon": epsilon, "where": where, "scale_offset": scale_offset, "dtype": call.output_dtype(dtype)}
    if not training:
        return normalize_area(call.x, old_mean, old_var, scale, bias, **options), stats
    area = Area(axes, *call.devices(axis_name, axis_index_groups))
    call.several_values(axes, area.axis_name, area.groups)
    options["implementation"] = implementation
    y, m = _renormalize_area(call.x, old_mean, old_var, scale, bias, r_max, d_max, area=area, **options)
    how = {"ddof": ddof, "debias": debias, "implementation": implementation}
    return y, updated(stats, m, averaging_rates(momentum), **how)


@partial(jax.jit, static_argnames=("area", "dtype", "implementation"))
def _renormalize_area(
    x, old_mean, old_var, scale, bias, r_max, d_max, *, area, epsilon, where, scale_offset, dtype, implementation
):
    m = lax.stop_gradient(measure_area(x, where, area=area, implementation=implementation))
    arrays = [old_mean, x, *(p for p in (scale, bias) if p is not None)]
    width = reduce(np.promote_types, (wide(a.dtype) for a in arrays))
    narrow = real(width)  # of what is real also for complex numbers
    mean, var = (jnp.expand_dims(a, area.axes) for a in (m.mean.astype(width), m.var.astype(narrow)))
    epsilon, r_max, d_max, offset = (jnp.asarray(a, narrow) for a in (epsilon, r_max, d_max, scale_offset))
    old_sigma = jnp.sqrt(old_var.astype(narrow) + epsilon)
    r = jnp.clip(jnp.sqrt(var + epsilon) / old_sigma, 1 / r_max, r_max)
    d = _clip((mean - old_mean.astype(width)) / old_sigma.astype(width), d_max)
    # r and d join scale and bias, so that the output is rounded once and one derivative rule serves.
    factor = jnp.ones((), width) if scale is None else offset.astype(width) + scale.astype(width)
    shift = factor * d if bias is None else factor * d + bias.astype(width)
    options = {"area": area, "epsilon": epsilon, "where": where, "scale_offset": 0.0, "dtype": dtype}
    options["implementation"] = implementation
    y, _ = standardize_area(x, factor * r.astype(width), shift, **options)
    return y, m


def _clip(d: jax.Array, d_max: jax.Array) -> jax.Array:
    """No longer than d_max, in the same direction."""
    size = jnp.abs(d)
    return d * jnp.where(size > d_max, d_max / jnp.where(size > 0, size, 1), 1).astype(d.dtype)
