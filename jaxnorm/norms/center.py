"""Mean-only batch norm: centred, and not divided. For weights whose length is normalized already."""

from functools import partial

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike

from jaxnorm.arguments import AxisLike, AxisName, Call, IndexGroups, check_averaging
from jaxnorm.moments import from_statistics
from jaxnorm.norms.batch import check_state
from jaxnorm.rules import Area, measure, recomputed, visible, width_of
from jaxnorm.running import RunningStats


def mean_only_batch_norm(
    x: ArrayLike,
    stats: RunningStats | None,
    bias: ArrayLike | None = None,
    *,
    training: bool,
    momentum: ArrayLike | None = 0.9,
    feature_axis: AxisLike = -1,
    where: ArrayLike | None = None,
    axis_name: AxisName = None,
    axis_index_groups: IndexGroups | None = None,
    ddof: int = 0,
    debias: bool = False,
    dtype: DTypeLike | None = None,
) -> tuple[jax.Array, RunningStats | None]:
    """Subtract each feature's mean over batch and space, and leave its variance.

        y = x - mean + bias        mean of this batch in training, of `stats` in inference

    Args:
      x: any shape, floating or complex; integers become float32.
      stats: RunningStats of the feature axes' shape (its variance is kept up, and not used); None in training: no
        state.
      bias: per feature, of the feature axes' shape; or with as many dimensions as x and broadcasting to it.
      training: a Python bool; under jit a static argument.
      momentum, feature_axis, where, axis_name, axis_index_groups, ddof, debias, dtype: as in `batch_norm`.

    Returns:
      (y, stats), always both, as `batch_norm`. One value per feature is allowed: it gives the bias.

    Raises:
      ValueError, TypeError: as `batch_norm`.

    Example:
      >>> import jax.numpy as jnp, jaxnorm as jn
      >>> jn.mean_only_batch_norm(jnp.array([[1.0], [5.0], [9.0]]), None, training=True)[0][:, 0]
      Array([-4.,  0.,  4.], dtype=float32)

    Reference: Salimans & Kingma 2016, arXiv:1602.07868, section 4.
    """
    call = Call("mean_only_batch_norm", x)
    call.training(training)
    features = call.axes(feature_axis, "feature_axis")
    check_averaging("mean_only_batch_norm", momentum, ddof, debias)
    check_state(call, stats, call.shape(features), training)
    devices = call.devices(axis_name, axis_index_groups) if training else (None, None)
    area = Area(call.others(features), *devices)
    bias, where = call.parameter("bias", bias, features, "feature axes"), call.mask(where)
    mean = None if stats is None or training else jnp.expand_dims(stats.mean, area.axes)
    y, m = _center(call.x, where, mean, bias, area=area, dtype=call.output_dtype(dtype))
    if stats is None or not training:
        return y, stats
    return y, stats.update(m, momentum=momentum, ddof=ddof, debias=debias)


@partial(jax.jit, static_argnames=("area", "dtype"))
def _center(x, where, mean, bias, *, area: Area, dtype):
    width = width_of(x, mean, bias)

    @recomputed
    def centred(x, mean, bias):
        x, m, residual = x.astype(width), None, jnp.zeros((), width)  # wide before use: its gradients add up wide
        if mean is None:
            stats = measure(x, where, area)
            mean, residual, m = stats.mean, stats.residual.astype(width), from_statistics(stats, area.axes)
        y = (visible(where, x) - mean.astype(width)) - residual
        return visible(where, y if bias is None else y + bias.astype(width)).astype(dtype), m

    return centred(x, mean, bias)
