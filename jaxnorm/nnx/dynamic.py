"""Normalization-free layers: a squashing function in a norm's place."""

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn import dtypes
from flax.typing import Initializer
from jax.nn.initializers import constant, ones, zeros
from jax.typing import ArrayLike, DTypeLike

from jaxnorm.nnx.norm import learned, where_of
from jaxnorm.norms.dynamic import dynamic_erf, dynamic_tanh


class DynamicTanh(nnx.Module):
    """Dynamic tanh (DyT; Zhu et al. 2025, arXiv:2503.10622), in place of a layer norm.

    Args:
      num_features: the size of the last axis.
      alpha_init: the initial `alpha`, one learned number.
      use_bias, use_scale, bias_init, scale_init, dtype, param_dtype, scale_offset: as elsewhere; see
        `jaxnorm.dynamic_tanh`.

    >>> DynamicTanh(3, rngs=nnx.Rngs(0))(jnp.array([-100.0, 0.0, 1.0])).round(4)
    Array([-1.    ,  0.    ,  0.4621], dtype=float32)
    """

    def __init__(
        self, num_features: int, *,
        alpha_init: float = 0.5, dtype: DTypeLike | None = None, param_dtype: DTypeLike = jnp.float32,
        use_bias: bool = True, use_scale: bool = True,
        bias_init: Initializer = zeros, scale_init: Initializer = ones, scale_offset: float = 0.0, rngs: nnx.Rngs,
    ):  # fmt: skip
        self.dtype, self.scale_offset = dtype, scale_offset
        self.alpha = learned(True, constant(alpha_init), (), param_dtype, rngs)
        self.scale = learned(use_scale, scale_init, (num_features,), param_dtype, rngs)
        self.bias = learned(use_bias, bias_init, (num_features,), param_dtype, rngs)

    def __call__(self, x, *, mask: ArrayLike | None = None) -> jax.Array:
        """Squash x; features last."""
        scale, bias = (None if p is None else p[...] for p in (self.scale, self.bias))
        dtype = dtypes.canonicalize_dtype(x, scale, bias, dtype=self.dtype)
        options = {"where": where_of(mask), "scale_offset": self.scale_offset, "dtype": dtype}
        return dynamic_tanh(x, self.alpha[...], scale, bias, **options)


class DynamicErf(nnx.Module):
    """Dynamic erf (Derf; Chen et al. 2025, arXiv:2512.10938), in place of a layer norm.

    Args:
      num_features: the size of the last axis.
      alpha_init, shift_init: the initial `alpha` and `shift`, one learned number each.
      use_bias, use_scale, bias_init, scale_init, dtype, param_dtype, scale_offset: as elsewhere; see
        `jaxnorm.dynamic_erf`.

    >>> DynamicErf(3, rngs=nnx.Rngs(0))(jnp.array([-100.0, 0.0, 1.0])).round(4)
    Array([-1.    ,  0.    ,  0.5205], dtype=float32)
    """

    def __init__(
        self, num_features: int, *,
        alpha_init: float = 0.5, shift_init: float = 0.0,
        dtype: DTypeLike | None = None, param_dtype: DTypeLike = jnp.float32,
        use_bias: bool = True, use_scale: bool = True,
        bias_init: Initializer = zeros, scale_init: Initializer = ones, scale_offset: float = 0.0, rngs: nnx.Rngs,
    ):  # fmt: skip
        self.dtype, self.scale_offset = dtype, scale_offset
        self.alpha = learned(True, constant(alpha_init), (), param_dtype, rngs)
        self.shift = learned(True, constant(shift_init), (), param_dtype, rngs)
        self.scale = learned(use_scale, scale_init, (num_features,), param_dtype, rngs)
        self.bias = learned(use_bias, bias_init, (num_features,), param_dtype, rngs)

    def __call__(self, x, *, mask: ArrayLike | None = None) -> jax.Array:
        """Squash x; features last."""
        scale, bias = (None if p is None else p[...] for p in (self.scale, self.bias))
        dtype = dtypes.canonicalize_dtype(x, scale, bias, dtype=self.dtype)
        options = {"where": where_of(mask), "scale_offset": self.scale_offset, "dtype": dtype}
        return dynamic_erf(x, self.alpha[...], self.shift[...], scale, bias, **options)
