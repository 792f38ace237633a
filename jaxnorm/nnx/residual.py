"""Residual-stream forms: add, then normalize, and give both back."""

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn import dtypes
from flax.typing import Initializer
from jax.nn.initializers import ones, zeros
from jax.typing import ArrayLike, DTypeLike

from jaxnorm.nnx.norm import learned, where_of
from jaxnorm.norms.residual import add_layer_norm, add_rms_norm


class AddRMSNorm(nnx.Module):
    """Add a branch to the residual stream and normalize the sum over its last axis; see `jaxnorm.add_rms_norm`.

    >>> y, h = AddRMSNorm(2, epsilon=0.0, rngs=nnx.Rngs(0))(jnp.array([1.0, 2.0]), jnp.array([2.0, 2.0]))
    >>> h, jnp.round(12.5 * y**2)
    (Array([3., 4.], dtype=float32), Array([ 9., 16.], dtype=float32))
    """

    def __init__(
        self, num_features: int, *,
        epsilon: float = 1e-6, dtype: DTypeLike | None = None, param_dtype: DTypeLike = jnp.float32,
        use_scale: bool = True, scale_init: Initializer = ones, scale_offset: float = 0.0, rngs: nnx.Rngs,
    ):  # fmt: skip
        self.epsilon, self.dtype, self.scale_offset = epsilon, dtype, scale_offset
        self.scale = learned(use_scale, scale_init, (num_features,), param_dtype, rngs)

    def __call__(self, x, residual, *, mask: ArrayLike | None = None) -> tuple[jax.Array, jax.Array]:
        """(y, h): the next block's input, and the stream."""
        scale = None if self.scale is None else self.scale[...]
        dtype = dtypes.canonicalize_dtype(x, scale, dtype=self.dtype)
        options = {"epsilon": self.epsilon, "where": where_of(mask), "scale_offset": self.scale_offset}
        return add_rms_norm(x, residual, scale, dtype=dtype, **options)


class AddLayerNorm(nnx.Module):
    """Add a branch to the residual stream and normalize the sum over its last axis; see `jaxnorm.add_layer_norm`.

    >>> y, h = AddLayerNorm(3, rngs=nnx.Rngs(0))(jnp.array([1.0, 2.0, 3.0]), jnp.array([0.0, 3.0, 6.0]))
    >>> h, y.round(4)
    (Array([1., 5., 9.], dtype=float32), Array([-1.2247,  0.    ,  1.2247], dtype=float32))
    """

    def __init__(
        self, num_features: int, *,
        epsilon: float = 1e-6, dtype: DTypeLike | None = None, param_dtype: DTypeLike = jnp.float32,
        use_bias: bool = True, use_scale: bool = True,
        bias_init: Initializer = zeros, scale_init: Initializer = ones, scale_offset: float = 0.0, rngs: nnx.Rngs,
    ):  # fmt: skip
        self.epsilon, self.dtype, self.scale_offset = epsilon, dtype, scale_offset
        self.scale = learned(use_scale, scale_init, (num_features,), param_dtype, rngs)
        self.bias = learned(use_bias, bias_init, (num_features,), param_dtype, rngs)

    def __call__(self, x, residual, *, mask: ArrayLike | None = None) -> tuple[jax.Array, jax.Array]:
        """(y, h): the next block's input, and the stream."""
        scale, bias = (None if p is None else p[...] for p in (self.scale, self.bias))
        dtype = dtypes.canonicalize_dtype(x, scale, bias, dtype=self.dtype)
        options = {"epsilon": self.epsilon, "where": where_of(mask), "scale_offset": self.scale_offset}
        return add_layer_norm(x, residual, scale, bias, dtype=dtype, **options)
