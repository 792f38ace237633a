"""Group and instance norm: statistics of each sample over space."""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn import dtypes
from flax.typing import Initializer, PromoteDtypeFn
from jax.nn.initializers import ones, zeros
from jax.typing import ArrayLike, DTypeLike

from jaxnorm.arguments import AxisLike, AxisName, Call, IndexGroups
from jaxnorm.nnx.norm import NONE, Metadata, Norm, axes_of, spread, where_of, wrong_features
from jaxnorm.norms.group import standardize_groups
from jaxnorm.rules import Area


class GroupNorm(Norm):
    """Group norm (Wu & He 2018, arXiv:1803.08494); arguments and variables as `flax.nnx.GroupNorm`.

    Args (beyond Flax's):
      scale_offset: added to scale in float32; 1.0 for parameters stored around zero.
      feature_axis: the axis of the features, or several; `reduction_axes` must include it.

    Differs from Flax: stable variance; masks that NaN cannot pass, that need not have all features, zeros at masked
    places; devices weighted by their valid values; right for every `reduction_axes`; one value per group is an error.

    >>> GroupNorm(4, num_groups=2, rngs=nnx.Rngs(0))(jnp.array([[1.0, 3.0, 10.0, 30.0]])).round(4)
    Array([[-1.,  1., -1.,  1.]], dtype=float32)
    """

    def __init__(
        self, num_features: int, num_groups: int | None = 32, group_size: int | None = None, *,
        epsilon: float = 1e-6, dtype: DTypeLike | None = None, param_dtype: DTypeLike = jnp.float32,
        use_bias: bool = True, use_scale: bool = True,
        bias_init: Initializer = zeros, scale_init: Initializer = ones,
        reduction_axes: AxisLike | None = None,
        axis_name: AxisName = None, axis_index_groups: IndexGroups | None = None,
        use_fast_variance: bool = True, promote_dtype: PromoteDtypeFn = dtypes.promote_dtype,
        rngs: nnx.Rngs, bias_metadata: Metadata = NONE, scale_metadata: Metadata = NONE,
        scale_offset: float = 0.0, feature_axis: AxisLike = -1,
    ):  # fmt: skip
        given = f"got num_features={num_features}, num_groups={num_groups}, group_size={group_size}"
        if (num_groups is None) == (group_size is None):
            todo = "For a group_size pass num_groups=None, whose default is 32."
            raise ValueError(f"GroupNorm: give exactly one of `num_groups` and `group_size`; {given}. {todo}")
        parts = num_groups if group_size is None else group_size
        if not isinstance(parts, int) or parts < 1 or num_features % parts:
            raise ValueError(f"GroupNorm: groups must divide the features evenly; {given}. Pass a divisor.")
        self.num_groups, self.group_size = parts, num_features // parts
        if group_size is not None:
            self.num_groups, self.group_size = self.group_size, self.num_groups
        self.scale = self._parameter(use_scale, scale_init, num_features, param_dtype, scale_metadata, rngs)
        self.bias = self._parameter(use_bias, bias_init, num_features, param_dtype, bias_metadata, rngs)
        self._options(epsilon, dtype, axis_name, axis_index_groups, use_fast_variance, promote_dtype, scale_offset)
        self.use_bias, self.use_scale = use_bias, use_scale
        self.reduction_axes, self.feature_axis = reduction_axes, feature_axis

    def __call__(self, x, *, mask: ArrayLike | None = None) -> jax.Array:
        """Normalize each sample over `reduction_axes`, its features group by group."""
        x, scale, bias = self._promote(x, self.scale, self.bias)
        call = Call("GroupNorm", x)
        features = call.axes(self.feature_axis, "feature_axis")
        if math.prod(call.shape(features)) != self.num_features:
            wrong_features(call, self.num_features, features)
        reduced = range(1, x.ndim) if self.reduction_axes is None else self.reduction_axes
        space = axes_of(call, "reduction_axes", reduced)
        if self.reduction_axes is not None and not set(features) <= set(space):
            got = f"reduction_axes={self.reduction_axes}, feature_axis={self.feature_axis}, x.shape={x.shape}"
            call.fail("`reduction_axes` must include the features", got, "Name their axis too.")
        space = tuple(axis for axis in space if axis not in features)
        if self.num_groups == self.num_features:
            call.several_values(space, self.axis_name, self._groups())
        keywords = self._keywords(x, scale, bias)
        area = Area(space, *call.devices(keywords.pop("axis_name"), self._groups()))
        layout = {"features": features, "groups": self.num_groups, "area": area, "where": call.mask(where_of(mask))}
        return standardize_groups(
            call.x, spread(call, scale, features), spread(call, bias, features), **layout, **keywords
        )


class InstanceNorm(Norm):
    """Instance norm (Ulyanov et al. 2016, arXiv:1607.08022); arguments and variables as `flax.nnx.InstanceNorm`.

    Args (beyond Flax's):
      scale_offset: added to scale in float32; 1.0 for parameters stored around zero.

    Differs from Flax: stable variance; masks that NaN cannot pass, zeros at masked places; devices weighted by their
    valid values; one value per sample and feature is an error.

    >>> InstanceNorm(1, rngs=nnx.Rngs(0))(jnp.array([[[1.0], [5.0], [9.0]]])).round(4)[0, :, 0]
    Array([-1.2247,  0.    ,  1.2247], dtype=float32)
    """

    def __init__(
        self, num_features: int, *,
        epsilon: float = 1e-6, dtype: DTypeLike | None = None, param_dtype: DTypeLike = jnp.float32,
        use_bias: bool = True, use_scale: bool = True,
        bias_init: Initializer = zeros, scale_init: Initializer = ones,
        feature_axes: AxisLike = -1,
        axis_name: AxisName = None, axis_index_groups: IndexGroups | None = None,
        use_fast_variance: bool = True, promote_dtype: PromoteDtypeFn = dtypes.promote_dtype,
        rngs: nnx.Rngs, bias_metadata: Metadata = NONE, scale_metadata: Metadata = NONE,
        scale_offset: float = 0.0,
    ):  # fmt: skip
        self.scale = self._parameter(use_scale, scale_init, num_features, param_dtype, scale_metadata, rngs)
        self.bias = self._parameter(use_bias, bias_init, num_features, param_dtype, bias_metadata, rngs)
        self._options(epsilon, dtype, axis_name, axis_index_groups, use_fast_variance, promote_dtype, scale_offset)
        self.use_bias, self.use_scale, self.feature_axes = use_bias, use_scale, feature_axes

    def __call__(self, x, *, mask: ArrayLike | None = None) -> jax.Array:
        """Normalize x over everything but its first axis and `feature_axes`."""
        x, scale, bias = self._promote(x, self.scale, self.bias)
        call = Call("InstanceNorm", x)
        features = axes_of(call, "feature_axes", self.feature_axes)
        if 0 in features:
            got = f"feature_axes={self.feature_axes}, x.shape={x.shape}"
            call.fail("`feature_axes` must not include axis 0, the batch", got, "Move the features behind it.")
        axes = call.others((0, *features))
        call.several_values(axes, self.axis_name, self._groups())
        return self._standardize(call, scale, bias, axes, features, mask)
