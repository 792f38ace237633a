"""Vectors divided by their length."""

import math
from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp
from jax.nn import initializers
from jax.typing import ArrayLike, DTypeLike

from jaxnorm.linen.parameters import Initializer, canonical, mask_of
from jaxnorm.norms.unit import lp_normalize
from jaxnorm.standardize import modulate


class LpNormalize(nn.Module):
    """Vectors divided by their p-norm; see `jaxnorm.lp_normalize`. With `use_scale` it is scale norm.

    Args:
      axis: what one vector is made of.
      use_scale: a parameter `scale` [], the length that every vector gets.
      scale_init: None starts it at the root of the vector's size (arXiv:1910.05895, section 4).

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm.linen as jnl
      >>> jnl.LpNormalize(use_scale=True).init_with_output(jax.random.key(0), jnp.array([0.0, 0, 4, 0]))[0]
      Array([0., 0., 2., 0.], dtype=float32)
    """

    p: float = 2
    axis: int | Sequence[int] = -1
    epsilon: float = 1e-12
    use_scale: bool = False
    scale_init: Initializer | None = None
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x, *, mask: ArrayLike | None = None):
        """Divide x by its lengths."""
        y = lp_normalize(x, axis=self.axis, p=self.p, epsilon=self.epsilon, where=mask_of(mask))
        if not self.use_scale:
            return y
        size = math.prod(y.shape[a] for a in canonical(y.ndim, self.axis))
        init = initializers.constant(size**0.5) if self.scale_init is None else self.scale_init
        return modulate(y, self.param("scale", init, (), self.param_dtype).reshape((1,) * y.ndim), None)
