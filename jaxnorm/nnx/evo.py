"""EvoNorms: a norm and an activation in one."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn import dtypes
from flax.typing import Initializer
from jax.nn.initializers import ones, zeros
from jax.typing import ArrayLike, DTypeLike

from jaxnorm.nnx.norm import learned, where_of
from jaxnorm.nnx.running import ScaledRunningNorm, keep, read
from jaxnorm.norms.evo import evo_norm_b0, evo_norm_s0


class EvoNormS0(nnx.Module):
    """EvoNorm S0 (Liu et al. 2020, arXiv:2004.02967): each sample by itself, in groups. No activation comes after it.

    Args:
      num_features: the size of `feature_axis`.
      num_groups, group_size: exactly one of them.
      use_activation: False leaves the gate out, and its parameter `v`.
      epsilon, use_bias, use_scale, bias_init, scale_init, v_init, dtype, param_dtype, scale_offset: as elsewhere; see
        `jaxnorm.evo_norm_s0`.

    >>> norm = EvoNormS0(3, num_groups=1, use_activation=False, epsilon=0.0, rngs=nnx.Rngs(0))
    >>> (norm(jnp.array([[1.0, 5.0, 9.0]])) ** 2).round(1)  # x^2 / (32 / 3)
    Array([[0.1, 2.3, 7.6]], dtype=float32)
    """

    def __init__(
        self, num_features: int, *,
        num_groups: int | None = 32, group_size: int | None = None, use_activation: bool = True,
        epsilon: float = 1e-5, dtype: DTypeLike | None = None, param_dtype: DTypeLike = jnp.float32,
        use_bias: bool = True, use_scale: bool = True,
        bias_init: Initializer = zeros, scale_init: Initializer = ones, v_init: Initializer = ones,
        feature_axis: int = -1, scale_offset: float = 0.0, rngs: nnx.Rngs,
    ):  # fmt: skip
        self.num_groups, self.group_size, self.feature_axis = num_groups, group_size, feature_axis
        self.epsilon, self.dtype, self.scale_offset = epsilon, dtype, scale_offset
        self.v = learned(use_activation, v_init, (num_features,), param_dtype, rngs)
        self.scale = learned(use_scale, scale_init, (num_features,), param_dtype, rngs)
        self.bias = learned(use_bias, bias_init, (num_features,), param_dtype, rngs)

    def __call__(self, x, *, mask: ArrayLike | None = None) -> jax.Array:
        """Normalize and activate x."""
        v, scale, bias = (None if p is None else p[...] for p in (self.v, self.scale, self.bias))
        dtype = dtypes.canonicalize_dtype(x, scale, bias, dtype=self.dtype)
        options = {"num_groups": self.num_groups, "group_size": self.group_size, "feature_axis": self.feature_axis}
        options |= {"epsilon": self.epsilon, "scale_offset": self.scale_offset, "where": where_of(mask)}
        return evo_norm_s0(x, v, scale, bias, dtype=dtype, **options)


class EvoNormB0(ScaledRunningNorm):
    """EvoNorm B0 (Liu et al. 2020, arXiv:2004.02967): the batch's deviation or the sample's. No activation after it.

    Args (beyond ScaledRunningNorm's, which `options` are; see `jaxnorm.nnx.running`):
      use_activation: False leaves the sample's part out, and its parameter `v`.
      v_init: of `v`.
      ddof: 1 keeps the unbiased variance.

    >>> y = EvoNormB0(1, use_activation=False, rngs=nnx.Rngs(0))(jnp.array([[[1.0], [5.0], [9.0]]]))
    >>> (y[0, :, 0] ** 2).round(1)  # x^2 / (32 / 3)
    Array([0.1, 2.3, 7.6], dtype=float32)
    """

    def __init__(
        self, num_features: int, *,
        use_activation: bool = True, v_init: Initializer = ones, ddof: int = 0, rngs: nnx.Rngs, **options: Any,
    ):  # fmt: skip
        super().__init__(num_features, rngs=rngs, **options)
        self.ddof = ddof
        self.v = learned(use_activation, v_init, (num_features,), self.param_dtype, rngs)

    def __call__(self, x, use_running_average: bool | None = None, *, mask: ArrayLike | None = None) -> jax.Array:
        """Normalize and activate x; without running averages, update them."""
        training = self._training(use_running_average)
        v = None if self.v is None else self.v[...]
        scale, bias, options = self._parameters(x)
        options |= {"training": training, "ddof": self.ddof, **self._keywords(mask)}
        y, stats = evo_norm_b0(x, read(self, self._initial()), v, scale, bias, **options)
        if training:
            keep(self, stats)
        return y
