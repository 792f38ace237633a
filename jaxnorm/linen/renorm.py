"""Batch renorm: batch norm whose training output follows the running statistics."""

import flax.linen as nn
from jax.typing import ArrayLike

from jaxnorm.linen.parameters import canonical, parameters
from jaxnorm.linen.running import ScaledRunningNorm, running
from jaxnorm.norms.renorm import batch_renorm


class BatchRenorm(ScaledRunningNorm):
    """Batch renorm; see `jaxnorm.batch_renorm`. Called as `BatchNorm` is, with its variables.

    Args (beyond ScaledRunningNorm's, see `jaxnorm.linen.running`):
      ddof: 1 keeps the unbiased variance.
      r_max, d_max: limits of the correction; the call may give others, traced ones too, as a schedule does.

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm.linen as jnl
      >>> norm = jnl.BatchRenorm(use_running_average=False)
      >>> x = jnp.array([[1.0], [5.0], [9.0]])
      >>> variables = norm.init(jax.random.key(0), x)
      >>> y, updated = norm.apply(variables, x, r_max=1.0, d_max=0.0, mutable="batch_stats")  # batch norm, at first
      >>> y[:, 0].round(3)
      Array([-1.225,  0.   ,  1.225], dtype=float32)
    """

    epsilon: float = 1e-3
    ddof: int = 0
    r_max: float = 3.0
    d_max: float = 5.0

    @nn.compact
    def __call__(
        self,
        x,
        use_running_average: bool | None = None,
        *,
        mask: ArrayLike | None = None,
        r_max: ArrayLike | None = None,
        d_max: ArrayLike | None = None,
    ):
        """Normalize x; without running averages, corrected towards them, and update them."""
        features = canonical(x.ndim, self.axis)
        scale, bias, dtype = parameters(self, x, features, self.use_bias)
        state = running(self, self._training(use_running_average), tuple(x.shape[a] for a in features))
        y, stats = batch_renorm(
            x,
            state.stats,
            scale,
            bias,
            training=state.training,
            r_max=self.r_max if r_max is None else r_max,
            d_max=self.d_max if d_max is None else d_max,
            epsilon=self.epsilon,
            ddof=self.ddof,
            scale_offset=self.scale_offset,
            dtype=dtype,
            **self._keywords(mask),
        )
        state.keep(stats)
        return y
