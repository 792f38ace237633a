"""Norms as `flax.nnx` modules: change the import and the rest of the model stays, its checkpoints included.

Arguments, variables, initializers, random draws and output dtypes are those of Flax NNX; `rngs` and the rest are
described there. Here is what is more, and what is deliberately different. More, all off by default: `scale_offset`;
`feature_axis` of GroupNorm; `ghost_size`, `debias`, `ddof`, `momentum=None` and `frozen` of BatchNorm. Different:

- The variance is the stable one whatever `use_fast_variance` says. The argument is there for code written for Flax;
  E[x^2] - E[x]^2 subtracts two large numbers, and a norm that can return noise is not worth an option.
- A mask may be of any dtype (nonzero counts) and broadcasts to x, in every norm. What it hides is never read, so a NaN
  there touches nothing, and comes out as 0, in inference too; a set without any valid value gives 0, not NaN.
- Over `axis_name` devices are weighted by their valid values, not averaged. `axis_index_groups` works under `jax.vmap`
  and `jax.shard_map`.
- One value per set of numbers that shares statistics is a ValueError (BatchNorm in training, GroupNorm, InstanceNorm),
  where Flax returns the bias. LayerNorm and RMSNorm allow it.
- BatchNorm: an empty batch changes no bit of the running statistics; they are never rounded to `dtype`;
  complex input needs complex ones, where Flax drops the imaginary part of the mean.
- GroupNorm: custom `reduction_axes` give the statistics they name. Flax repeats them along axis 1.

    >>> model = nnx.Sequential(nnx.Linear(4, 8, rngs=nnx.Rngs(0)), LayerNorm(8, rngs=nnx.Rngs(0)))
    >>> model(jnp.arange(4.0)).shape
    (8,)
"""

import math
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
from jax.nn.initializers import ones, zeros
from jax.typing import ArrayLike, DTypeLike

from jaxnorm.arguments import Axes, AxisLike, AxisName, Call, IndexGroups
from jaxnorm.norms.batch import batch_norm
from jaxnorm.norms.group import standardize_groups
from jaxnorm.rules import Area
from jaxnorm.running import RunningStats
from jaxnorm.standardize import standardize

try:
    from flax import nnx
    from flax.nnx.module import first_from
    from flax.nnx.nn import dtypes
    from flax.typing import Initializer, PromoteDtypeFn
except ImportError as error:
    raise ImportError("jaxnorm.nnx needs flax: pip install 'jaxnorm[flax]'") from error

Metadata = Mapping[str, Any]
NONE: Metadata = MappingProxyType({})


class _Norm(nnx.Module):
    """What the norms share: options, and what becomes of x, the parameters and the mask on their way in."""

    def _options(self, epsilon, dtype, axis_name, axis_index_groups, use_fast_variance, promote_dtype, scale_offset):
        self.epsilon, self.scale_offset, self.use_fast_variance = epsilon, scale_offset, use_fast_variance
        self.dtype, self.promote_dtype = dtype, promote_dtype
        self.axis_name, self.axis_index_groups = axis_name, axis_index_groups

    def _parameter(self, wanted, init, num_features, dtype, metadata, rngs):
        self.num_features, self.param_dtype = num_features, dtype
        return nnx.Param(init(rngs.params(), (num_features,), dtype), **metadata) if wanted else nnx.data(None)

    def _promote(self, x, *variables):
        values = (None if variable is None else variable[...] for variable in variables)
        return self.promote_dtype((x, *values), dtype=self.dtype)

    def _keywords(self, x, scale, bias) -> dict[str, Any]:
        """The keywords of every pure function; the output dtype is that of the promoted arrays together."""
        return {
            "epsilon": self.epsilon,
            "axis_name": self.axis_name,
            "scale_offset": self.scale_offset,
            "dtype": dtypes.canonicalize_dtype(x, scale, bias, dtype=self.dtype),
        }

    def _groups(self) -> IndexGroups | None:
        return None if self.axis_name is None else self.axis_index_groups

    def _standardize(self, call, scale, bias, axes, features, mask, center=True):
        keywords = self._keywords(call.x, scale, bias)
        scale, bias = _spread(call, scale, features), _spread(call, bias, features)
        groups, where = self._groups(), _where(mask)
        keywords |= {"axis": axes, "where": where, "axis_index_groups": groups, "center": center}
        return standardize(call.x, scale, bias, **keywords)[0]


def _where(mask: ArrayLike | None) -> jax.Array | None:
    return None if mask is None else jnp.asarray(mask).astype(bool)


def _axes(call: Call, name: str, axes: AxisLike) -> Axes:
    """Sorted non-negative axes; as in Flax one may be named twice."""
    each = axes if isinstance(axes, Iterable) else (axes,)
    return tuple(sorted({call.axes(axis, name)[0] for axis in each}))


def _spread(call: Call, parameter: jax.Array | None, features: Axes) -> jax.Array | None:
    """A parameter of `num_features` values as it broadcasts to x, whose features may be several axes."""
    if parameter is None:
        return None
    shape = tuple(size if axis in features else 1 for axis, size in enumerate(call.x.shape))
    if parameter.size != math.prod(shape):
        _wrong_features(call, parameter.size, features)
    return parameter.reshape(shape)


def _wrong_features(call: Call, num_features: int, features: Axes) -> NoReturn:
    got = f"num_features={num_features}, x.shape={call.x.shape}, feature axes {features}"
    call.fail("x must have `num_features` features", got, "Check num_features and the feature axes.")


class BatchNorm(_Norm):
    """Batch norm (Ioffe & Szegedy 2015, arXiv:1502.03167); arguments and variables as `flax.nnx.BatchNorm`.

    Args (beyond Flax's):
      momentum: the weight of the past; None averages all updates equally.
      scale_offset: added to scale in float32; 1.0 for parameters stored around zero.
      ghost_size: normalize ghost batches of this many rows each; inference ignores it.
      debias: update t weighs (1 - momentum) / (1 - momentum^t): the state never contains its initial value.
      ddof: 1 stores the unbiased variance (torch).
      frozen: always normalize by the running statistics and never update them; scale and bias still train. Also
        `nnx.view(model, frozen=True)`.

    Variables: Flax's; with `debias` or `momentum=None` also a BatchStat `count`, the updates that each feature had.

    Differs from Flax: stable variance; masks that NaN cannot pass, zeros at masked places; devices weighted by their
    valid values; an empty batch leaves the state alone; one value per feature in training is a ValueError; running
    statistics are never rounded to `dtype`, and must be complex where x is.

    >>> norm = BatchNorm(1, momentum=0.9, rngs=nnx.Rngs(0))
    >>> norm(jnp.array([[2.0], [4.0], [6.0]])).round(4)[:, 0]
    Array([-1.2247,  0.    ,  1.2247], dtype=float32)
    >>> norm.mean[...]
    Array([0.4], dtype=float32)
    >>> norm.eval()
    >>> norm(jnp.array([[0.4]]))
    Array([[0.]], dtype=float32)
    """

    def __init__(
        self, num_features: int, *,
        use_running_average: bool | None = False, axis: int = -1, momentum: float | None = 0.99,
        epsilon: float = 1e-5, dtype: DTypeLike | None = None, param_dtype: DTypeLike = jnp.float32,
        use_bias: bool = True, use_scale: bool = True,
        bias_init: Initializer = zeros, scale_init: Initializer = ones,
        axis_name: AxisName = None, axis_index_groups: IndexGroups | None = None,
        use_fast_variance: bool = True, promote_dtype: PromoteDtypeFn = dtypes.promote_dtype,
        rngs: nnx.Rngs, bias_metadata: Metadata = NONE, scale_metadata: Metadata = NONE,
        scale_offset: float = 0.0, ghost_size: int | None = None, debias: bool = False, ddof: int = 0,
        frozen: bool = False,
    ):  # fmt: skip
        stats = RunningStats.init(num_features)
        self.mean, self.var = nnx.BatchStat(stats.mean), nnx.BatchStat(stats.var)
        self.count = nnx.BatchStat(stats.count) if debias or momentum is None else nnx.data(None)
        self.scale = self._parameter(use_scale, scale_init, num_features, param_dtype, scale_metadata, rngs)
        self.bias = self._parameter(use_bias, bias_init, num_features, param_dtype, bias_metadata, rngs)
        self._options(epsilon, dtype, axis_name, axis_index_groups, use_fast_variance, promote_dtype, scale_offset)
        self.use_running_average, self.frozen = use_running_average, frozen
        self.axis, self.use_bias, self.use_scale = axis, use_bias, use_scale
        self.momentum, self.ghost_size, self.debias, self.ddof = momentum, ghost_size, debias, ddof

    def __call__(self, x, use_running_average: bool | None = None, *, mask: ArrayLike | None = None) -> jax.Array:
        """Normalize x by this batch and update the running statistics, or by those if `use_running_average`."""
        use_running_average = first_from(
            use_running_average,
            self.use_running_average,
            error_msg="BatchNorm: `use_running_average` must be given; got None. Pass it to the constructor or the "
            "call, or set it with model.train(), model.eval() or nnx.view.",
        )
        count = jnp.zeros_like(self.var[...]) if self.count is None else self.count[...]
        stats = RunningStats(self.mean[...], self.var[...], count)
        # Flax promotes its statistics too; here they only have a say in the dtype of the rest.
        x, _, _, scale, bias = self._promote(x, self.mean, self.var, self.scale, self.bias)
        training = not (use_running_average or self.frozen)
        options = {"momentum": self.momentum, "ddof": self.ddof, "debias": self.debias, "ghost_size": self.ghost_size}
        options |= {"feature_axis": self.axis, "where": _where(mask), "axis_index_groups": self._groups()}
        y, stats = batch_norm(x, stats, scale, bias, training=training, **options, **self._keywords(x, scale, bias))
        if training and stats is not None:
            self.mean[...], self.var[...] = stats.mean, stats.var
            if self.count is not None:
                self.count[...] = stats.count
        return y

    def set_view(self, use_running_average: bool | None = None, frozen: bool | None = None):
        """What `nnx.view` may set; None leaves it as it is.

        Args:
          use_running_average: normalize by the running statistics instead of the batch's.
          frozen: the same, for good: `train()` does not end it.
        """
        if use_running_average is not None:
            self.use_running_average = use_running_average
        if frozen is not None:
            self.frozen = frozen


class LayerNorm(_Norm):
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
        axes, features = (_axes(call, name, getattr(self, name)) for name in ("reduction_axes", "feature_axes"))
        return self._standardize(call, scale, bias, axes, features, mask)


class RMSNorm(_Norm):
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
        axes, features = (_axes(call, name, getattr(self, name)) for name in ("reduction_axes", "feature_axes"))
        return self._standardize(call, scale, None, axes, features, mask, center=False)


class GroupNorm(_Norm):
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
            _wrong_features(call, self.num_features, features)
        space = _axes(call, "reduction_axes", range(1, x.ndim) if self.reduction_axes is None else self.reduction_axes)
        if self.reduction_axes is not None and not set(features) <= set(space):
            got = f"reduction_axes={self.reduction_axes}, feature_axis={self.feature_axis}, x.shape={x.shape}"
            call.fail("`reduction_axes` must include the features", got, "Name their axis too.")
        space = tuple(axis for axis in space if axis not in features)
        if self.num_groups == self.num_features:
            call.several_values(space, self.axis_name, self._groups())
        keywords = self._keywords(x, scale, bias)
        area = Area(space, *call.devices(keywords.pop("axis_name"), self._groups()))
        layout = {"features": features, "groups": self.num_groups, "area": area, "where": call.mask(_where(mask))}
        return standardize_groups(
            call.x, _spread(call, scale, features), _spread(call, bias, features), **layout, **keywords
        )


class InstanceNorm(_Norm):
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
        features = _axes(call, "feature_axes", self.feature_axes)
        if 0 in features:
            got = f"feature_axes={self.feature_axes}, x.shape={x.shape}"
            call.fail("`feature_axes` must not include axis 0, the batch", got, "Move the features behind it.")
        axes = call.others((0, *features))
        call.several_values(axes, self.axis_name, self._groups())
        return self._standardize(call, scale, bias, axes, features, mask)
