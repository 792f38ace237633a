"""Vectors divided by their length."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from flax.typing import Initializer
from jax.nn.initializers import constant
from jax.typing import ArrayLike, DTypeLike

from jaxnorm.arguments import Call
from jaxnorm.nnx.norm import learned, where_of
from jaxnorm.norms.unit import lp_normalize
from jaxnorm.standardize import modulate


class LpNormalize(nnx.Module):
    """Vectors divided by their p-norm; see `jaxnorm.lp_normalize`. With `use_scale` it is scale norm.

    Args:
      num_features: the size of a vector; needed, as `rngs`, for a scale.
      axis: what one vector is made of.
      use_scale: a Param `scale` [], the length that every vector gets.
      scale_init: None starts it at the root of the vector's size (arXiv:1910.05895, section 4).

    >>> LpNormalize(4, use_scale=True, rngs=nnx.Rngs(0))(jnp.array([0.0, 0.0, 4.0, 0.0]))
    Array([0., 0., 2., 0.], dtype=float32)
    """

    def __init__(
        self, num_features: int | None = None, *,
        p: float = 2, axis: int | Sequence[int] = -1, epsilon: float = 1e-12, use_scale: bool = False,
        scale_init: Initializer | None = None, param_dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs | None = None,
    ):  # fmt: skip
        self.num_features, self.p, self.axis, self.epsilon = num_features, p, axis, epsilon
        if not use_scale:
            self.scale = nnx.data(None)
            return
        if num_features is None or rngs is None:
            got = f"num_features={num_features}, rngs={rngs}"
            raise ValueError(f"LpNormalize: a scale needs `num_features` and `rngs`; got {got}. Pass both.")
        init = constant(math.sqrt(num_features)) if scale_init is None else scale_init
        self.scale = learned(True, init, (), param_dtype, rngs)

    def __call__(self, x, *, mask: ArrayLike | None = None) -> jax.Array:
        """Divide x by its lengths."""
        y = lp_normalize(x, axis=self.axis, p=self.p, epsilon=self.epsilon, where=where_of(mask))
        if self.scale is None:
            return y
        call = Call("LpNormalize", y)
        if math.prod(call.shape(call.axes(self.axis))) != self.num_features:
            got = f"num_features={self.num_features}, x.shape={y.shape}, axis={self.axis}"
            call.fail("a vector must have `num_features` numbers", got, "Check num_features and axis.")
        return modulate(y, self.scale[...].reshape((1,) * y.ndim), None)
