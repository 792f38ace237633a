"""Response norms: divided by what the neighbours, the map or the group respond."""

import flax.linen as nn
import jax.numpy as jnp
from jax.nn import initializers
from jax.typing import ArrayLike, DTypeLike

from jaxnorm.linen.parameters import Initializer, canonical, learned, mask_of, parameters
from jaxnorm.norms.response import filter_response_norm, global_response_norm, local_response_norm


class GlobalResponseNorm(nn.Module):
    """Global response norm of ConvNeXt V2; see `jaxnorm.global_response_norm`. Starts as the identity.

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm.linen as jnl
      >>> x = jnp.array([[[3.0, 0.0], [4.0, 5.0]]])
      >>> jnl.GlobalResponseNorm().init_with_output(jax.random.key(0), x)[0]
      Array([[[3., 0.],
              [4., 5.]]], dtype=float32)
    """

    epsilon: float = 1e-6
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    use_bias: bool = True
    use_scale: bool = True
    bias_init: Initializer = initializers.zeros
    scale_init: Initializer = initializers.zeros
    feature_axis: int = -1

    @nn.compact
    def __call__(self, x, *, mask: ArrayLike | None = None):
        """Let features compete over space, beside the identity."""
        features = canonical(x.ndim, self.feature_axis)
        scale, bias, dtype = parameters(self, x, features, self.use_bias)
        options = {"feature_axis": features, "epsilon": self.epsilon, "where": mask_of(mask), "dtype": dtype}
        return global_response_norm(x, scale, bias, **options)


class FilterResponseNorm(nn.Module):
    """Filter response norm with its thresholded linear unit; see `jaxnorm.filter_response_norm`.

    Args:
      use_threshold: False leaves the threshold out, and its parameter; an activation of your own comes after it then.
      learn_epsilon: a parameter `learned_epsilon` [], its size added to epsilon; for inputs without space.

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm.linen as jnl
      >>> x = jnp.array([[[3.0], [-4.0], [0.0], [0.0]]])
      >>> jnl.FilterResponseNorm(epsilon=0.0).init_with_output(jax.random.key(0), x)[0][0, :, 0]
      Array([1.2, 0. , 0. , 0. ], dtype=float32)
    """

    epsilon: float = 1e-6
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    use_bias: bool = True
    use_scale: bool = True
    bias_init: Initializer = initializers.zeros
    scale_init: Initializer = initializers.ones
    threshold_init: Initializer = initializers.zeros
    use_threshold: bool = True
    learn_epsilon: bool = False
    feature_axis: int = -1
    scale_offset: float = 0.0

    @nn.compact
    def __call__(self, x, *, mask: ArrayLike | None = None):
        """Normalize x over space and apply the threshold."""
        features = canonical(x.ndim, self.feature_axis)
        scale, bias, dtype = parameters(self, x, features, self.use_bias)
        epsilon = self.epsilon
        if self.learn_epsilon:  # 1e-4 at first: section 3.3 of the paper
            epsilon += jnp.abs(self.param("learned_epsilon", initializers.constant(1e-4), (), jnp.float32))
        return filter_response_norm(
            x,
            scale,
            bias,
            learned(self, "threshold", x, features) if self.use_threshold else None,
            feature_axis=features,
            epsilon=epsilon,
            where=mask_of(mask),
            scale_offset=self.scale_offset,
            dtype=dtype,
        )


class LocalResponseNorm(nn.Module):
    """Local response norm of AlexNet, as torch defines it; see `jaxnorm.local_response_norm`. No parameters.

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm.linen as jnl
      >>> jnl.LocalResponseNorm(size=1, alpha=1.0, beta=1.0).apply({}, jnp.array([0.0, 3.0]))
      Array([0. , 0.3], dtype=float32)
    """

    size: int
    alpha: float = 1e-4
    beta: float = 0.75
    k: float = 1.0
    feature_axis: int = -1

    def __call__(self, x, *, mask: ArrayLike | None = None):
        """Divide x by a power of its neighbours' mean square."""
        options = {"feature_axis": self.feature_axis, "where": mask_of(mask)}
        return local_response_norm(x, size=self.size, alpha=self.alpha, beta=self.beta, k=self.k, **options)
