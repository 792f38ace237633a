"""Batch norm: each feature normalized over batch and space; running statistics in, running statistics out."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike

from jaxnorm.arguments import (
    AxisLike,
    AxisName,
    Call,
    IndexGroups,
    check_averaging,
    check_numbers,
    dtype_of,
    is_complex,
    is_inexact,
    wide,
)
from jaxnorm.eager import number, one_program, unless_zero
from jaxnorm.norms.ghost import standardize_ghosts
from jaxnorm.rules import Area, spread
from jaxnorm.rules.averaging import Rates, averaging_rates
from jaxnorm.running import RunningStats, updated
from jaxnorm.standardize import normalize_area, standardize_area


def batch_norm(
    x: ArrayLike,
    stats: RunningStats | None,
    scale: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    *,
    training: bool,
    momentum: ArrayLike | None = 0.9,
    epsilon: ArrayLike = 1e-5,
    feature_axis: AxisLike = -1,
    where: ArrayLike | None = None,
    axis_name: AxisName = None,
    axis_index_groups: IndexGroups | None = None,
    ghost_size: int | None = None,
    ddof: int = 0,
    debias: bool = False,
    scale_offset: ArrayLike = 0.0,
    dtype: DTypeLike | None = None,
    implementation: str | None = None,
) -> tuple[jax.Array, RunningStats | None]:
    """Normalize each feature over batch and space: by the batch in training, by running statistics in inference.

        y = (scale_offset + scale) (x - mean) / sqrt(var + epsilon) + bias

        training     mean, var of this batch (ddof 0);   new stats = stats.update(batch, momentum, ddof, debias)
        inference    mean, var of `stats`;               new stats = stats

    Args:
      x: any shape, floating or complex; integers become float32.
      stats: RunningStats of the feature axes' shape (complex for complex x). None in training: use this batch alone
        and keep no state.
      scale, bias: per feature, of the feature axes' shape; or with as many dimensions as x and broadcasting to it.
      training: a Python bool; under jit a static argument.
      momentum: the weight of the past (torch's is 1 minus it); None averages all updates equally.
      epsilon: added to the variance inside the root.
      feature_axis: what is kept, an axis or several; everything else is reduced.
      where: boolean, broadcasts to x; False entries do not count, are not read, and give 0, in inference too.
      axis_name: share the batch's statistics over these named axes, by true counts. Under plain jit with a sharded
        batch it is not needed: statistics are global already.
      axis_index_groups: share only within these groups of devices.
      ghost_size: split the leading non-feature axis into ghost batches of this many rows, each normalized by itself; a
        remainder is a smaller ghost, a remainder of one value joins its neighbour. The state gets the statistics of the
        whole batch. Inference ignores it.
      ddof: 1 stores the unbiased variance (torch); y always uses ddof 0.
      debias: the state never contains its initial value (Haiku), see `RunningStats.update`.
      scale_offset: 1.0 for parameters stored around zero; added in float32.
      dtype: of y; default x's. Computation is in at least float32 with one rounding at the end.
      implementation: which path computes it ("xla", "cpu"); None chooses.

    Returns:
      (y, stats), always both. y is shaped like x; stats has the given state's shape and dtypes, and no gradient flows
      through the update. Features without a valid value in this batch keep every bit of their state.

    Raises:
      ValueError: one value per feature in training; a state, mask or parameter of another shape; inference without
        stats; ghosts together with axis_name.
      TypeError: a traced `training`; a real state for complex x; a mask that is not boolean.

    Differs from Flax (stable variance, count-weighted devices, masks that NaN cannot pass) and torch (momentum is the
    weight of the past, features last, ddof 0 stored by default).

    Example:
      >>> import jax.numpy as jnp, jaxnorm as jn
      >>> x = jnp.array([[1.0, 2.0], [5.0, 6.0], [9.0, 10.0]])
      >>> y, stats = jn.batch_norm(x, jn.RunningStats.init(2), training=True)
      >>> y[:, 0].round(4), stats.mean
      (Array([-1.2247,  0.    ,  1.2247], dtype=float32), Array([0.5, 0.6], dtype=float32))
      >>> y, _ = jn.batch_norm(x, stats, training=False)

    Reference: Ioffe & Szegedy 2015, arXiv:1502.03167, algorithms 1 and 2; ghosts: Hoffer, Hubara & Soudry 2017,
    arXiv:1705.08741, algorithm 1.
    """
    check_numbers("batch_norm", epsilon, scale_offset)
    check_averaging("batch_norm", momentum, ddof, debias)
    check_is_state("batch_norm", stats)
    rates = None if training is False else averaging_rates(momentum)
    arrays = x, stats, where, scale, bias, number(epsilon), unless_zero(scale_offset), rates
    devices = {"axis_name": axis_name, "axis_index_groups": axis_index_groups}
    averaging = {"ghost_size": ghost_size, "ddof": ddof, "debias": debias}
    options = {"training": training, "feature_axis": feature_axis, "dtype": dtype, "implementation": implementation}
    y, new = _batch_norm(*arrays, **devices, **averaging, **options)
    return y, new if training else stats


@one_program(RunningStats, Rates)
def _batch_norm(
    x,
    stats,
    where,
    scale,
    bias,
    epsilon,
    offset,
    rates,
    *,
    axis_name,
    axis_index_groups,
    ghost_size,
    ddof,
    debias,
    training,
    feature_axis,
    dtype,
    implementation,
) -> tuple[jax.Array, RunningStats | None]:
    call = Call("batch_norm", x)
    call.training(training)
    features = call.axes(feature_axis, "feature_axis")
    axes = call.others(features)
    scale = call.short_parameter("scale", scale, features, "feature axes")
    bias = call.short_parameter("bias", bias, features, "feature axes")
    where = call.mask(where)
    call.implementation(implementation)
    ghost_size = None if ghost_size is None else call.positive("ghost_size", ghost_size)
    if ghost_size is not None and axis_name is not None:
        got = f"ghost_size={ghost_size}, axis_name={axis_name!r}"
        todo = "Ghosts split statistics, axis_name joins them: leave one out."
        call.fail("`ghost_size` and `axis_name` exclude each other", got, todo)
    check_state(call, stats, call.shape(features), training)
    options = {"epsilon": epsilon, "scale_offset": offset, "dtype": call.output_dtype(dtype)}
    if not training:
        assert stats is not None  # check_state said so
        given = stats.mean, stats.var, scale, bias
        return normalize_area(call.x, *given, features=features, where=where, **options), None

    axis_name, groups = call.devices(axis_name, axis_index_groups)
    if ghost_size is None:
        call.several_values(axes, axis_name, groups)
        fixed = {"features": features, "area": Area(axes, axis_name, groups), "implementation": implementation}
        y, batch = standardize_area(call.x, scale, bias, where=where, **fixed, **options)
    else:
        parameters = (spread(p, call.x.ndim, features) for p in (scale, bias))
        options["implementation"] = implementation
        y, batch = standardize_ghosts(call, where, *parameters, axes=axes, size=ghost_size, **options)
    how = {"ddof": ddof, "debias": debias, "axes": axes, "implementation": implementation}
    return y, None if stats is None else updated(stats, batch, rates, **how)


def check_is_state(function: str, stats: RunningStats | None) -> None:
    if not (stats is None or isinstance(stats, RunningStats)):
        rule = "`stats` must be a RunningStats"
        raise TypeError(f"{function}: {rule}; got {type(stats).__name__}. Start from RunningStats.init(features).")


def check_state(call: Call, stats: RunningStats | None, features: tuple[int, ...], training: bool) -> None:
    if stats is None:
        if not training:
            call.fail("inference needs running statistics", "stats=None", "Pass the state that training returned.")
        return
    check_is_state(call.function, stats)
    for name, value in stats._asdict().items():
        if jnp.shape(value) != features:
            got = f"stats.{name}.shape={jnp.shape(value)}, x.shape={call.x.shape}, features {features}"
            call.fail("`stats` must have the shape of the feature axes", got, f"Use RunningStats.init({features}).")
    for name, value in stats._asdict().items():
        dtype = dtype_of(value)
        if wide(dtype) != dtype or not is_inexact(dtype):
            todo = "Keep statistics wide; x may be half precision."
            call.fail("`stats` must be floating and at least float32", f"stats.{name} of {dtype}", todo, TypeError)
    dtype = dtype_of(stats.mean)
    if is_complex(call.x.dtype) != is_complex(dtype):
        got = f"stats.mean of {dtype}, x of {call.x.dtype}"
        todo = "Use RunningStats.init(features, dtype=...)."
        call.fail("complex x needs a complex state, and real x a real one", got, todo, TypeError)
