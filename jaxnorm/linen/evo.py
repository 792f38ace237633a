"""EvoNorms: a norm and an activation in one."""

import flax.linen as nn
import jax.numpy as jnp
from jax.nn import initializers
from jax.typing import ArrayLike, DTypeLike

from jaxnorm.linen.parameters import Initializer, canonical, learned, mask_of, parameters
from jaxnorm.linen.running import ScaledRunningNorm, running
from jaxnorm.norms.evo import evo_norm_b0, evo_norm_s0


class EvoNormS0(nn.Module):
    """EvoNorm S0: each sample by itself, in groups; see `jaxnorm.evo_norm_s0`. No activation comes after it.

    Args:
      num_groups, group_size: exactly one of them.
      use_activation: False leaves the gate out, and its parameter `v`.

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm.linen as jnl
      >>> x = jnp.array([[1.0, 5.0, 9.0]])
      >>> norm = jnl.EvoNormS0(num_groups=1, use_activation=False, epsilon=0.0)
      >>> (norm.init_with_output(jax.random.key(0), x)[0] ** 2).round(1)  # x^2 / (32 / 3)
      Array([[0.1, 2.3, 7.6]], dtype=float32)
    """

    num_groups: int | None = 32
    group_size: int | None = None
    epsilon: float = 1e-5
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    use_bias: bool = True
    use_scale: bool = True
    bias_init: Initializer = initializers.zeros
    scale_init: Initializer = initializers.ones
    v_init: Initializer = initializers.ones
    use_activation: bool = True
    feature_axis: int = -1
    scale_offset: float = 0.0

    @nn.compact
    def __call__(self, x, *, mask: ArrayLike | None = None):
        """Normalize and activate x."""
        features = canonical(x.ndim, self.feature_axis)
        scale, bias, dtype = parameters(self, x, features, self.use_bias)
        return evo_norm_s0(
            x,
            learned(self, "v", x, features) if self.use_activation else None,
            scale,
            bias,
            num_groups=self.num_groups,
            group_size=self.group_size,
            feature_axis=self.feature_axis,
            epsilon=self.epsilon,
            where=mask_of(mask),
            scale_offset=self.scale_offset,
            dtype=dtype,
        )


class EvoNormB0(ScaledRunningNorm):
    """EvoNorm B0: the batch's deviation or the sample's; see `jaxnorm.evo_norm_b0`. No activation comes after it.

    Args (beyond ScaledRunningNorm's, see `jaxnorm.linen.running`):
      use_activation: False leaves the sample's part out, and its parameter `v`.
      ddof: 1 keeps the unbiased variance.

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm.linen as jnl
      >>> x = jnp.array([[[1.0], [5.0], [9.0]]])
      >>> norm = jnl.EvoNormB0(use_running_average=False, use_activation=False)
      >>> y, _ = norm.apply(norm.init(jax.random.key(0), x), x, mutable="batch_stats")
      >>> (y[0, :, 0] ** 2).round(1)  # x^2 / (32 / 3)
      Array([0.1, 2.3, 7.6], dtype=float32)
    """

    v_init: Initializer = initializers.ones
    use_activation: bool = True
    ddof: int = 0

    @nn.compact
    def __call__(self, x, use_running_average: bool | None = None, *, mask: ArrayLike | None = None):
        """Normalize and activate x; without running averages, update them."""
        features = canonical(x.ndim, self.axis)
        scale, bias, dtype = parameters(self, x, features, self.use_bias)
        state = running(self, self._training(use_running_average), tuple(x.shape[a] for a in features))
        y, stats = evo_norm_b0(
            x,
            state.stats,
            learned(self, "v", x, features) if self.use_activation else None,
            scale,
            bias,
            training=state.training,
            epsilon=self.epsilon,
            ddof=self.ddof,
            scale_offset=self.scale_offset,
            dtype=dtype,
            **self._keywords(mask),
        )
        state.keep(stats)
        return y
