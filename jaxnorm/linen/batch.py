"""Batch norm: parameters, running statistics and when they are updated."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax.nn import initializers
from jax.typing import ArrayLike, DTypeLike

from jaxnorm.linen.parameters import Axes, Initializer, canonical, groups_of, mask_of, parameters
from jaxnorm.linen.running import running
from jaxnorm.norms.batch import batch_norm
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
        training = not self.frozen
        if training:
            training = not nn.merge_param("use_running_average", self.use_running_average, use_running_average)
        features = canonical(x.ndim, self.axis)
        shape = tuple(x.shape[a] for a in features)
        state = running(self, training, shape)
        scale, bias, dtype = parameters(self, x, features, self.use_bias)
        options = {"epsilon": self.epsilon, "where": mask_of(mask), "scale_offset": self.scale_offset, "dtype": dtype}
        if training and self.is_initializing():  # what a data-dependent initialization should see
            others = tuple(a for a in range(x.ndim) if a not in features)
            return standardize(x, scale, bias, axis=others, **options)[0]
        y, stats = batch_norm(
            x,
            state.stats,
            scale,
            bias,
            training=state.training,
            momentum=self.momentum,
            feature_axis=features,
            axis_name=self.axis_name,
            axis_index_groups=groups_of(self),
            ghost_size=self.ghost_size,
            ddof=self.ddof,
            debias=self.debias,
            **options,
        )
        state.keep(stats)
        return y
