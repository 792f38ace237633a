"""Mean-only batch norm: centred, and not divided."""

import flax.linen as nn
from flax.linen.dtypes import canonicalize_dtype
from jax.nn import initializers
from jax.typing import ArrayLike

from jaxnorm.linen.parameters import Initializer, canonical, learned
from jaxnorm.linen.running import RunningNorm, running
from jaxnorm.norms.center import mean_only_batch_norm


class MeanOnlyBatchNorm(RunningNorm):
    """Mean-only batch norm, for layers under `WeightNorm`; see `jaxnorm.mean_only_batch_norm`.

    Args (beyond RunningNorm's, see `jaxnorm.linen.running`):
      ddof: 1 keeps the unbiased variance, which stands in `batch_stats` though y does not use it.

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm.linen as jnl
      >>> norm = jnl.MeanOnlyBatchNorm(use_running_average=False)
      >>> x = jnp.array([[1.0], [5.0], [9.0]])
      >>> norm.apply(norm.init(jax.random.key(0), x), x, mutable="batch_stats")[0][:, 0]
      Array([-4.,  0.,  4.], dtype=float32)
    """

    use_bias: bool = True
    bias_init: Initializer = initializers.zeros
    ddof: int = 0

    @nn.compact
    def __call__(self, x, use_running_average: bool | None = None, *, mask: ArrayLike | None = None):
        """Centre x; without running averages, update them."""
        features = canonical(x.ndim, self.axis)
        bias = learned(self, "bias", x, features) if self.use_bias else None
        dtype = canonicalize_dtype(x, bias, dtype=self.dtype)
        state = running(self, self._training(use_running_average), tuple(x.shape[a] for a in features))
        options = {"training": state.training, "ddof": self.ddof, "dtype": dtype}
        y, stats = mean_only_batch_norm(x, state.stats, bias, **options, **self._keywords(mask))
        state.keep(stats)
        return y
