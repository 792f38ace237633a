"""Layer and RMS norm: statistics of each position over its features."""

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn import dtypes
from flax.typing import Initializer, PromoteDtypeFn
from jax.nn.initializers import ones, zeros
from jax.typing import ArrayLike, DTypeLike

from jaxnorm.arguments import AxisLike, AxisName, Call, IndexGroups
from jaxnorm.nnx.norm import NONE, Metadata, Norm, axes_of


class LayerNorm(Norm):
    """Layer norm (Ba, Kiros & Hinton 2016, arXiv:1607.06450); arguments and variables as `flax.nnx.LayerNorm`.

    Args (beyond Flax's):
      scale_offset: added to scale in float32; 1.0 for parameters stored around zero.

    Differs from Flax: stable variance; masks that NaN cannot pass, zeros at masked places; devices weighted by their
    valid values.

    >>> LayerNorm(3, rngs=nnx.Rngs(0))(jnp.array([[1.0, 5.0, 9.0]])).round(4)
    Array([[-1.2247,  0.    ,  1.2247]], dtype=float32)
    """

    def __init__(
        self, num_features: int, *,
        epsilon: float = 1e-6, dtype: DTypeLike | None = None, param_dtype: DTypeLike = jnp.float32,
        use_bias: bool = True, use_scale: bool = True,
        bias_init: Initializer = zeros, scale_init: Initializer = ones,
        reduction_axes: AxisLike = -1, feature_axes: AxisLike = -1,
        axis_name: AxisName = None, axis_index_groups: IndexGroups | None = None,
        use_fast_variance: bool = True, promote_dtype: PromoteDtypeFn = dtypes.promote_dtype,
        rngs: nnx.Rngs, bias_metadata: Metadata = NONE, scale_metadata: Metadata = NONE,
        scale_offset: float = 0.0,
    ):  # fmt: skip
        self.scale = self._parameter(use_scale, scale_init, num_features, param_dtype, scale_metadata, rngs)
        self.bias = self._parameter(use_bias, bias_init, num_features, param_dtype, bias_metadata, rngs)
        self._options(epsilon, dtype, axis_name, axis_index_groups, use_fast_variance, promote_dtype, scale_offset)
        self.use_bias, self.use_scale = use_bias, use_scale
        self.reduction_axes, self.feature_axes = reduction_axes, feature_axes

    def __call__(self, x, *, mask: ArrayLike | None = None) -> jax.Array:
        """Normalize x over `reduction_axes`."""
        x, scale, bias = self._promote(x, self.scale, self.bias)
        call = Call("LayerNorm", x)
        axes, features = (axes_of(call, name, getattr(self, name)) for name in ("reduction_axes", "feature_axes"))
        return self._standardize(call, scale, bias, axes, features, mask)


class RMSNorm(Norm):
    """RMS norm (Zhang & Sennrich 2019, arXiv:1910.07467); arguments and variables as `flax.nnx.RMSNorm`.

    Args (beyond Flax's):
      scale_offset: added to scale in float32, where 1 + 1/256 is not 1; 1.0 for Gemma's parameters around zero.

    Differs from Flax: masks that NaN cannot pass, zeros at masked places; devices weighted by their valid values.

    >>> RMSNorm(4, epsilon=0.0, rngs=nnx.Rngs(0))(jnp.array([3.0, 4.0, 0.0, 0.0]))
    Array([1.2, 1.6, 0. , 0. ], dtype=float32)
    """

    def __init__(
        self, num_features: int, *,
        epsilon: float = 1e-6, dtype: DTypeLike | None = None, param_dtype: DTypeLike = jnp.float32,
        use_scale: bool = True, scale_init: Initializer = ones,
        reduction_axes: AxisLike = -1, feature_axes: AxisLike = -1,
        axis_name: AxisName = None, axis_index_groups: IndexGroups | None = None,
        use_fast_variance: bool = True, promote_dtype: PromoteDtypeFn = dtypes.promote_dtype,
        rngs: nnx.Rngs, scale_metadata: Metadata = NONE,
        scale_offset: float = 0.0,
    ):  # fmt: skip
        self.scale = self._parameter(use_scale, scale_init, num_features, param_dtype, scale_metadata, rngs)
        self._options(epsilon, dtype, axis_name, axis_index_groups, use_fast_variance, promote_dtype, scale_offset)
        self.use_scale = use_scale
        self.reduction_axes, self.feature_axes = reduction_axes, feature_axes

    def __call__(self, x, mask: ArrayLike | None = None) -> jax.Array:
        """Divide x by its root mean square over `reduction_axes`."""
        x, scale = self._promote(x, self.scale)
        call = Call("RMSNorm", x)
        axes, features = (axes_of(call, name, getattr(self, name)) for name in ("reduction_axes", "feature_axes"))
        return self._standardize(call, scale, None, axes, features, mask, center=False)
