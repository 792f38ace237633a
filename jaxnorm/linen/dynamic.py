"""Normalization-free layers: a squashing function in a norm's place."""

import flax.linen as nn
import jax.numpy as jnp
from jax.nn import initializers
from jax.typing import ArrayLike, DTypeLike

from jaxnorm.linen.parameters import Initializer, canonical, mask_of, parameters
from jaxnorm.norms.dynamic import dynamic_erf, dynamic_tanh


class DynamicTanh(nn.Module):
    """Dynamic tanh (DyT), in place of a layer norm; see `jaxnorm.dynamic_tanh`.

    Args:
      alpha_init: the initial `alpha`, one learned number.

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm.linen as jnl
      >>> jnl.DynamicTanh().init_with_output(jax.random.key(0), jnp.array([-100.0, 0.0, 1.0]))[0].round(4)
      Array([-1.    ,  0.    ,  0.4621], dtype=float32)
    """

    alpha_init: float = 0.5
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    use_bias: bool = True
    use_scale: bool = True
    bias_init: Initializer = initializers.zeros
    scale_init: Initializer = initializers.ones
    scale_offset: float = 0.0

    @nn.compact
    def __call__(self, x, *, mask: ArrayLike | None = None):
        """Squash x; features last."""
        scale, bias, dtype = parameters(self, x, canonical(x.ndim, -1), self.use_bias)
        alpha = self.param("alpha", initializers.constant(self.alpha_init), (), self.param_dtype)
        options = {"where": mask_of(mask), "scale_offset": self.scale_offset, "dtype": dtype}
        return dynamic_tanh(x, alpha, scale, bias, **options)


class DynamicErf(nn.Module):
    """Dynamic erf (Derf), in place of a layer norm; see `jaxnorm.dynamic_erf`.

    Args:
      alpha_init, shift_init: the initial `alpha` and `shift`, one learned number each.

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm.linen as jnl
      >>> jnl.DynamicErf().init_with_output(jax.random.key(0), jnp.array([-100.0, 0.0, 1.0]))[0].round(4)
      Array([-1.    ,  0.    ,  0.5205], dtype=float32)
    """

    alpha_init: float = 0.5
    shift_init: float = 0.0
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    use_bias: bool = True
    use_scale: bool = True
    bias_init: Initializer = initializers.zeros
    scale_init: Initializer = initializers.ones
    scale_offset: float = 0.0

    @nn.compact
    def __call__(self, x, *, mask: ArrayLike | None = None):
        """Squash x; features last."""
        scale, bias, dtype = parameters(self, x, canonical(x.ndim, -1), self.use_bias)
        alpha = self.param("alpha", initializers.constant(self.alpha_init), (), self.param_dtype)
        shift = self.param("shift", initializers.constant(self.shift_init), (), self.param_dtype)
        options = {"where": mask_of(mask), "scale_offset": self.scale_offset, "dtype": dtype}
        return dynamic_erf(x, alpha, shift, scale, bias, **options)
