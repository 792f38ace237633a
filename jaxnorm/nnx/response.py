"""Response norms: divided by what the neighbours, the map or the group respond."""

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn import dtypes
from flax.typing import Initializer
from jax.nn.initializers import constant, ones, zeros
from jax.typing import ArrayLike, DTypeLike

from jaxnorm.nnx.norm import learned, where_of
from jaxnorm.norms.response import filter_response_norm, global_response_norm, local_response_norm


class GlobalResponseNorm(nnx.Module):
    """Global response norm of ConvNeXt V2 (Woo et al. 2023, arXiv:2301.00808). Starts as the identity.

    >>> GlobalResponseNorm(2, rngs=nnx.Rngs(0))(jnp.array([[[3.0, 0.0], [4.0, 5.0]]]))
    Array([[[3., 0.],
            [4., 5.]]], dtype=float32)
    """

    def __init__(
        self, num_features: int, *,
        epsilon: float = 1e-6, dtype: DTypeLike | None = None, param_dtype: DTypeLike = jnp.float32,
        use_bias: bool = True, use_scale: bool = True,
        bias_init: Initializer = zeros, scale_init: Initializer = zeros, feature_axis: int = -1, rngs: nnx.Rngs,
    ):  # fmt: skip
        self.epsilon, self.dtype, self.feature_axis = epsilon, dtype, feature_axis
        self.scale = learned(use_scale, scale_init, (num_features,), param_dtype, rngs)
        self.bias = learned(use_bias, bias_init, (num_features,), param_dtype, rngs)

    def __call__(self, x, *, mask: ArrayLike | None = None) -> jax.Array:
        """Let features compete over space, beside the identity."""
        scale, bias = (None if p is None else p[...] for p in (self.scale, self.bias))
        dtype = dtypes.canonicalize_dtype(x, scale, bias, dtype=self.dtype)
        options = {"feature_axis": self.feature_axis, "epsilon": self.epsilon, "where": where_of(mask)}
        return global_response_norm(x, scale, bias, dtype=dtype, **options)


class FilterResponseNorm(nnx.Module):
    """Filter response norm with its thresholded linear unit (Singh & Krishnan 2020, arXiv:1911.09737).

    Args:
      num_features: the size of `feature_axis`.
      use_threshold: False leaves the threshold out, and its parameter; an activation of your own comes after it then.
      learn_epsilon: a parameter `learned_epsilon` [], its size added to epsilon; for inputs without space.
      epsilon, use_bias, use_scale, bias_init, scale_init, threshold_init, dtype, param_dtype, scale_offset: as
        elsewhere; see `jaxnorm.filter_response_norm`.

    >>> norm = FilterResponseNorm(1, epsilon=0.0, rngs=nnx.Rngs(0))
    >>> norm(jnp.array([[[3.0], [-4.0], [0.0], [0.0]]]))[0, :, 0]
    Array([1.2, 0. , 0. , 0. ], dtype=float32)
    """

    def __init__(
        self, num_features: int, *,
        epsilon: float = 1e-6, dtype: DTypeLike | None = None, param_dtype: DTypeLike = jnp.float32,
        use_bias: bool = True, use_scale: bool = True, use_threshold: bool = True, learn_epsilon: bool = False,
        bias_init: Initializer = zeros, scale_init: Initializer = ones, threshold_init: Initializer = zeros,
        feature_axis: int = -1, scale_offset: float = 0.0, rngs: nnx.Rngs,
    ):  # fmt: skip
        self.epsilon, self.dtype, self.feature_axis, self.scale_offset = epsilon, dtype, feature_axis, scale_offset
        self.scale = learned(use_scale, scale_init, (num_features,), param_dtype, rngs)
        self.bias = learned(use_bias, bias_init, (num_features,), param_dtype, rngs)
        self.threshold = learned(use_threshold, threshold_init, (num_features,), param_dtype, rngs)
        self.learned_epsilon = learned(learn_epsilon, constant(1e-4), (), jnp.float32, rngs)  # section 3.3 of the paper

    def __call__(self, x, *, mask: ArrayLike | None = None) -> jax.Array:
        """Normalize x over space and apply the threshold."""
        parameters = (self.scale, self.bias, self.threshold)
        scale, bias, threshold = (None if p is None else p[...] for p in parameters)
        dtype = dtypes.canonicalize_dtype(x, scale, bias, dtype=self.dtype)
        epsilon = self.epsilon if self.learned_epsilon is None else self.epsilon + jnp.abs(self.learned_epsilon[...])
        options = {"feature_axis": self.feature_axis, "where": where_of(mask), "scale_offset": self.scale_offset}
        return filter_response_norm(x, scale, bias, threshold, epsilon=epsilon, dtype=dtype, **options)


class LocalResponseNorm(nnx.Module):
    """Local response norm of AlexNet, as torch defines it; see `jaxnorm.local_response_norm`. No parameters.

    >>> LocalResponseNorm(1, alpha=1.0, beta=1.0)(jnp.array([0.0, 3.0]))
    Array([0. , 0.3], dtype=float32)
    """

    def __init__(self, size: int, *, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0, feature_axis: int = -1):
        self.size, self.alpha, self.beta, self.k, self.feature_axis = size, alpha, beta, k, feature_axis

    def __call__(self, x, *, mask: ArrayLike | None = None) -> jax.Array:
        """Divide x by a power of its neighbours' mean square."""
        options = {"feature_axis": self.feature_axis, "where": where_of(mask)}
        return local_response_norm(x, size=self.size, alpha=self.alpha, beta=self.beta, k=self.k, **options)
