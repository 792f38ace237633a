"""Layer and RMS norm: statistics of each position over its features."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax.nn import initializers
from jax.typing import ArrayLike, DTypeLike

from jaxnorm.linen.parameters import Axes, Initializer, standardized


class LayerNorm(nn.Module):
    """Layer norm, as `flax.linen.LayerNorm`; see `jaxnorm.layer_norm`.

    Beyond Flax: `scale_offset`, added to scale in float32.

    Differs from Flax: stable variance; masks that NaN cannot pass, zeros at masked places; devices weighted by their
    valid values.

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm.linen as jnl
      >>> jnl.LayerNorm().init_with_output(jax.random.key(0), jnp.array([1.0, 5.0, 9.0]))[0].round(4)
      Array([-1.2247,  0.    ,  1.2247], dtype=float32)
    """

    epsilon: float = 1e-6
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    use_bias: bool = True
    use_scale: bool = True
    bias_init: Initializer = initializers.zeros
    scale_init: Initializer = initializers.ones
    reduction_axes: Axes = -1
    feature_axes: Axes = -1
    axis_name: Any = None
    axis_index_groups: Any = None
    use_fast_variance: bool = True
    force_float32_reductions: bool = True
    scale_offset: float = 0.0

    @nn.compact
    def __call__(self, x, *, mask: ArrayLike | None = None):
        """Normalize x over `reduction_axes`; scale and bias live on `feature_axes`."""
        return standardized(self, x, self.feature_axes, self.reduction_axes, mask, self.use_bias)


class RMSNorm(nn.Module):
    """RMS norm, as `flax.linen.RMSNorm`; see `jaxnorm.rms_norm`.

    Beyond Flax: `scale_offset`, added to scale in float32 (1.0 for Gemma's parameters).

    Differs from Flax: masks that NaN cannot pass, zeros at masked places; devices weighted by their valid values.

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm.linen as jnl
      >>> jnl.RMSNorm(epsilon=0.0).init_with_output(jax.random.key(0), jnp.array([3.0, 4.0, 0.0, 0.0]))[0]
      Array([1.2, 1.6, 0. , 0. ], dtype=float32)
    """

    epsilon: float = 1e-6
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    use_scale: bool = True
    scale_init: Initializer = initializers.ones
    reduction_axes: Axes = -1
    feature_axes: Axes = -1
    axis_name: Any = None
    axis_index_groups: Any = None
    use_fast_variance: bool = True
    force_float32_reductions: bool = True
    scale_offset: float = 0.0

    @nn.compact
    def __call__(self, x, *, mask: ArrayLike | None = None):
        """Divide x by its root mean square over `reduction_axes`; scale lives on `feature_axes`."""
        return standardized(self, x, self.feature_axes, self.reduction_axes, mask, use_bias=False, center=False)
