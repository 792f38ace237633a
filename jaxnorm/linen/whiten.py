"""Whitening with a running covariance."""

import math

import flax.linen as nn
from jax.typing import ArrayLike

from jaxnorm.linen.parameters import canonical, parameters
from jaxnorm.linen.running import Running, ScaledRunningNorm
from jaxnorm.norms.whiten import WhiteningStats, whiten


class Whiten(ScaledRunningNorm):
    """Decorrelated batch norm: whitening over batch and space; see `jaxnorm.whiten`.

    Args (beyond ScaledRunningNorm's, see `jaxnorm.linen.running`):
      method: "zca", "newton" or "cholesky".
      num_groups, group_size: at most one of them; features are whitened in such groups.
      steps: Newton iterations.

    `batch_stats` has `mean` and `cov`, and `count` only with `debias` or `momentum=None`.

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm.linen as jnl
      >>> x = jax.random.normal(jax.random.key(0), (100, 2)) @ jnp.array([[1.0, 2.0], [0.0, 1.0]])
      >>> norm = jnl.Whiten(use_running_average=False)
      >>> y, _ = norm.apply(norm.init(jax.random.key(0), x), x, mutable="batch_stats")
      >>> jnp.abs(y.T @ y / 100).round(3)
      Array([[1., 0.],
             [0., 1.]], dtype=float32)
    """

    method: str = "zca"
    num_groups: int | None = None
    group_size: int | None = None
    steps: int = 5

    @nn.compact
    def __call__(self, x, use_running_average: bool | None = None, *, mask: ArrayLike | None = None):
        """Whiten x; without running averages, update them."""
        features = canonical(x.ndim, self.axis)
        scale, bias, dtype = parameters(self, x, features, self.use_bias)
        groups = {"num_groups": self.num_groups, "group_size": self.group_size}
        initial = WhiteningStats.init(math.prod(x.shape[a] for a in features), **groups)
        state = Running(self, self._training(use_running_average), initial, ("mean", "cov"))
        y, stats = whiten(
            x,
            state.stats,
            scale,
            bias,
            training=state.training,
            method=self.method,
            steps=self.steps,
            epsilon=self.epsilon,
            scale_offset=self.scale_offset,
            dtype=dtype,
            **groups,
            **self._keywords(mask),
        )
        state.keep(stats)
        return y
