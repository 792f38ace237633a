"""What norms with running statistics share: their fields, and when the statistics are read and kept."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.nn import initializers
from jax.typing import ArrayLike, DTypeLike

from jaxnorm.arguments import wide
from jaxnorm.linen.parameters import Axes, Initializer, groups_of, mask_of
from jaxnorm.running import RunningStats


class RunningNorm(nn.Module):
    """Fields of the norms of a batch, named as those of `flax.linen.BatchNorm`; not a norm itself.

    Args:
      use_running_average: False trains: this batch's statistics, and an update of those in `batch_stats`. True is
        inference. None leaves it to the call.
      axis: the feature axes; every other axis shares statistics.
      momentum: the weight of the past; None averages all updates equally.
      dtype, param_dtype: of y (None: that of x and the parameters together), and of the parameters.
      axis_name, axis_index_groups: share statistics over these devices.
      debias: the running statistics never contain their initial values.
    """

    use_running_average: bool | None = None
    axis: Axes = -1
    momentum: float | None = 0.99
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    axis_name: Any = None
    axis_index_groups: Any = None
    debias: bool = False

    def _training(self, use_running_average: bool | None) -> bool:
        return not nn.merge_param("use_running_average", self.use_running_average, use_running_average)

    def _keywords(self, mask: ArrayLike | None) -> dict[str, Any]:
        return {
            "momentum": self.momentum,
            "debias": self.debias,
            "feature_axis": self.axis,
            "where": mask_of(mask),
            "axis_name": self.axis_name,
            "axis_index_groups": groups_of(self),
        }


class ScaledRunningNorm(RunningNorm):
    """Fields of those that divide too; not a norm itself.

    Args:
      epsilon: added to the variance inside the root.
      use_bias, use_scale, bias_init, scale_init: of the parameters `bias` and `scale`.
      scale_offset: added to scale in float32; 1.0 for parameters stored around zero.
    """

    epsilon: float = 1e-5
    use_bias: bool = True
    use_scale: bool = True
    bias_init: Initializer = initializers.zeros
    scale_init: Initializer = initializers.ones
    scale_offset: float = 0.0


class Running:
    """One call's running statistics: `stats` as they are now, `keep` for what they become.

    While initializing nothing is measured and nothing is kept: there are no devices to name yet, and the example input
    may be a batch of one.
    """

    def __init__(self, module: Any, training: bool, initial: NamedTuple, names: tuple[str, ...]):
        # Updates are counted only where their weights depend on it: otherwise the variables are Flax's.
        names = (*names, "count") if module.debias or module.momentum is None else names
        kept = {name: module.variable("batch_stats", name, lambda name=name: getattr(initial, name)) for name in names}
        self.training = training and not module.is_initializing()
        self.stats: Any = initial._replace(**{name: widened(variable.value) for name, variable in kept.items()})
        self._kept = kept

    def keep(self, stats: Any) -> None:
        if self.training:
            for name, variable in self._kept.items():
                variable.value = getattr(stats, name)


def running(module: Any, training: bool, shape: tuple[int, ...]) -> Running:
    """Running mean and variance."""
    return Running(module, training, RunningStats.init(shape), ("mean", "var"))


def widened(value: ArrayLike) -> jax.Array:
    """A checkpoint may hold half precision; statistics are computed wide."""
    value = jnp.asarray(value)
    return value.astype(wide(value.dtype))
