"""EvoNorms: normalization and activation found together by search."""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike, DTypeLike

from jaxnorm.arguments import AxisLike, AxisName, Call, IndexGroups, check_averaging
from jaxnorm.moments import Moments, from_statistics
from jaxnorm.norms.batch import check_state
from jaxnorm.norms.group import Groups, space_axes
from jaxnorm.rules import Area, affine, measure, recomputed, visible, visible_parameter, width_of
from jaxnorm.running import RunningStats


def evo_norm_s0(
    x: ArrayLike,
    v: ArrayLike | None,
    scale: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    *,
    num_groups: int | None = None,
    group_size: int | None = None,
    feature_axis: int = -1,
    axis: AxisLike | None = None,
    epsilon: ArrayLike = 1e-5,
    where: ArrayLike | None = None,
    scale_offset: ArrayLike = 0.0,
    dtype: DTypeLike | None = None,
) -> jax.Array:
    """A gate in the numerator, a group's deviation below: norm and activation in one, for each sample by itself.

        y = (scale_offset + scale) x sigmoid(v x) / sqrt(var + epsilon) + bias    var over `axis` and the group

    Args:
      x: any real shape; integers become float32.
      v: per feature (1 at first); None leaves the activation out, and then y = scale x / sqrt(var + epsilon) + bias.
      scale, bias: per feature; or, as v, with as many dimensions as x and broadcasting to it.
      num_groups, group_size: exactly one of them. The paper's groups: 32.
      feature_axis: the features.
      axis: the space; None is every axis but axis 0 and the features.
      epsilon: added to the variance inside the root.
      where: boolean, broadcasts to x; False entries do not count, are not read, and give 0.
      scale_offset: 1.0 for parameters stored around zero.
      dtype: of y; default x's. Computed in at least float32.

    Returns:
      y, shaped like x.

    Raises:
      ValueError, TypeError: as `group_norm`; complex x.

    Example:
      >>> import jax.numpy as jnp, jaxnorm as jn
      >>> x = jnp.array([[1.0, 5.0, 9.0]])
      >>> (jn.evo_norm_s0(x, None, num_groups=1, epsilon=0.0) ** 2).round(1)  # x^2 / (32 / 3)
      Array([[0.1, 2.3, 7.6]], dtype=float32)

    Reference: Liu et al. 2020, arXiv:2004.02967, table 2.
    """
    call = Call("evo_norm_s0", x)
    call.real_numbers()
    features = call.one_axis(feature_axis, "feature_axis")
    groups = call.num_groups(num_groups, group_size, call.x.shape[features[0]], feature_axis)
    space = space_axes(call, axis, features)
    call.numbers(epsilon, scale_offset)
    if groups == call.x.shape[features[0]]:
        call.several_values(space, None, None)
    grouped = Groups(call.x.shape, features, groups)
    parts = [grouped.split(call.parameter(n, p, features, "feature axes")) for n, p in _names(v, scale, bias)]
    area, where = Area(grouped.axes(space)), grouped.split(call.mask(where))
    y = _evo_s0(grouped.split(call.x), where, *parts, epsilon, scale_offset, area=area, dtype=call.output_dtype(dtype))
    return grouped.join(y)


@partial(jax.jit, static_argnames=("area", "dtype"))
def _evo_s0(x, where, v, scale, bias, epsilon, offset, *, area: Area, dtype):
    width = width_of(x, v)

    @recomputed
    def normalized(x, v, scale, bias, epsilon, offset):
        x = x.astype(width)  # wide before it is used twice: its gradients add up wide
        inverse = lax.rsqrt(measure(x, where, area).var + epsilon)
        x = visible(where, x)
        gate = 1 if v is None else jax.nn.sigmoid(visible_parameter(where, v).astype(width) * x)
        return visible(where, affine(x * gate * inverse, scale, bias, offset, where)).astype(dtype)

    return normalized(x, v, scale, bias, jnp.asarray(epsilon, width), jnp.asarray(offset, width))


def evo_norm_b0(
    x: ArrayLike,
    stats: RunningStats | None,
    v: ArrayLike | None,
    scale: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    *,
    training: bool,
    momentum: ArrayLike | None = 0.9,
    epsilon: ArrayLike = 1e-5,
    feature_axis: int = -1,
    axis: AxisLike | None = None,
    where: ArrayLike | None = None,
    axis_name: AxisName = None,
    axis_index_groups: IndexGroups | None = None,
    ddof: int = 0,
    debias: bool = False,
    scale_offset: ArrayLike = 0.0,
    dtype: DTypeLike | None = None,
) -> tuple[jax.Array, RunningStats | None]:
    """Divide by the batch's deviation or by a shifted deviation of the sample, whichever is larger; no activation.

        y = (scale_offset + scale) x / max(sqrt(var + epsilon), v x + sqrt(own + epsilon)) + bias

    with var over batch and space (running in inference) and own over the sample's space.

    Args:
      x: any real shape; integers become float32.
      stats: RunningStats of the features; its mean is kept though y does not use it. None in training: no state.
      v: per feature (1 at first); None: y = scale x / sqrt(var + epsilon) + bias.
      scale, bias: per feature; or, as v, with as many dimensions as x and broadcasting to it.
      training: a Python bool; under jit a static argument.
      feature_axis: the features.
      axis: the sample's space; None is every axis but axis 0 and the features.
      momentum, epsilon, where, axis_name, axis_index_groups, ddof, debias, scale_offset, dtype: as in `batch_norm`;
        `axis_name` joins the batch, not the samples.

    Returns:
      (y, stats), always both, as `batch_norm`.

    Raises:
      ValueError, TypeError: as `batch_norm`; complex x; samples of one value.

    Example:
      >>> import jax.numpy as jnp, jaxnorm as jn
      >>> x = jnp.array([[[1.0], [5.0], [9.0]]])
      >>> y, stats = jn.evo_norm_b0(x, jn.RunningStats.init(1), None, training=True)
      >>> (y[0, :, 0] ** 2).round(1)  # x^2 / (32 / 3)
      Array([0.1, 2.3, 7.6], dtype=float32)

    Reference: Liu et al. 2020, arXiv:2004.02967, table 2.
    """
    call = Call("evo_norm_b0", x)
    call.training(training)
    call.real_numbers()
    features = call.one_axis(feature_axis, "feature_axis")
    space = space_axes(call, axis, features)
    call.numbers(epsilon, scale_offset)
    check_averaging("evo_norm_b0", momentum, ddof, debias)
    check_state(call, stats, call.shape(features), training)
    devices = call.devices(axis_name, axis_index_groups) if training else (None, None)
    batch = Area(call.others(features), *devices)
    call.several_values(space, None, None)
    y, m = _evo_b0(
        call.x,
        call.mask(where),
        None if training else stats,
        *(call.parameter(n, p, features, "feature axes") for n, p in _names(v, scale, bias)),
        epsilon,
        scale_offset,
        batch=batch,
        sample=Area(space),
        dtype=call.output_dtype(dtype),
    )
    if stats is None or not training:
        return y, stats
    return y, stats.update(m, momentum=momentum, ddof=ddof, debias=debias)


@partial(jax.jit, static_argnames=("batch", "sample", "dtype"))
def _evo_b0(x, where, stats, v, scale, bias, epsilon, offset, *, batch: Area, sample: Area, dtype):
    width = width_of(x, v, *(() if stats is None else stats[:2]))

    @recomputed
    def normalized(x, stats, v, scale, bias, epsilon, offset) -> tuple[jax.Array, Moments | None]:
        x = x.astype(width)
        if stats is None:
            measured = measure(x, where, batch)
            m, var = from_statistics(measured, batch.axes), measured.var
        else:
            m, var = None, jnp.expand_dims(stats.var, batch.axes)
        divisor = jnp.sqrt(var.astype(width) + epsilon)
        seen = visible(where, x)
        if v is not None:
            own = jnp.sqrt(measure(x, where, sample).var + epsilon)
            divisor = jnp.maximum(divisor, visible_parameter(where, v).astype(width) * seen + own)
        return visible(where, affine(seen / divisor, scale, bias, offset, where)).astype(dtype), m

    return normalized(x, stats, v, scale, bias, jnp.asarray(epsilon, width), jnp.asarray(offset, width))


def _names(v, scale, bias):
    return ("v", v), ("scale", scale), ("bias", bias)
