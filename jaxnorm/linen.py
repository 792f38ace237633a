"""Flax Linen modules: `flax.linen`'s norms with jaxnorm behind them. Parameters and names; no arithmetic.

Change the import and keep the checkpoint: constructor arguments, call arguments, variable collections, names, shapes,
dtypes, initializers and output dtypes are Flax's. Arguments beyond Flax's come after them and default to its behaviour.

Different on purpose, because it is wrong in Flax:

- The variance is always the stable one. `use_fast_variance` is accepted, so that code keeps running, and has no effect:
  the fast one loses all digits where a mean is large.
- Masked entries are not read and give 0; Flax normalizes them, and lets a NaN there reach the gradient of valid ones.
- Devices (`axis_name`) are weighted by how many values they counted.
- A batch without a valid value leaves the running statistics as they were; in Flax they become NaN.
- One value per feature in training, or per group or instance, raises a ValueError, except while initializing.
- Statistics are computed and kept in at least float32, also with `force_float32_reductions=False`.
- `GroupNorm` takes any `feature_axis`, and masks that broadcast.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

try:
    import flax.linen as nn
except ImportError as error:
    raise ImportError("jaxnorm.linen needs flax: pip install 'jaxnorm[flax]'") from error
from flax.linen.dtypes import canonicalize_dtype
from jax.nn import initializers
from jax.typing import ArrayLike, DTypeLike

from jaxnorm.arguments import Call
from jaxnorm.norms.batch import batch_norm
from jaxnorm.norms.group import standardize_groups
from jaxnorm.rules import Area
from jaxnorm.running import RunningStats
from jaxnorm.standardize import standardize

Axes = int | Sequence[int]
Initializer = Any


def _sorted(ndim: int, axes: Axes) -> tuple[int, ...]:
    axes = axes if isinstance(axes, Iterable) else (axes,)
    return tuple(sorted({a % ndim for a in axes}))


def _mask(mask: ArrayLike | None) -> jax.Array | None:
    return None if mask is None else jnp.asarray(mask, bool)


def _parameters(module: Any, x: jax.Array, axes: tuple[int, ...], use_bias: bool):
    """Scale and bias on these axes, with as many dimensions as x, and the output dtype by Flax's rule."""
    shape = tuple(x.shape[a] for a in axes)
    full = tuple(n if a in axes else 1 for a, n in enumerate(x.shape))
    scale = bias = None
    if module.use_scale:
        scale = module.param("scale", module.scale_init, shape, module.param_dtype).reshape(full)
    if use_bias:
        bias = module.param("bias", module.bias_init, shape, module.param_dtype).reshape(full)
    return scale, bias, canonicalize_dtype(x, scale, bias, dtype=module.dtype)


def _groups(module: Any):
    return None if module.axis_name is None else module.axis_index_groups


class BatchNorm(nn.Module):
    """Batch norm with running statistics in `batch_stats`, as `flax.linen.BatchNorm`; see `jaxnorm.batch_norm`.

    Beyond Flax:
      momentum: None averages all updates equally.
      scale_offset: added to scale in float32.
      ghost_size: normalize sub-batches of this many rows apart.
      debias: the running statistics never contain their initial values (Haiku).
      ddof: 1 keeps the unbiased variance (torch).
      frozen: running statistics, never updated, whatever the call says; scale and bias still train.

    `batch_stats` has `mean` and `var`, and `count` only with `debias` or `momentum=None`. Differences from Flax: at the
    top of `jaxnorm.linen`.

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm.linen as jnl
      >>> norm = jnl.BatchNorm(use_running_average=False, momentum=0.9)
      >>> x = jnp.array([[1.0], [5.0], [9.0]])
      >>> variables = norm.init(jax.random.key(0), x)
      >>> y, updated = norm.apply(variables, x, mutable="batch_stats")
      >>> updated["batch_stats"]["mean"]
      Array([0.5], dtype=float32)
    """

    use_running_average: bool | None = None
    axis: Axes = -1
    momentum: float | None = 0.99
    epsilon: float = 1e-5
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    use_bias: bool = True
    use_scale: bool = True
    bias_init: Initializer = initializers.zeros
    scale_init: Initializer = initializers.ones
    axis_name: Any = None
    axis_index_groups: Any = None
    use_fast_variance: bool = True
    force_float32_reductions: bool = True
    scale_offset: float = 0.0
    ghost_size: int | None = None
    debias: bool = False
    ddof: int = 0
    frozen: bool = False

    @nn.compact
    def __call__(self, x, use_running_average: bool | None = None, *, mask: ArrayLike | None = None):
        """Normalize x; without running averages, update them. Nothing is updated while initializing."""
        use_running_average = nn.merge_param("use_running_average", self.use_running_average, use_running_average)
        features = _sorted(x.ndim, self.axis)
        shape = tuple(x.shape[a] for a in features)
        names = ("mean", "var", "count") if self.debias or self.momentum is None else ("mean", "var")
        kept = {name: self.variable("batch_stats", name, _initial, name, shape) for name in names}
        scale, bias, dtype = _parameters(self, x, features, self.use_bias)
        options = {"epsilon": self.epsilon, "where": _mask(mask), "scale_offset": self.scale_offset, "dtype": dtype}
        training = not (use_running_average or self.frozen)
        if training and self.is_initializing():  # no devices to name yet, and perhaps a batch of one
            others = tuple(a for a in range(x.ndim) if a not in features)
            return standardize(x, scale, bias, axis=others, **options)[0]
        values = {name: jnp.asarray(kept[name].value, jnp.float32) for name in names}
        stats = RunningStats(**({"count": jnp.zeros(shape)} | values))
        y, stats = batch_norm(
            x,
            stats,
            scale,
            bias,
            training=training,
            momentum=self.momentum,
            feature_axis=features,
            axis_name=self.axis_name,
            axis_index_groups=_groups(self),
            ghost_size=self.ghost_size,
            ddof=self.ddof,
            debias=self.debias,
            **options,
        )
        if training:
            for name, variable in kept.items():
                variable.value = getattr(stats, name)
        return y


def _initial(name: str, shape: tuple[int, ...]) -> jax.Array:
    return getattr(RunningStats.init(shape), name)


class LayerNorm(nn.Module):
    """Layer norm, as `flax.linen.LayerNorm`; see `jaxnorm.layer_norm`.

    Beyond Flax: `scale_offset`, added to scale in float32. Differences: at the top of `jaxnorm.linen`.

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm.linen as jnl
      >>> jnl.LayerNorm().init_with_output(jax.random.key(0), jnp.array([1.0, 5.0, 9.0]))[0].round(4)
      Array([-1.2247,  0.    ,  1.2247], dtype=float32)
    """

    epsilon: float = 1e-6
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    use_bias: bool = True
    use_scale: bool = True
    bias_init: Initializer = initializers.zeros
    scale_init: Initializer = initializers.ones
    reduction_axes: Axes = -1
    feature_axes: Axes = -1
    axis_name: Any = None
    axis_index_groups: Any = None
    use_fast_variance: bool = True
    force_float32_reductions: bool = True
    scale_offset: float = 0.0

    @nn.compact
    def __call__(self, x, *, mask: ArrayLike | None = None):
        """Normalize x over `reduction_axes`; scale and bias live on `feature_axes`."""
        return _standardize(self, x, self.feature_axes, self.reduction_axes, mask, self.use_bias)


class RMSNorm(nn.Module):
    """RMS norm, as `flax.linen.RMSNorm`; see `jaxnorm.rms_norm`.

    Beyond Flax: `scale_offset`, added to scale in float32 (1.0 for Gemma's parameters). Differences: at the top of
    `jaxnorm.linen`.

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm.linen as jnl
      >>> jnl.RMSNorm(epsilon=0.0).init_with_output(jax.random.key(0), jnp.array([3.0, 4.0, 0.0, 0.0]))[0]
      Array([1.2, 1.6, 0. , 0. ], dtype=float32)
    """

    epsilon: float = 1e-6
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    use_scale: bool = True
    scale_init: Initializer = initializers.ones
    reduction_axes: Axes = -1
    feature_axes: Axes = -1
    axis_name: Any = None
    axis_index_groups: Any = None
    use_fast_variance: bool = True
    force_float32_reductions: bool = True
    scale_offset: float = 0.0

    @nn.compact
    def __call__(self, x, *, mask: ArrayLike | None = None):
        """Divide x by its root mean square over `reduction_axes`; scale lives on `feature_axes`."""
        return _standardize(self, x, self.feature_axes, self.reduction_axes, mask, use_bias=False, center=False)


def _standardize(module: Any, x, feature_axes: Axes, axis: Axes, mask, use_bias: bool, center: bool = True):
    scale, bias, dtype = _parameters(module, x, _sorted(x.ndim, feature_axes), use_bias)
    y, _ = standardize(
        x,
        scale,
        bias,
        axis=_sorted(x.ndim, axis),
        epsilon=module.epsilon,
        where=_mask(mask),
        axis_name=module.axis_name,
        axis_index_groups=_groups(module),
        center=center,
        scale_offset=module.scale_offset,
        dtype=dtype,
    )
    return y


class GroupNorm(nn.Module):
    """Group norm, as `flax.linen.GroupNorm`; see `jaxnorm.group_norm`.

    Beyond Flax: `feature_axis`, the axis whose features are grouped; `scale_offset`, added to scale in float32.
    Differences: at the top of `jaxnorm.linen`.

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
        axes = {*_sorted(x.ndim, axes)} | ({feature} if self.reduction_axes is None else set())
        if feature not in axes:
            todo = "A group reduces over its own features: add that axis."
            call.fail("`reduction_axes` must include the feature axis", f"{sorted(axes)}, feature axis {feature}", todo)
        groups = call.num_groups(self.num_groups, self.group_size, x.shape[feature], self.feature_axis)
        space = tuple(sorted(axes - {feature}))
        if groups == x.shape[feature] and not self.is_initializing():
            call.several_values(space, self.axis_name, _groups(self))
        scale, bias, dtype = _parameters(self, x, (feature,), self.use_bias)
        return standardize_groups(
            call.x,
            scale,
            bias,
            features=(feature,),
            groups=groups,
            area=Area(space, *call.devices(self.axis_name, _groups(self))),
            epsilon=self.epsilon,
            where=call.mask(_mask(mask)),
            scale_offset=self.scale_offset,
            dtype=dtype,
        )


class InstanceNorm(nn.Module):
    """Instance norm, as `flax.linen.InstanceNorm`; see `jaxnorm.instance_norm`.

    Beyond Flax: `scale_offset`, added to scale in float32. Differences: at the top of `jaxnorm.linen`.

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
        features = _sorted(x.ndim, self.feature_axes)
        if 0 in features:
            todo = "Axis 0 is the batch; for unbatched samples use jaxnorm.instance_norm(axis=...)."
            call.fail("`feature_axes` must not name axis 0", f"feature_axes={self.feature_axes}", todo)
        space = tuple(a for a in call.others(features) if a != 0)
        if not self.is_initializing():
            call.several_values(space, self.axis_name, _groups(self))
        return _standardize(self, x, features, space, mask, self.use_bias)
