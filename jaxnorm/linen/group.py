"""Group and instance norm: statistics of each sample over space."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax.nn import initializers
from jax.typing import ArrayLike, DTypeLike

from jaxnorm.arguments import Call
from jaxnorm.linen.parameters import Axes, Initializer, canonical, groups_of, mask_of, parameters, standardized
from jaxnorm.norms.group import standardize_groups
from jaxnorm.rules import Area


class GroupNorm(nn.Module):
    """Group norm, as `flax.linen.GroupNorm`; see `jaxnorm.group_norm`.

    Beyond Flax: `feature_axis`, the axis whose features are grouped; `scale_offset`, added to scale in float32.

    Differs from Flax: stable variance; masks that NaN cannot pass and that broadcast, zeros at masked places; devices
    weighted by their valid values; one value per group is a ValueError.

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm.linen as jnl
      >>> norm = jnl.GroupNorm(num_groups=2)
      >>> norm.init_with_output(jax.random.key(0), jnp.array([[1.0, 3.0, 10.0, 30.0]]))[0].round(4)
      Array([[-1.,  1., -1.,  1.]], dtype=float32)
    """

    num_groups: int | None = 32
    group_size: int | None = None
    epsilon: float = 1e-6
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    use_bias: bool = True
    use_scale: bool = True
    bias_init: Initializer = initializers.zeros
    scale_init: Initializer = initializers.ones
    reduction_axes: Axes | None = None
    axis_name: Any = None
    axis_index_groups: Any = None
    use_fast_variance: bool = True
    force_float32_reductions: bool = True
    feature_axis: int = -1
    scale_offset: float = 0.0

    @nn.compact
    def __call__(self, x, *, mask: ArrayLike | None = None):
        """Normalize x over `reduction_axes` (None: all but axis 0), features in groups."""
        call = Call("GroupNorm", x)
        (feature,) = call.axes(self.feature_axis, "feature_axis")
        axes = range(1, x.ndim) if self.reduction_axes is None else self.reduction_axes
        axes = {*canonical(x.ndim, axes)} | ({feature} if self.reduction_axes is None else set())
        if feature not in axes:
            todo = "A group reduces over its own features: add that axis."
            call.fail("`reduction_axes` must include the feature axis", f"{sorted(axes)}, feature axis {feature}", todo)
        groups = call.num_groups(self.num_groups, self.group_size, x.shape[feature], self.feature_axis)
        space = tuple(sorted(axes - {feature}))
        if groups == x.shape[feature] and not self.is_initializing():
            call.several_values(space, self.axis_name, groups_of(self))
        scale, bias, dtype = parameters(self, x, (feature,), self.use_bias)
        return standardize_groups(
            call.x,
            scale,
            bias,
            features=(feature,),
            groups=groups,
            area=Area(space, *call.devices(self.axis_name, groups_of(self))),
            epsilon=self.epsilon,
            where=call.mask(mask_of(mask)),
            scale_offset=self.scale_offset,
            dtype=dtype,
        )


class InstanceNorm(nn.Module):
    """Instance norm, as `flax.linen.InstanceNorm`; see `jaxnorm.instance_norm`.

    Beyond Flax: `scale_offset`, added to scale in float32.

    Differs from Flax: stable variance; masks that NaN cannot pass, zeros at masked places; devices weighted by their
    valid values; one value per sample and feature is a ValueError.

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm.linen as jnl
      >>> x = jnp.array([[[1.0], [5.0], [9.0]]])
      >>> jnl.InstanceNorm().init_with_output(jax.random.key(0), x)[0][0, :, 0].round(4)
      Array([-1.2247,  0.    ,  1.2247], dtype=float32)
    """

    epsilon: float = 1e-6
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    use_bias: bool = True
    use_scale: bool = True
    bias_init: Initializer = initializers.zeros
    scale_init: Initializer = initializers.ones
    feature_axes: Axes = -1
    axis_name: Any = None
    axis_index_groups: Any = None
    use_fast_variance: bool = True
    force_float32_reductions: bool = True
    scale_offset: float = 0.0

    @nn.compact
    def __call__(self, x, *, mask: ArrayLike | None = None):
        """Normalize each feature of each sample over space: every axis but axis 0 and `feature_axes`."""
        call = Call("InstanceNorm", x)
        features = canonical(x.ndim, self.feature_axes)
        if 0 in features:
            todo = "Axis 0 is the batch; for unbatched samples use jaxnorm.instance_norm(axis=...)."
            call.fail("`feature_axes` must not name axis 0", f"feature_axes={self.feature_axes}", todo)
        space = tuple(a for a in call.others(features) if a != 0)
        if not self.is_initializing():
            call.several_values(space, self.axis_name, groups_of(self))
        return standardized(self, x, features, space, mask, self.use_bias)
