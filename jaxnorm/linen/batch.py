"""Batch norm: parameters, running statistics and when they are updated."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.nn import initializers
from jax.typing import ArrayLike, DTypeLike

from jaxnorm.arguments import wide
from jaxnorm.linen.parameters import Axes, Initializer, canonical, groups_of, mask_of, parameters
from jaxnorm.norms.batch import batch_norm
from jaxnorm.running import RunningStats
from jaxnorm.standardize import standardize


class BatchNorm(nn.Module):
    """Batch norm with running statistics in `batch_stats`, as `flax.linen.BatchNorm`; see `jaxnorm.batch_norm`.

    Beyond Flax:
      momentum: None averages all updates equally.
      scale_offset: added to scale in float32.
      ghost_size: normalize sub-batches of this many rows apart.
      debias: the running statistics never contain their initial values (Haiku).
      ddof: 1 keeps the unbiased variance (torch).
      frozen: running statistics, never updated, whatever the call says; scale and bias still train.

    `batch_stats` has `mean` and `var`, and `count` only with `debias` or `momentum=None`.

    Differs from Flax: stable variance; masks that NaN cannot pass, zeros at masked places; devices weighted by their
    valid values; an empty batch leaves the state alone; one value per feature in training is a ValueError; statistics
    are at least float32, and must be complex where x is.

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm.linen as jnl
      >>> norm = jnl.BatchNorm(use_running_average=False, momentum=0.9)
      >>> x = jnp.array([[1.0], [5.0], [9.0]])
      >>> variables = norm.init(jax.random.key(0), x)
      >>> y, updated = norm.apply(variables, x, mutable="batch_stats")
      >>> updated["batch_stats"]["mean"]
      Array([0.5], dtype=float32)
    """

    use_running_average: bool | None = None
    axis: Axes = -1
    momentum: float | None = 0.99
    epsilon: float = 1e-5
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    use_bias: bool = True
    use_scale: bool = True
    bias_init: Initializer = initializers.zeros
    scale_init: Initializer = initializers.ones
    axis_name: Any = None
    axis_index_groups: Any = None
    use_fast_variance: bool = True
    force_float32_reductions: bool = True
    scale_offset: float = 0.0
    ghost_size: int | None = None
    debias: bool = False
    ddof: int = 0
    frozen: bool = False

    @nn.compact
    def __call__(self, x, use_running_average: bool | None = None, *, mask: ArrayLike | None = None):
        """Normalize x; without running averages, update them. Nothing is updated while initializing."""
        if self.frozen:
            use_running_average = True
        else:
            use_running_average = nn.merge_param("use_running_average", self.use_running_average, use_running_average)
        features = canonical(x.ndim, self.axis)
        shape = tuple(x.shape[a] for a in features)
        names = ("mean", "var", "count") if self.debias or self.momentum is None else ("mean", "var")
        kept = {name: self.variable("batch_stats", name, _initial, name, shape) for name in names}
        scale, bias, dtype = parameters(self, x, features, self.use_bias)
        options = {"epsilon": self.epsilon, "where": mask_of(mask), "scale_offset": self.scale_offset, "dtype": dtype}
        training = not use_running_average
        if training and self.is_initializing():  # no devices to name yet, and perhaps a batch of one
            others = tuple(a for a in range(x.ndim) if a not in features)
            return standardize(x, scale, bias, axis=others, **options)[0]
        values = {name: _wide(kept[name].value) for name in names}
        stats = RunningStats(**({"count": jnp.zeros(shape)} | values))
        y, stats = batch_norm(
            x,
            stats,
            scale,
            bias,
            training=training,
            momentum=self.momentum,
            feature_axis=features,
            axis_name=self.axis_name,
            axis_index_groups=groups_of(self),
            ghost_size=self.ghost_size,
            ddof=self.ddof,
            debias=self.debias,
            **options,
        )
        if training:
            for name, variable in kept.items():
                variable.value = getattr(stats, name)
        return y


def _wide(value: ArrayLike) -> jax.Array:
    value = jnp.asarray(value)
    return value.astype(wide(value.dtype))


def _initial(name: str, shape: tuple[int, ...]) -> jax.Array:
    return getattr(RunningStats.init(shape), name)
