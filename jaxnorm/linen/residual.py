"""Residual-stream forms: add, then normalize, and give both back."""

import flax.linen as nn
import jax.numpy as jnp
from jax.nn import initializers
from jax.typing import ArrayLike, DTypeLike

from jaxnorm.linen.parameters import Initializer, canonical, mask_of, parameters
from jaxnorm.norms.residual import add_layer_norm, add_rms_norm


class AddRMSNorm(nn.Module):
    """Add a branch to the residual stream and normalize the sum over its last axis; see `jaxnorm.add_rms_norm`.

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm.linen as jnl
      >>> norm, x = jnl.AddRMSNorm(epsilon=0.0), jnp.array([1.0, 2.0])
      >>> y, h = norm.init_with_output(jax.random.key(0), x, jnp.array([2.0, 2.0]))[0]
      >>> h, jnp.round(12.5 * y**2)
      (Array([3., 4.], dtype=float32), Array([ 9., 16.], dtype=float32))
    """

    epsilon: float = 1e-6
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    use_scale: bool = True
    scale_init: Initializer = initializers.ones
    scale_offset: float = 0.0

    @nn.compact
    def __call__(self, x, residual, *, mask: ArrayLike | None = None):
        """(y, h): the next block's input, and the stream."""
        scale, _, dtype = parameters(self, x, canonical(x.ndim, -1), use_bias=False)
        options = {"epsilon": self.epsilon, "where": mask_of(mask), "scale_offset": self.scale_offset, "dtype": dtype}
        return add_rms_norm(x, residual, scale, **options)


class AddLayerNorm(nn.Module):
    """Add a branch to the residual stream and normalize the sum over its last axis; see `jaxnorm.add_layer_norm`.

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm.linen as jnl
      >>> norm, x = jnl.AddLayerNorm(), jnp.array([1.0, 2.0, 3.0])
      >>> y, h = norm.init_with_output(jax.random.key(0), x, jnp.array([0.0, 3.0, 6.0]))[0]
      >>> h, y.round(4)
      (Array([1., 5., 9.], dtype=float32), Array([-1.2247,  0.    ,  1.2247], dtype=float32))
    """

    epsilon: float = 1e-6
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    use_bias: bool = True
    use_scale: bool = True
    bias_init: Initializer = initializers.zeros
    scale_init: Initializer = initializers.ones
    scale_offset: float = 0.0

    @nn.compact
    def __call__(self, x, residual, *, mask: ArrayLike | None = None):
        """(y, h): the next block's input, and the stream."""
        scale, bias, dtype = parameters(self, x, canonical(x.ndim, -1), self.use_bias)
        options = {"epsilon": self.epsilon, "where": mask_of(mask), "scale_offset": self.scale_offset, "dtype": dtype}
        return add_layer_norm(x, residual, scale, bias, **options)
